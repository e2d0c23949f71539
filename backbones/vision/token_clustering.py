"""Fewer tokens in the later blocks of a trained ViT: cluster them, go on with the clusters, reconstruct the map.

Source: Liang et al. 2022, "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", section
3. Differs: clusters are formed row by row of the grid instead of among all tokens and centres; reconstruction measures
distances from the nearest centre on, which normalisation cancels, so that tokens far from all centres do not vanish.

Three surprises: nothing is learnt; a token's cell is a rounding of its place and its centre's cell another one, so that
cells of unequal size overlap in the pooling alone; the published weights of a reconstruction have a Euclidean length of
1, not a sum of 1, so tokens between several centres are scaled up.

Shape legend: B batch, H x W tokens, N = H * W, h x w grid of M = h * w centres, C channels, p rows of tokens in a row
of the grid, reach = window // 2, span = 2 * reach + 1.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.attend import without_autocast
from backbones.attention.backends.mask import HIDDEN
from backbones.attention.dispatch import exporting, resolve_form
from backbones.attention.tables import table
from graftwork.errors import ConfigError, ShapeError

Grid = tuple[int, int]
Norm = Literal["l2", "sum"]
"""What the weights of a reconstruction have of 1: their Euclidean length, as published, or their sum."""

EMPTY = 1e-16
"""Smallest sum of shares that a centre's mean is divided by."""


