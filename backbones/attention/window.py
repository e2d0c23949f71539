"""Attention inside windows of a map: shifted, spread as a grid, or with larger windows of keys.

Every operator is softmax attention of every token over the tokens of one window. The ``math`` forms say that
literally: all tokens attend to all others, and whoever is not in the same window is hidden. The fast forms hand the
windows to :func:`~backbones.attention.attend.attend` as a batch:

- ``strips``: an axis falls into whole windows and what is left before and behind them, each kind of window is a batch
  of its own. No padding, no mask; the bias is broadcast, whatever the size of the batch.
- ``cyclic``: for small maps the calls cost more than they save, so there all windows are one batch. As in Swin the map
  is padded and rolled, and a mask hides padding and what comes from another side of the map.

Source: Liu et al. 2021, "Swin Transformer", section 3.2; Tu et al. 2022, "MaxViT", section 3.2; Chen et al. 2023,
"Activating More Pixels in Image Super-Resolution Transformer" (HAT), section 3.2.

Shape legend: B batch, H height and W width of a map, h heads, d channels of a head, e channels of a head of values,
n tokens of a window of (height, width).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.attend import attend, autocast_types
from backbones.attention.dispatch import exporting, resolve_form
from backbones.attention.partition import Pair, merge, overlapping_windows, pair, partition
from backbones.attention.tables import table
from graftwork.errors import ConfigError, ShapeError

CYCLIC_LOGITS = {"cpu": 1 << 18}
"""Up to so many logits all windows are taken as one batch, by device; measured."""
GPU_CYCLIC_LOGITS = 1 << 24
"""The same elsewhere; an estimate."""


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | Pair,
    shift: int | Pair = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    wrap: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Let every token read a weighted mean of the values in its window.

    Maps of any size are taken. Windows at the border have fewer tokens where the map ends: padding is hidden. (Swin
    pads after its norm and attends to the padding; who wants that pads before the projections, to multiples of the
    window. On such maps the two agree.)

    Args:
        q: Queries, [B, H, W, h, d].
        k: Keys, [B, H, W, h, d].
        v: Values, [B, H, W, h, e].
        window: Side of a window, or (height, width), in tokens. One larger than the map is as good as global.
        shift: Tokens by which all windows lie further down and to the right, or (down, right), below the window's
            sides; shifted windows also begin before the map.
        bias: Added to the scaled logits of each window, [h, n, n] or [1, n, n], queries first, tokens row-major; -inf
            hides a key. From a table: :func:`~backbones.attention.partition.relative_bias`. May need a gradient.
        scale: Factor on the logits; d ** -0.5 if omitted.
        dropout: Share of the weights dropped. The caller passes 0 outside training.
        wrap: A shifted map goes on at its other side, so that windows hold tokens from both, unhidden (CRAFT).
        backend: ``auto``; ``math`` for the literal form; ``sdpa`` or ``xformers`` for the one that is to serve the
            windows, see :mod:`backbones.attention.dispatch`.

    Returns:
        [B, H, W, h, e] in the type of the values; under autocast in its type.

    Raises:
        ShapeError: Tensors that do not fit each other or the window; the message names both shapes.
        ConfigError: A window below 1, a shift that is negative or reaches the window, or a backend that is unknown or
            cannot serve.

    Source: Liu et al. 2021, section 3.2. Differs: any size of map, rectangular windows, hidden padding.
    """
    sides, shifts = pair("window", window), pair("shift", shift, least=0)
    if any(down >= side for down, side in zip(shifts, sides, strict=True)):
        raise ConfigError(f"shift={shift} must be below window={window}")
    _check(q, k, v, bias, sides)
    q, k, v = autocast_types(q, k, v)
    options: dict[str, Any] = {"scale": scale, "dropout": dropout}
    if resolve_form("window_attention", backend) == "math":
        axes = zip(q.shape[1:3], sides, shifts, strict=True)
        spots = [_window_spots(size, side, by, wrap, q.device) for size, side, by in axes]
        return _literal(q, k, v, bias, spots, sides, **options)
    if wrap and any(shifts):
        away, back = [-by for by in shifts], list(shifts)
        q, k, v = (tensor.roll(away, (1, 2)) for tensor in (q, k, v))
        return _windows(q, k, v, bias, sides, (0, 0), backend=backend, **options).roll(back, (1, 2))
    return _windows(q, k, v, bias, sides, shifts, backend=backend, **options)


