"""Bi-level routing attention: regions of a map look at the few regions whose mean keys suit their mean queries best.

Source: Zhu et al. 2023, "BiFormer: Vision Transformer with Bi-Level Routing Attention", section 3.2. Differs: the keys
of the chosen regions are gathered in bounded slices, and where most of a small map is read anyway the others are hidden
instead.

Surprises: ``regions`` counts the regions, so that their size grows with the map; the logits are scaled by the full
width of all heads together; all heads share one choice of regions, and no gradient flows through the choice.

Shape legend: B batch, H height, W width, R regions of a map, w positions of a region, k regions read by each region
(``topk``), h heads, c channels of a head, n = B * R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.attention.attend import attend, autocast_types, without_autocast
from backbones.attention.backends.mask import HIDDEN
from backbones.attention.dispatch import exporting, resolve_form, wish
from graftwork.errors import ConfigError, ShapeError

SLICE_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Elements of keys and values gathered at once, by kind of device; on a CPU they should stay in its cache."""
KEPT_ELEMENTS = 1 << 24
"""Elements of gathered keys and values kept for the backward pass of a call; more are gathered again there."""
KEPT_COPIES = 4
"""Up to this ``topk`` they are kept all the same, as they are no larger than other activations of a block."""
MASKED_TOKENS = 1024
"""Largest map that may be attended under a mask instead of by gathering."""
GATHER_COST = 48
"""Gathering a region costs as much as attending to this many more positions of it; measured on a CPU, 1 to 144 each."""
AFFINITIES = 1 << 24
"""Scores of pairs of regions held at once."""


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    regions: int | tuple[int, int],
    topk: int,
    scale: float | None = None,
    routes: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Let every position attend to all positions of the regions that its own region is routed to.

    Memory beside the maps is linear in their positions for regions of a fixed size: there is never a tensor of all
    logits, and of the gathered keys and values at most a slice, ``KEPT_ELEMENTS`` elements or ``KEPT_COPIES`` times
    the maps.

    Args:
        q: Queries, [B, H, W, h, c]; both sides multiples of the regions per side.
        k: Keys, [B, H, W, h, c].
        v: Values, [B, H, W, h, e].
        regions: Regions per side (rows and columns), not their size.
        topk: Regions that each region reads, at most all of them; all is full attention.
        scale: Factor on the logits; (h * c) ** -0.5 if omitted, the width of all heads together.
        routes: Regions that each region reads, [B, R, topk] integers, different ones in every row, regions counted in
            row-major order; :func:`region_routes` of queries and keys if omitted. Their order has no meaning.
        backend: ``math`` for the literal form, which gathers and keeps everything; else a backend of
            :func:`backbones.attention.attend.attend`.

    Returns:
        [B, H, W, h, e] in the type of the values; under autocast in its type.

    Raises:
        ShapeError: Tensors that do not fit each other or the regions; the message names the size to pad to.
        ConfigError: ``topk`` or ``regions`` out of range, routes that name no region or one twice, unknown backend.
    """
    grid = _grid(regions)
    _check(q, k, v, grid, topk)
    literal = resolve_form("routed_attention", backend) == "math"
    scale = (q.shape[3] * q.shape[4]) ** -0.5 if scale is None else scale
    if routes is not None:
        _check_routes(routes, (q.shape[0], grid[0] * grid[1], topk))
        routes = routes.long()
    if topk == grid[0] * grid[1] and not literal:
        tokens = (tensor.flatten(1, 2) for tensor in (q, k, v))  # B, H * W, h, c
        return attend(*tokens, scale=scale, backend=backend).unflatten(1, q.shape[1:3])
    if routes is None:
        routes = region_routes(q, k, grid, topk, scale)
    q, k, v = autocast_types(q, k, v)
    if literal:
        return _literal(q, k, v, routes, grid, scale)
    return _fast(q, k, v, routes, grid, scale, backend)


def region_routes(
    q: Tensor, k: Tensor, regions: int | tuple[int, int], topk: int, scale: float | None = None
) -> Tensor:
    """The regions whose mean key suits a region's mean query best, over the channels of all heads together.

    Means and scores are computed in float32 for half types, also under autocast, so that all forms of the operator
    choose alike. Which of two regions with the same score is chosen is not defined.

    Args:
        q: Queries, [B, H, W, h, c]; both sides multiples of the regions per side.
        k: Keys, [B, H, W, h, c].
        regions: Regions per side (rows and columns).
        topk: Regions chosen for each region.
        scale: Factor on the scores; a positive one does not change the choice.

    Returns:
        [B, R, topk] int64, best first, without a gradient.

    Raises:
        ShapeError: See :func:`routed_attention`.
        ConfigError: See :func:`routed_attention`.
    """
    grid = _grid(regions)
    _check(q, k, k, grid, topk)
    scale = (q.shape[3] * q.shape[4]) ** -0.5 if scale is None else scale
    with torch.no_grad(), without_autocast(q):
        queries, keys = _region_means(q, grid) * scale, _region_means(k, grid)  # B, R, h * c
        rows = keys.shape[1] if exporting() else max(1, AFFINITIES // max(1, q.shape[0] * keys.shape[1]))
        parts = [torch.topk(part @ keys.mT, topk, dim=-1).indices for part in queries.split(rows, dim=1)]
        return torch.cat(parts, dim=1)


def padded_size(height: int, width: int, regions: int | tuple[int, int]) -> tuple[int, int]:
    """The smallest sides, not below the given ones, that can be cut into regions."""
    rows, columns = _grid(regions)
    return (height + rows - 1) // rows * rows, (width + columns - 1) // columns * columns


def _region_means(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, H, W, h, c] to [B, R, h * c], in two sums: one over both axes at once measured six times slower on a CPU."""
    precise = torch.promote_types(x.dtype, torch.float32)
    blocks = x.flatten(3).unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1))  # B, rows, H', columns, W', h * c
    total = blocks.sum(4, dtype=precise).sum(2)
    return (total / (blocks.shape[2] * blocks.shape[4])).flatten(1, 2)