def cluster_tokens(
    tokens: Tensor,
    grid: Grid,
    *,
    window: int = 5,
    iterations: int = 5,
    temperature: float = 0.02,
    backend: str = "auto",
) -> Tensor:
    """Soft clusters of tokens, each near its cell of a grid.

    Centres begin as the mean of their cell. In every step a token belongs to the centres around its home cell by a
    softmax over squared distances, and a centre becomes the mean of its tokens.

    Args:
        tokens: [B, H, W, C].
        grid: Rows and columns of centres, no more than there are of tokens.
        window: Side of the window of cells around a token's own whose centres it may belong to.
        iterations: Steps.
        temperature: Factor on squared distances.
        backend: ``math`` for the literal form, all tokens with all centres.

    Returns:
        [B, M, C] in the type of the tokens, row by row; sums are computed in float32 for half types.

    Raises:
        ShapeError: Tokens of another rank, or fewer than centres.
        ConfigError: A value out of range, or an unknown backend.
    """
    literal = resolve_form("cluster_tokens", backend) == "math"
    _check_clusters(tokens, grid, window, iterations, temperature)
    with without_autocast(tokens):
        x = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        form = _among_all if literal else _by_rows
        return form(x, grid, window // 2, iterations, temperature).to(tokens.dtype)


def reconstruct_tokens(
    tokens: Tensor,
    centres: Tensor,
    refined: Tensor,
    *,
    temperature: float = 0.02,
    nearest: int = 20,
    norm: Norm = "l2",
    backend: str = "auto",
) -> Tensor:
    """Tokens from what became of the centres, by the distances between both before.

    Args:
        tokens: Before clustering, [B, N, C].
        centres: After it, [B, M, C].
        refined: What later blocks made of the centres, [B, M, D].
        temperature: Factor on squared distances.
        nearest: Centres that a token is made of, and further ones only where they are as near as the last of them.
        norm: See :data:`Norm`.
        backend: ``math`` for the literal form, from differences of all tokens and centres.

    Returns:
        [B, N, D] in the type of the refined centres.

    Raises:
        ShapeError: Tensors that do not fit each other.
        ConfigError: A value out of range, or an unknown backend.
    """
    _check_refined(centres, refined)
    weights = reconstruction_weights(
        tokens, centres, temperature=temperature, nearest=nearest, norm=norm, backend=backend
    )
    return combined(weights, refined)


def reconstruction_weights(
    tokens: Tensor,
    centres: Tensor,
    *,
    temperature: float = 0.02,
    nearest: int = 20,
    norm: Norm = "l2",
    backend: str = "auto",
) -> Tensor:
    """Weights of the centres in every token, for several maps that are made of them by :func:`combined`.

    Args:
        tokens: See :func:`reconstruct_tokens`, and so are the other arguments.
        centres: See there.
        temperature: See there.
        nearest: See there.
        norm: See there.
        backend: See there.

    Returns:
        [B, N, M], float32 at least.

    Raises:
        ShapeError: See :func:`reconstruct_tokens`.
        ConfigError: See :func:`reconstruct_tokens`.
    """
    literal = resolve_form("reconstruct_tokens", backend) == "math"
    _check_weights(tokens, centres, temperature, nearest, norm)
    precise = torch.promote_types(tokens.dtype, torch.float32)
    with without_autocast(tokens):
        x, c = tokens.to(precise), centres.to(precise)
        closeness = -temperature * (_squared_distances(x, c) if literal else _relative_distances(x, c))  # B, N, M
        weights = (closeness - closeness.amax(-1, keepdim=True).detach()).exp()
        smallest = weights.detach().topk(min(nearest, weights.shape[-1]), dim=-1).values[..., -1:]
        kept = weights * (weights >= smallest)
        total = kept.sum(-1, keepdim=True) if norm == "sum" else torch.linalg.vector_norm(kept, dim=-1, keepdim=True)
        return kept / total


def combined(weights: Tensor, refined: Tensor) -> Tensor:
    """Tokens from refined centres, [B, N, M] and [B, M, D] to [B, N, D], computed in the type of the weights."""
    with without_autocast(weights):
        return (weights @ refined.to(weights.dtype)).to(refined.dtype)


def initial_centres(tokens: Tensor, grid: Grid) -> Tensor:
    """Means of the cells of a grid, as adaptive average pooling cuts them, [B, H, W, C] to [B, h, w, C]."""
    return F.adaptive_avg_pool2d(tokens.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)


def home_cells(size: Grid, grid: Grid, device: torch.device | None = None) -> Tensor:
    """Number of the cell that every token of a map belongs to, [H, W] int64."""
    place = device or torch.device("cpu")
    rows, columns = (_homes(*pair, place) for pair in zip(size, grid, strict=True))
    return rows[:, None] * grid[1] + columns


def nearest_centres(tokens: Tensor, centres: Tensor) -> Tensor:
    """Number of the centre nearest to each token, [B, N, C] and [B, M, C] to [B, N] int64."""
    return _squared_distances(tokens, centres).argmin(-1)


def _among_all(x: Tensor, grid: Grid, reach: int, iterations: int, temperature: float) -> Tensor:
    """As the paper writes it: distances of all tokens to all centres, those out of reach hidden."""
    size = (x.shape[1], x.shape[2])
    homes = home_cells(size, grid, x.device).flatten()
    cells = torch.arange(grid[0] * grid[1], device=x.device)
    far_rows = (homes[:, None] // grid[1] - cells // grid[1]).abs() > reach
    far_columns = (homes[:, None] % grid[1] - cells % grid[1]).abs() > reach
    centres, x = initial_centres(x, grid).flatten(1, 2), x.flatten(1, 2)
    for _ in range(iterations):
        distances = _squared_distances(x, centres).masked_fill(far_rows | far_columns, torch.inf)  # B, N, M
        shares = (-temperature * distances).softmax(-1)
        centres = shares.mT @ x / shares.sum(1)[..., None].clamp(min=EMPTY)
    return centres


def _by_rows(x: Tensor, grid: Grid, reach: int, iterations: int, temperature: float) -> Tensor:
    """The tokens of each row of the grid with the centres of the rows in reach.

    Gathering the window of every cell needs fewer products still, but measured eight times slower than this on a CPU
    for 40 x 40 tokens of 1024 channels and 28 x 28 centres, and five times for 32 x 32 of 384 and 22 x 22.
    """
    (rows, columns), span = grid, 2 * reach + 1
    size = (x.shape[1], x.shape[2])
    hidden, real = _hidden(size, grid, reach, x.device), _real(size, rows, x.device)
    origin = x.mean((1, 2), keepdim=True)  # what all tokens share would cancel in their distances, digits with it
    x = x - origin
    centres = initial_centres(x, grid)
    x = x[:, _row_index(size[0], rows, x.device)].flatten(2, 3)  # B, h, p * W, C
    for _ in range(iterations):
        # what is the same for all centres, a token's own square, has no part in a softmax
        near = F.pad(centres, (0, 0, 0, 0, reach, reach)).unfold(1, span, 1)  # B, h, w, C, span
        near = near.permute(0, 1, 4, 2, 3).flatten(2, 3)  # B, h, span * w, C
        logits = 2 * temperature * (x @ near.mT) - temperature * near.square().sum(-1)[..., None, :] + hidden
        shares = logits.softmax(-1) * real  # B, h, p * W, span * w
        sums = _overlap_rows((shares.mT @ x).unflatten(2, (span, columns)), reach)
        masses = _overlap_rows(shares.sum(2).unflatten(2, (span, columns)), reach)
        masses = masses[..., None]
        least = masses.clamp(min=EMPTY)
        centres = sums / least + origin * (masses / least - 1)  # a mean of shares that do not sum to 1 moves
    return (centres + origin).reshape(x.shape[0], rows * columns, x.shape[-1])


def _overlap_rows(parts: Tensor, reach: int) -> Tensor:
    """What each row of the grid gives to the rows in its reach, [B, h, span, w, ...], added up to [B, h, w, ...]."""
    rows, span = parts.shape[1], parts.shape[2]
    later = [0] * (2 * (parts.dim() - 3))  # axes that stay as they are
    return sum(
        (F.pad(parts[:, :, i], (*later, i, span - 1 - i))[:, reach : reach + rows] for i in range(span)),
        start=parts.new_zeros(()),
    )


@cache
def _places(tokens: int, cells: int) -> list[int]:
    """Row (or column) of the grid that each row of tokens belongs to: nearest neighbours, rounded as torch does."""
    ratio = np.float32(cells) / np.float32(tokens)
    return [min(int(np.float32(token) * ratio), cells - 1) for token in range(tokens)]


@table()
def _homes(tokens: int, cells: int, device: torch.device) -> Tensor:
    return torch.tensor(_places(tokens, cells), device=device)


@cache
def _rows_of_tokens(tokens: int, cells: int) -> list[list[int]]:
    """Rows of tokens of each row of the grid."""
    places = _places(tokens, cells)
    return [[token for token, place in enumerate(places) if place == cell] for cell in range(cells)]


@table()
def _row_index(tokens: int, cells: int, device: torch.device) -> Tensor:
    """Rows of tokens of each row of the grid, [h, p], filled up with any where a row has fewer."""
    rows = _rows_of_tokens(tokens, cells)
    most = max(map(len, rows))
    return torch.tensor([row + [0] * (most - len(row)) for row in rows], device=device)


@table()
def _real(size: Grid, cells: int, device: torch.device) -> Tensor:
    """Which tokens of each row of the grid are no filling, [h, p * W, 1]."""
    rows = _rows_of_tokens(size[0], cells)
    most = max(map(len, rows))
    real = torch.tensor([[place < len(row) for place in range(most)] for row in rows], device=device)
    return real[:, :, None].expand(-1, -1, size[1]).flatten(1, 2)[..., None]


@table()
def _hidden(size: Grid, grid: Grid, reach: int, device: torch.device) -> Tensor:
    """What is added to logits of tokens and centres that are out of reach, [h, p * W, span * w]."""
    rows = torch.arange(grid[0], device=device)[:, None] + torch.arange(-reach, reach + 1, device=device)
    outside = (rows < 0) | (rows >= grid[0])  # h, span
    columns = torch.arange(grid[1], device=device)
    far = (_homes(size[1], grid[1], device)[:, None] - columns).abs() > reach  # W, w
    most = max(map(len, _rows_of_tokens(size[0], grid[0])))
    out = (outside[:, None, None, :, None] | far[None, None, :, None]).expand(-1, most, -1, -1, -1)
    return torch.zeros(out.shape, device=device).masked_fill(out, HIDDEN).flatten(3, 4).flatten(1, 2)


def _squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """[B, N, C] and [B, M, C] to [B, N, M], from differences."""
    return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _relative_distances(x: Tensor, centres: Tensor) -> Tensor:
    """Squared distances less the same for all centres of a token, [B, N, M]."""
    origin = centres.mean(1, keepdim=True)  # what all share would cancel, and digits with it
    x, centres = x - origin, centres - origin
    return centres.square().sum(-1)[:, None] - 2 * (x @ centres.mT)


def _check_clusters(tokens: Tensor, grid: Grid, window: int, iterations: int, temperature: float) -> None:
    if tokens.dim() != 4:
        raise ShapeError(f"tokens: expected [batch, height, width, channels], got {list(tokens.shape)}")
    if window < 1:
        raise ConfigError(f"window={window} must be at least 1")
    if iterations < 0:
        raise ConfigError(f"iterations={iterations} must be 0 or more")
    _check_temperature(temperature)
    if min(grid) < 1:
        raise ConfigError(f"grid={grid} must have at least one row and one column")
    if exporting():  # sizes may be unknown
        return
    if grid[0] > tokens.shape[1] or grid[1] > tokens.shape[2]:
        raise ShapeError(
            f"tokens: {tokens.shape[1]} x {tokens.shape[2]} cannot be clustered to a finer grid of "
            f"{grid[0]} x {grid[1]}",
            mend="Take a coarser grid, or leave the tokens as they are",
        )


def _check_weights(tokens: Tensor, centres: Tensor, temperature: float, nearest: int, norm: str) -> None:
    for name, tensor in (("tokens", tokens), ("centres", centres)):
        if tensor.dim() != 3:
            raise ShapeError(f"{name}: expected [batch, tokens, channels], got {list(tensor.shape)}")
    if centres.shape[::2] != tokens.shape[::2]:
        expected = f"[{tokens.shape[0]}, centres, {tokens.shape[2]}]"
        raise ShapeError(f"centres: expected {expected} to fit the tokens, got {list(centres.shape)}")
    if nearest < 1:
        raise ConfigError(f"nearest={nearest} must be at least 1")
    if norm not in ("l2", "sum"):
        raise ConfigError(f"norm={norm} must be l2 or sum")
    _check_temperature(temperature)


def _check_refined(centres: Tensor, refined: Tensor) -> None:
    if refined.dim() != 3 or refined.shape[:2] != centres.shape[:2]:
        expected = ", ".join([*map(str, centres.shape[:2]), "channels"])
        raise ShapeError(f"refined: expected [{expected}] to fit the centres, got {list(refined.shape)}")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature:g} must be above 0")