def grid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: int | Pair,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Let every token read from a grid of tokens that spans the map.

    A grid of g tokens on an axis of L takes every ceil(L / g)-th one, so there are as many grids side by side as that
    step is long. Where the last step leaves the map, the grid has fewer tokens: padding is hidden.

    Args:
        q: Queries, [B, H, W, h, d].
        k: Keys, [B, H, W, h, d].
        v: Values, [B, H, W, h, e].
        grid: Tokens of a grid on both axes, or (down, across).
        bias: Added to the scaled logits of each grid, [h, n, n] or [1, n, n], as in :func:`window_attention`.
        scale: Factor on the logits; d ** -0.5 if omitted.
        dropout: Share of the weights dropped. The caller passes 0 outside training.
        backend: See :func:`window_attention`.

    Returns:
        [B, H, W, h, e] in the type of the values; under autocast in its type.

    Raises:
        ShapeError: Tensors that do not fit each other or the grid; the message names both shapes.
        ConfigError: A grid below 1, or a backend that is unknown or cannot serve.

    Source: Tu et al. 2022, section 3.2 (grid attention; long-distance attention of CrossFormer is the same). Differs:
        any size of map, rectangular grids.
    """
    sides = pair("grid", grid)
    _check(q, k, v, bias, sides)
    q, k, v = autocast_types(q, k, v)
    options: dict[str, Any] = {"scale": scale, "dropout": dropout}
    if resolve_form("grid_attention", backend) == "math":
        spots = [_grid_spots(size, side, q.device) for size, side in zip(q.shape[1:3], sides, strict=True)]
        return _literal(q, k, v, bias, spots, sides, **options)
    return _grids(q, k, v, bias, sides, backend=backend, **options)


def overlapping_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | Pair,
    key_window: int | Pair,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Let every token read from a larger window around its own.

    Outside of the map keys and values are zeros that take part: their logit is the bias alone. A map whose sides are
    no multiples of the window's counts as ended by such zeros.

    Args:
        q: Queries, [B, H, W, h, d].
        k: Keys, [B, H, W, h, d].
        v: Values, [B, H, W, h, e].
        window: Side of a window, or (height, width), in tokens.
        key_window: Side of the window of keys in the same middle, or (height, width); an even number of tokens more.
        bias: Added to the scaled logits of each window, [h, n, N] or [1, n, N] for N keys, tokens row-major. From a
            table: :func:`~backbones.attention.partition.relative_bias`. May need a gradient.
        scale: Factor on the logits; d ** -0.5 if omitted.
        dropout: Share of the weights dropped. The caller passes 0 outside training.
        backend: ``math`` for a loop over the windows; else see :func:`window_attention`.

    Returns:
        [B, H, W, h, e] in the type of the values; under autocast in its type.

    Raises:
        ShapeError: Tensors that do not fit each other or the windows; the message names both shapes.
        ConfigError: A window below 1, one of keys that cannot lie around it, or a backend that is unknown or cannot
            serve.

    Source: Chen et al. 2023, section 3.2 (overlapping cross-attention). Differs: any size of map, rectangular windows.
    """
    sides, outer = pair("window", window), pair("key_window", key_window)
    _check(q, k, v, bias, sides, outer)
    q, k, v = autocast_types(q, k, v)
    height, width = q.shape[1:3]
    if not height * width:
        return _no_tokens(q, k, v)
    q, k, v = _filled((q, k, v), sides)
    bias = None if bias is None else bias[None]
    options: dict[str, Any] = {"bias": bias, "scale": scale, "dropout": dropout}
    if resolve_form("overlapping_window_attention", backend) == "math":
        mixed = _window_by_window(q, k, v, sides, outer, options)
    else:
        keys, values = (overlapping_windows(tensor, sides, outer) for tensor in (k, v))
        windows = attend(partition(q, sides), keys, values, backend=backend, **options)
        mixed = merge(windows, sides, q.shape[1], q.shape[2])
    return mixed[:, :height, :width]


Spots = tuple[Tensor, Tensor]
"""Which window each coordinate of an axis is in, and its place there."""


def _window_spots(size: int, side: int, shift: int, wrap: bool, device: torch.device) -> Spots:
    places = torch.arange(size, device=device) - shift
    if wrap:
        places = places.remainder(max(size, 1))
    return places.div(side, rounding_mode="floor"), places.remainder(side)