def _cut(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, H, W, h, c] to [n, w, h, c], regions and their positions in row-major order."""
    batch, height, width, heads, channels = x.shape
    rows, columns = grid
    high, wide = height // rows, width // columns
    blocks = x.reshape(batch, rows, high, columns, wide, heads, channels).transpose(2, 3)
    return blocks.reshape(batch * rows * columns, high * wide, heads, channels)


def _join(x: Tensor, grid: tuple[int, int], size: torch.Size) -> Tensor:
    """The inverse of :func:`_cut`, to maps of [B, H, W]."""
    batch, height, width = size
    rows, columns = grid
    blocks = x.reshape(batch, rows, columns, height // rows, width // columns, *x.shape[2:]).transpose(2, 3)
    return blocks.reshape(batch, height, width, *x.shape[2:])


def _literal(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, grid: tuple[int, int], scale: float) -> Tensor:
    """As the paper writes it: copies of keys and values for every region, all logits, softmax."""
    precise = torch.promote_types(q.dtype, torch.float32)
    size, dtype = q.shape[:3], v.dtype
    batch, regions = routes.shape[:2]
    with without_autocast(q):
        q, k, v = (_cut(x.to(precise), grid).unflatten(0, (batch, regions)) for x in (q, k, v))  # B, R, w, h, c
        index = routes[:, :, :, None, None, None]

        def gather(x: Tensor) -> Tensor:
            copies = x[:, None].expand(-1, regions, -1, -1, -1, -1)  # B, R, R, w, h, c
            chosen = copies.gather(2, index.expand(-1, -1, -1, *x.shape[2:]))  # B, R, k, w, h, c
            return chosen.flatten(2, 3).transpose(2, 3)  # B, R, h, k * w, c

        logits = (q.transpose(2, 3) * scale) @ gather(k).mT  # B, R, h, w, k * w
        mixed = torch.softmax(logits, dim=-1) @ gather(v)
    return _join(mixed.transpose(2, 3).flatten(0, 1), grid, size).to(dtype)


def _fast(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, grid: tuple[int, int], scale: float, backend: str) -> Tensor:
    size = q.shape[:3]
    batch, regions, topk = routes.shape
    q, k, v = (_cut(x, grid) for x in (q, k, v))
    positions = regions * q.shape[1]
    # An exported graph has one form for all sizes; neither it nor a compiled one is cut into slices.
    if not exporting() and positions <= MASKED_TOKENS and topk * (q.shape[1] + GATHER_COST) >= 2 * positions:
        return _join(_masked(q, k, v, routes, scale, backend), grid, size)
    offsets = regions * torch.arange(batch, device=routes.device)
    rows = (routes + offsets[:, None, None]).flatten(0, 1)  # n, k
    step = 0 if torch.compiler.is_compiling() or exporting() else _step(q, k, v, topk)
    if step:
        # The wish is read here: a backward pass may run in a thread that knows nothing of ``force``.
        mixed = _Sliced.apply(q, k, v, rows, scale, step, wish(backend)[0])
    else:
        mixed = _gathered(q, k, v, rows, scale, backend)
    return _join(mixed, grid, size)


def _step(q: Tensor, k: Tensor, v: Tensor, topk: int) -> int:
    """Regions to serve at a time, 0 for all of them, without computing anything again."""
    if not len(q):
        return 0
    each = topk * (k[0].numel() + v[0].numel())  # elements gathered for one region
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if training and (topk <= KEPT_COPIES or each * len(q) <= KEPT_ELEMENTS):
        return 0
    step = max(1, SLICE_ELEMENTS.get(q.device.type, SLICE_ELEMENTS["cuda"]) // each)
    return step if step < len(q) else 0


def _masked(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, scale: float, backend: str) -> Tensor:
    """Full attention of a small map under a mask: no copies, and no additions of their gradients."""
    (batch, regions, _), width = routes.shape, q.shape[1]
    reads = q.new_full((batch, regions, regions), HIDDEN).scatter(2, routes, 0.0)
    mask = reads[:, :, None, :, None].expand(-1, -1, width, -1, width)  # B, R, w, R, w
    mask = mask.reshape(batch, 1, regions * width, regions * width)
    q, k, v = (x.reshape(batch, regions * width, *x.shape[2:]) for x in (q, k, v))
    return attend(q, k, v, bias=mask, scale=scale, backend=backend)


def _gathered(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, backend: str) -> Tensor:
    """Attention of m regions of queries to the regions that ``rows`` [m, k] names among the n of keys and values."""
    return attend(q, _select(k, rows), _select(v, rows), scale=scale, backend=backend)


def _select(x: Tensor, rows: Tensor) -> Tensor:
    """[n, w, h, c] to [m, k * w, h, c]."""
    chosen = x.flatten(1).index_select(0, rows.flatten())
    return chosen.view(rows.shape[0], rows.shape[1] * x.shape[1], *x.shape[2:])


class _Sliced(torch.autograd.Function):
    """:func:`_gathered` for a slice of regions at a time; the backward pass computes each slice again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, step: int, backend: str
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, rows)
        ctx.options = scale, step, backend
        parts = zip(q.split(step), rows.split(step), strict=True)
        return torch.cat([_gathered(part, k, v, chosen, scale, backend) for part, chosen in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows = ctx.saved_tensors
        scale, step, backend = ctx.options
        precise = torch.promote_types(q.dtype, torch.float32)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=precise) for x in (k, v))
        parts = zip(q.split(step), rows.split(step), grad.split(step), grad_q.split(step), strict=True)
        with without_autocast(q):
            for part, chosen, grad_part, out in parts:
                leaves = [x.detach().requires_grad_() for x in (part, _select(k, chosen), _select(v, chosen))]
                with torch.enable_grad():
                    mixed = attend(*leaves, scale=scale, backend=backend)
                found = torch.autograd.grad(mixed, leaves, grad_part)
                out.copy_(found[0])
                for total, addend in zip((grad_k, grad_v), found[1:], strict=True):
                    pieces = addend.reshape(chosen.numel(), -1).to(precise)
                    total.flatten(1).index_add_(0, chosen.flatten(), pieces)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _grid(regions: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = (regions, regions) if isinstance(regions, int) else regions
    if rows < 1 or columns < 1:
        raise ConfigError(f"regions={regions} must be at least 1 on both sides")
    return rows, columns


def _check(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], topk: int) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 5:
            raise ShapeError(f"{name}: expected [batch, height, width, heads, channels], got {list(tensor.shape)}")
    if k.shape != q.shape:
        raise ShapeError(f"k: expected {list(q.shape)} as q, got {list(k.shape)}")
    if v.shape[:4] != q.shape[:4]:
        expected = ", ".join([*map(str, q.shape[:4]), "channels"])
        raise ShapeError(f"v: expected [{expected}] to fit q {list(q.shape)}, got {list(v.shape)}")
    (height, width), (rows, columns) = q.shape[1:3], grid
    if not 1 <= topk <= rows * columns:
        raise ConfigError(f"topk={topk} must be between 1 and the {rows * columns} regions of {rows} x {columns}")
    if exporting():  # sizes may be unknown
        return
    if height < 1 or width < 1:
        raise ShapeError(f"q: a map needs at least one position, got {list(q.shape)}")
    if height % rows or width % columns:
        padded = " x ".join(map(str, padded_size(height, width, grid)))
        raise ShapeError(
            f"q: a map of {height} x {width} cannot be cut into {rows} x {columns} equal regions",
            mend=f"Pad it to {padded}",
        )


def _check_routes(routes: Tensor, shape: tuple[int, int, int]) -> None:
    if tuple(routes.shape) != shape or routes.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"routes: expected integers {list(shape)}, got {routes.dtype} {list(routes.shape)}")
    if torch.compiler.is_compiling() or exporting() or routes.device.type == "meta" or not routes.numel():
        return
    ordered = routes.sort(dim=-1).values
    if int(ordered[..., 0].min()) < 0 or int(ordered[..., -1].max()) >= shape[1]:
        raise ConfigError(f"routes must name regions from 0 to {shape[1] - 1}")
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ConfigError("routes must name different regions in every row")