def _grid_spots(size: int, tokens: int, device: torch.device) -> Spots:
    step = max(-(-size // tokens), 1)
    places = torch.arange(size, device=device)
    return places.remainder(step), places.div(step, rounding_mode="floor")


def _literal(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, spots: list[Spots], sides: Pair, **options: Any
) -> Tensor:
    """All tokens attend to all others, and whoever is not in the same window is hidden."""
    (row_windows, row_places), (column_windows, column_places) = spots
    together = (row_windows[:, None] == row_windows)[:, None, :, None]
    together = together & (column_windows[:, None] == column_windows)[:, None]  # H, W, H, W
    mask = together.flatten(2, 3).flatten(0, 1)
    if bias is not None:
        places = (row_places[:, None] * sides[1] + column_places).flatten()
        mask = bias[:, places[:, None], places].masked_fill(~mask, float("-inf"))
    flat = (tensor.flatten(1, 2) for tensor in (q, k, v))
    return attend(*flat, bias=mask, backend="math", **options).unflatten(1, q.shape[1:3])


def _window_by_window(q: Tensor, k: Tensor, v: Tensor, sides: Pair, outer: Pair, options: dict[str, Any]) -> Tensor:
    (height, width), (outer_height, outer_width) = sides, outer
    above, left = (outer_height - height) // 2, (outer_width - width) // 2
    k, v = (F.pad(tensor, (0, 0, 0, 0, left, left, above, above)) for tensor in (k, v))
    mixed = torch.zeros_like(v[:, : q.shape[1], : q.shape[2]])
    for y in range(0, q.shape[1], height):
        for x in range(0, q.shape[2], width):
            queries = q[:, y : y + height, x : x + width].flatten(1, 2)
            keys, values = (tensor[:, y : y + outer_height, x : x + outer_width].flatten(1, 2) for tensor in (k, v))
            window = attend(queries, keys, values, backend="math", **options)
            mixed[:, y : y + height, x : x + width] = window.unflatten(1, sides)
    return mixed


def _filled(tensors: tuple[Tensor, ...], sides: Pair) -> tuple[Tensor, ...]:
    """Maps with zeros at the bottom and right, up to multiples of the window."""
    below, right = (_padded(tensors[0].shape[axis + 1], sides[axis]) - tensors[0].shape[axis + 1] for axis in (0, 1))
    if isinstance(below, int) and isinstance(right, int) and not (below or right):
        return tensors
    return tuple(F.pad(tensor, (0, 0, 0, 0, 0, right, 0, below)) for tensor in tensors)


def _no_tokens(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The result for a map without an extent, which autograd may ask for gradients."""
    return attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)).unflatten(1, q.shape[1:3])


def _padded(size: int, side: int) -> int:
    """The next multiple; written so that it is known to be positive where the size is a symbol."""
    return (size + side - 1) // side * side


def _windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sides: Pair, shifts: Pair, **options: Any) -> Tensor:
    """The fast form that suits the size."""
    batch, height, width, heads = q.shape[:4]
    if _one_graph(q):
        return _cyclic(q, k, v, bias, sides, shifts, **options)
    if not height * width:
        return _no_tokens(q, k, v)
    padded = _padded(height, sides[0]) * _padded(width, sides[1])
    logits = batch * padded * sides[0] * sides[1] * heads
    few = logits <= CYCLIC_LOGITS.get(q.device.type, GPU_CYCLIC_LOGITS)
    whole = padded == height * width and not any(shifts)  # one kind of window only
    if few and not whole and padded <= 2 * height * width:
        return _cyclic(q, k, v, bias, sides, shifts, **options)
    return _by_strips(q, k, v, bias, sides, shifts, **options)


def _one_graph(x: Tensor) -> bool:
    """A graph is traced, which is to serve maps and batches of any size and so can count neither strips nor logits."""
    return torch.compiler.is_compiling() or exporting() or not all(isinstance(size, int) for size in x.shape[:3])


class Strip(NamedTuple):
    """Windows of one kind along an axis.

    Attributes:
        windows: Their number.
        size: Tokens of each along the axis.
        first: Place of its first token in a whole window.
    """

    windows: int
    size: int
    first: int


@cache
def _strips(length: int, side: int, shift: int) -> tuple[Strip, ...]:
    """An axis as what is before the first whole window, the whole windows, and what is left behind them."""
    before = min(shift, length)
    whole, behind = (length - before) // side, (length - before) % side
    strips = (Strip(1, before, side - shift), Strip(whole, side, 0), Strip(1, behind, 0))
    return tuple(strip for strip in strips if strip.windows * strip.size)


def _by_strips(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sides: Pair, shifts: Pair, **options: Any
) -> Tensor:
    rows, columns = (_strips(q.shape[axis + 1], sides[axis], shifts[axis]) for axis in (0, 1))
    heights, widths = ([strip.windows * strip.size for strip in strips] for strips in (rows, columns))
    pieces = [[_split(line, widths, 2) for line in _split(tensor, heights, 1)] for tensor in (q, k, v)]
    lines = []
    for i, row in enumerate(rows):
        line = []
        for j, column in enumerate(columns):
            size = (row.size, column.size)
            windows = (partition(piece[i][j], size) for piece in pieces)
            mixed = attend(*windows, bias=_bias_part(bias, sides, (row.first, column.first), size), **options)
            line.append(merge(mixed, size, heights[i], widths[j]))
        lines.append(_joined(line, 2))
    return _joined(lines, 1)


def _split(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, ...]:
    """The parts; not as slices, the gradient of each of which is a whole map of zeros but for itself."""
    return (x,) if len(sizes) == 1 else x.split(sizes, dim)


def _bias_part(bias: Tensor | None, sides: Pair, first: Pair, size: Pair) -> Tensor | None:
    """The bias between the tokens of a part of the window, [1, h, tokens, tokens]."""
    if bias is None or size == sides:
        return None if bias is None else bias[None]
    (y, x), (height, width) = first, size
    rows, columns = slice(y, y + height), slice(x, x + width)
    part = bias.unflatten(2, sides).unflatten(1, sides)[:, rows, columns, rows, columns]
    return part.flatten(3, 4).flatten(1, 2)[None]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _cyclic(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sides: Pair, shifts: Pair, **options: Any) -> Tensor:
    batch, height, width = q.shape[:3]
    q, k, v = _filled((q, k, v), sides)
    padded = q.shape[1:3]
    mask = None if bias is None else bias[None]
    if any(shifts) or height % sides[0] or width % sides[1]:
        mask = _cyclic_mask(height, width, *sides, *shifts, q.device)  # windows, 1, n, n
        mask = _for_each_map(mask, bias, batch)
    away, back = (-shifts[0], -shifts[1]), shifts
    q, k, v = (partition(tensor.roll(away, (1, 2)) if any(shifts) else tensor, sides) for tensor in (q, k, v))
    mixed = merge(attend(q, k, v, bias=mask, **options), sides, *padded)
    return (mixed.roll(back, (1, 2)) if any(shifts) else mixed)[:, :height, :width]


def _for_each_map(mask: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """Bias and mask [windows, 1, n, n] of a map as a bias for a batch of maps, [B windows, 1 or h, n, n]."""
    mask = mask if bias is None else bias.masked_fill(~mask, float("-inf"))
    return mask.expand(batch, *mask.shape).flatten(0, 1)


@table()
def _cyclic_mask(
    height: int, width: int, rows: int, columns: int, down: int, right: int, device: torch.device
) -> Tensor:
    """Which tokens of a padded and rolled map see each other: True in [windows, 1, n, n] for windows rows x columns."""
    strips, inside = [], []
    for size, side, shift in ((height, rows, down), (width, columns, right)):
        places = torch.arange(_padded(size, side), device=device).roll(-shift)
        strips.append((places - shift).div(side, rounding_mode="floor"))
        inside.append(places < size)
    marks = torch.broadcast_tensors(strips[0][:, None], strips[1], (inside[0][:, None] & inside[1]).long())
    y, x, valid = partition(torch.stack(marks, -1)[None], (rows, columns)).unbind(-1)  # windows, n
    same = (y[:, :, None] == y[:, None]) & (x[:, :, None] == x[:, None]) & (valid[:, None] > 0)
    return same[:, None]


class Residues(NamedTuple):
    """Grids of one kind along an axis: beginning at neighbouring tokens and having as many.

    Attributes:
        grids: Their number.
        tokens: Tokens of each along the axis.
    """

    grids: int
    tokens: int


@cache
def _residues(length: int, side: int) -> tuple[Residues, ...]:
    """The first grids of an axis, which may have a token more, and the others."""
    step = -(-length // side)
    tokens, more = length // step, length % step
    kinds = (Residues(more, tokens + 1), Residues(step - more, tokens))
    return tuple(kind for kind in kinds if kind.grids)


def _grids(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sides: Pair, **options: Any) -> Tensor:
    height, width = q.shape[1:3]
    if _one_graph(q):
        return _masked_grids(q, k, v, bias, sides, **options)
    if not height * width:
        return _no_tokens(q, k, v)
    rows, columns = _residues(height, sides[0]), _residues(width, sides[1])
    steps = (sum(row.grids for row in rows), sum(column.grids for column in columns))
    pieces = [_grid_pieces(tensor, rows, columns) for tensor in _filled((q, k, v), steps)]
    lines = []
    for i, row in enumerate(rows):
        line = []
        for j, column in enumerate(columns):
            size = (row.tokens, column.tokens)
            windows = (_grid_windows(piece[i][j]) for piece in pieces)
            mixed = attend(*windows, bias=_bias_part(bias, sides, (0, 0), size), **options)
            mixed = _ungrid_windows(mixed, size, (row.grids, column.grids))
            line.append(F.pad(mixed, (0, 0, 0, 0, 0, 0, 0, columns[0].tokens - column.tokens)))
        lines.append(F.pad(_joined(line, 4), (0,) * 10 + (0, rows[0].tokens - row.tokens)))
    return _joined(lines, 2).flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _grid_windows(grids: Tensor) -> Tensor:
    """[B, tokens, grids, tokens, grids, h, channels] -> [B grids, tokens, h, channels]."""
    return grids.permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 4).flatten(0, 2)


def _ungrid_windows(windows: Tensor, size: Pair, grids: Pair) -> Tensor:
    """The way back."""
    return windows.unflatten(1, size).unflatten(0, (-1, *grids)).permute(0, 3, 1, 4, 2, 5, 6)


def _grid_pieces(x: Tensor, rows: tuple[Residues, ...], columns: tuple[Residues, ...]) -> list[list[Tensor]]:
    """The tokens of grids of each kind, [B, tokens, grids, tokens, grids, h, channels]."""
    x = x.unflatten(2, (columns[0].tokens, -1)).unflatten(1, (rows[0].tokens, -1))
    lines = _split(x, [row.grids for row in rows], 2)
    pieces = [_split(line, [column.grids for column in columns], 4) for line in lines]
    return [
        [piece[:, : row.tokens, :, : column.tokens] for piece, column in zip(line, columns, strict=True)]
        for line, row in zip(pieces, rows, strict=True)
    ]


def _masked_grids(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sides: Pair, **options: Any) -> Tensor:
    """All grids as one batch, what lies behind the map hidden."""
    batch, height, width = q.shape[:3]
    q, k, v = _filled((q, k, v), sides)
    steps = (q.shape[1] // sides[0], q.shape[2] // sides[1])
    mask = None if bias is None else bias[None]
    if height % sides[0] or width % sides[1]:
        rows, columns = (torch.arange(size, device=q.device) for size in q.shape[1:3])
        inside = (rows < height)[:, None] & (columns < width)
        inside = inside.unflatten(1, (sides[1], steps[1])).unflatten(0, (sides[0], steps[0])).permute(1, 3, 0, 2)
        mask = _for_each_map(inside.flatten(2).flatten(0, 1)[:, None, None], bias, batch)  # grids, 1, 1, n
    grids = (tensor.unflatten(2, (sides[1], -1)).unflatten(1, (sides[0], -1)) for tensor in (q, k, v))
    mixed = attend(*(_grid_windows(grid) for grid in grids), bias=mask, **options)
    mixed = _ungrid_windows(mixed, sides, steps)
    return mixed.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sides: Pair, key_sides: Pair | None = None) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 5:
            raise ShapeError(f"{name}: expected [batch, height, width, heads, channels], got {list(tensor.shape)}")
    if k.shape != q.shape:
        raise ShapeError(f"k: expected {list(q.shape)} as q, got {list(k.shape)}")
    if v.shape[:4] != k.shape[:4]:
        raise ShapeError(f"v: expected [{', '.join(map(str, k.shape[:4]))}, channels] to fit k, got {list(v.shape)}")
    if bias is not None:
        tokens = sides[0] * sides[1]
        keys = tokens if key_sides is None else key_sides[0] * key_sides[1]
        if bias.dim() != 3 or bias.shape[0] not in (1, q.shape[3]) or tuple(bias.shape[1:]) != (tokens, keys):
            raise ShapeError(f"bias: expected [{q.shape[3]}, {tokens}, {keys}], got {list(bias.shape)}")
