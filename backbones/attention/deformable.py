"""Deformable attention: every query reads a few bilinear samples, at locations and with weights of its own.

Source: Zhu et al. 2021, "Deformable DETR", section 4.1, equation 3. A value lies at the centre of its cell, the cell
of column j of W spans [j / W, (j + 1) / W], and outside the map there are zeros.

Two forms of the same sum:

- ``math``: samples of all levels side by side, then their weighted sum; what is read is held in memory, 4 to 16 times
  the values, and as much again for its gradient.
- ``fast``: a level at a time, the four cells around each point go straight into the sum with one weight each. Nothing
  of the size of the samples exists, and the backward pass makes the weights anew.

Shape legend: B batch, Q queries, h heads, e channels of a head, L levels, P points, S cells of all levels, N = B Q h
sums ("bags") of an output channel's worth each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.attention.dispatch import exporting, resolve_form
from graftwork.errors import ShapeError

POINTS = {"cpu": 1 << 15}
"""Points that the fast form takes at once, by device; measured: what belongs to them should stay in a CPU's cache."""
NUMBERS = {"cpu": 1 << 18}
"""Numbers that its backward pass reads at once, likewise."""
UNBOUNDED = 1 << 26
"""Both on other devices, where many small steps cost more than memory traffic."""


def deformable_attention(
    values: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Sum bilinear samples of several maps.

    Args:
        values: Cells of all levels, row-major and one level after the other, [B, S, h, e].
        shapes: Height and width of each level, in cells; their areas add up to S.
        locations: Where to sample, (x, y) as shares of the width and height, [B, Q, h, L, P, 2]; 0 is the left or
            upper border and 1 the right or lower one. Anything outside reads zeros, as far as its cell is outside.
        weights: Weight of each sample, after the softmax over levels and points, [B, Q, h, L, P].
        backend: ``"auto"``, or ``"math"`` for samples held side by side.

    Returns:
        [B, Q, h, e] in the type of the values. Sums and gradients are made in float32 for half types. The gradient
        with respect to the locations is that of the piecewise bilinear surface, one-sided on its creases.

    Raises:
        ShapeError: Tensors that do not fit each other or ``shapes``; the message names both shapes.

    Source: Zhu et al. 2021, equation 3 (the projections around it are the caller's).
    """
    shapes = tuple((int(height), int(width)) for height, width in shapes)
    _check(values, shapes, locations, weights)
    literal = resolve_form("deformable_attention", backend) == "math" or exporting()
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        inputs = (values.to(dtype), locations.to(dtype), weights.to(dtype))
        mixed: Tensor = _side_by_side(*inputs, shapes) if literal else _Streamed.apply(*inputs, shapes)
    return mixed.to(values.dtype)


def deformable_sampling(values: Tensor, locations: Tensor, weights: Tensor, *, backend: str = "auto") -> Tensor:
    """Deformable attention on a single map.

    Args:
        values: Map, [B, height, width, h, e].
        locations: (x, y) as shares of the width and height, [B, Q, h, P, 2].
        weights: [B, Q, h, P].
        backend: See :func:`deformable_attention`.

    Returns:
        [B, Q, h, e].

    Raises:
        ShapeError: Tensors that do not fit each other; the message names both shapes.
    """
    if values.dim() != 5:
        raise ShapeError(f"values: expected [batch, height, width, heads, channels], got {list(values.shape)}")
    shapes = [(values.shape[1], values.shape[2])]
    return deformable_attention(
        values.flatten(1, 2), shapes, locations.unsqueeze(-3), weights.unsqueeze(-2), backend=backend
    )


def _side_by_side(values: Tensor, locations: Tensor, weights: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """The formula, with torch's own sampling."""
    batch, _, heads, channels = values.shape
    samples = []
    for level, (cells, (height, width)) in enumerate(zip(_levels(values, shapes), shapes, strict=True)):
        image = cells.permute(2, 0, 3, 1).reshape(heads * batch, channels, height, width)
        grid = _head_by_head(2 * locations[:, :, :, level] - 1)  # h B, Q, P, 2
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    side_by_side = torch.stack(samples, dim=-2)  # h B, e, Q, L, P
    mixed = (side_by_side * _head_by_head(weights).unsqueeze(1)).flatten(-2).sum(-1)  # h B, e, Q
    return mixed.unflatten(0, (heads, batch)).permute(1, 3, 0, 2)


def _head_by_head(x: Tensor) -> Tensor:
    """[B, Q, h, ...] -> [h B, Q, ...]; unlike a transposition it traces for any number of queries."""
    return torch.cat(x.unbind(2))


def _levels(values: Tensor, shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    return values.split([height * width for height, width in shapes], dim=1)


class _Axis(NamedTuple):
    """The two cells around each point along one axis, the nearer to zero first, all [2, N, P].

    Attributes:
        cells: Their coordinates; zero where outside.
        shares: Their shares in the sample; zero where outside.
        slopes: Derivatives of the shares by the coordinate in cells.
    """

    cells: Tensor
    shares: Tensor
    slopes: Tensor


def _axis(location: Tensor, size: int) -> _Axis:
    """Cells around points at ``location`` [N, P] on an axis of ``size`` cells."""
    position = (location * size).sub_(0.5)
    position.nan_to_num_(nan=-2.0).clamp_(-2, size + 1)  # what is no number, or far away, is outside
    near = position.floor()
    fraction = position.sub_(near)
    cells = near.long()
    cells = torch.stack([cells, cells + 1])
    inside = ((cells >= 0) & (cells < size)).to(location.dtype)
    shares = torch.stack([1 - fraction, fraction]).mul_(inside)
    inside[0].neg_()
    return _Axis(cells.clamp_(0, size - 1), shares, inside)


class _Block(NamedTuple):
    """What the sums of some queries read from one level.

    Attributes:
        x: Columns around the points.
        y: Rows around the points.
        weights: Attention weights, [N, P].
        cells: The four cells around each point, as rows of the values seen as [B S h, e], [N, 4 P].
        products: Their weights in the sum, [N, 4 P].
    """

    x: _Axis
    y: _Axis
    weights: Tensor
    cells: Tensor
    products: Tensor


def _block(values: Tensor, locations: Tensor, weights: Tensor, size: tuple[int, int], first: int) -> _Block:
    """Read a level of ``size`` cells, the first of which is number ``first`` of the values; [B, q, h, P] points."""
    batch, cells, heads, _ = values.shape
    x, y = (_axis(locations[..., axis].flatten(0, 2), size[1 - axis]) for axis in (0, 1))
    weights = weights.flatten(0, 2)
    sample, head = (torch.arange(number, device=values.device) for number in (batch, heads))
    base = ((sample * cells + first) * heads)[:, None, None] + head  # B, 1, h
    base = base.expand(-1, locations.shape[1], -1).reshape(-1, 1)  # N, 1
    rows = (y.cells * (size[1] * heads)).add_(base)[:, None] + x.cells.mul(heads)  # 2, 2, N, P
    products = (y.shares * weights)[:, None] * x.shares
    return _Block(x, y, weights, _bag_first(rows), _bag_first(products))


def _bag_first(corners: Tensor) -> Tensor:
    """[2, 2, N, P] -> [N, 4 P]."""
    return corners.permute(2, 0, 1, 3).flatten(1)


class _Streamed(torch.autograd.Function):
    """The fast form, some queries and one level at a time; saves its inputs only."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, locations: Tensor, weights: Tensor, shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        ctx.save_for_backward(values, locations, weights)
        ctx.shapes = shapes
        rows = values.flatten(0, 2)
        mixed = values.new_zeros(*locations.shape[:3], values.shape[-1])
        for part, level, first in _parts(values, locations, shapes):
            block = _block(values, locations[:, part, :, level], weights[:, part, :, level], shapes[level], first)
            sums = F.embedding_bag(block.cells, rows, mode="sum", per_sample_weights=block.products)
            mixed[:, part] += sums.view_as(mixed[:, part])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, locations, weights = ctx.saved_tensors
        grad_values = torch.zeros_like(values, memory_format=torch.contiguous_format)
        grad_locations, grad_weights = torch.zeros_like(locations), torch.zeros_like(weights)
        for part, level, first in _parts(values, locations, ctx.shapes):
            size = ctx.shapes[level]
            block = _block(values, locations[:, part, :, level], weights[:, part, :, level], size, first)
            by_weight, by_location = _block_gradients(block, gradient[:, part].flatten(0, 2), values, grad_values, size)
            grad_weights[:, part, :, level] = by_weight.view_as(grad_weights[:, part, :, level])
            grad_locations[:, part, :, level] = by_location.view_as(grad_locations[:, part, :, level])
        return grad_values, grad_locations, grad_weights, None


def _parts(values: Tensor, locations: Tensor, shapes: tuple[tuple[int, int], ...]) -> Iterator[tuple[slice, int, int]]:
    """Queries to be taken at once, a level, and the number of its first cell among the values."""
    if 0 in locations.shape or 0 in values.shape:
        return
    batch, queries, heads, _, points, _ = locations.shape
    step = max(1, POINTS.get(values.device.type, UNBOUNDED) // (batch * heads * points))
    for start in range(0, queries, step):
        first = 0
        for level, (height, width) in enumerate(shapes):
            yield slice(start, start + step), level, first
            first += height * width


def _block_gradients(
    block: _Block, gradient: Tensor, values: Tensor, grad_values: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the values into ``grad_values``; return those of the weights and locations.

    Args:
        block: What the sums read.
        gradient: Gradient of the sums, [N, e].
        values: [B, S, h, e].
        grad_values: Like the values, changed in place.
        size: Height and width of the level.

    Returns:
        [N, P] and [N, P, 2].
    """
    x, y, weights = block.x, block.y, block.weights
    dots = _spread(block, gradient, values.flatten(0, 2), grad_values.flatten(0, 2))
    dots = dots.view(-1, 2, 2, weights.shape[1]).permute(1, 2, 0, 3).contiguous()  # 2, 2, N, P
    rows, by_x = (dots * x.shares).sum(1), (dots * x.slopes).sum(1)  # 2, N, P: one number for each row of cells
    by_weight, by_y = (rows * y.shares).sum(0), (rows * y.slopes).sum(0)
    by_x = (by_x * y.shares).sum(0)
    return by_weight, torch.stack([by_x * weights * size[1], by_y * weights * size[0]], dim=-1)


def _spread(block: _Block, gradient: Tensor, rows: Tensor, grad_rows: Tensor) -> Tensor:
    """Add the gradient of the cells into ``grad_rows`` [B S h, e]; return that of the products, [N, 4 P]."""
    dots = torch.empty_like(block.products)
    step = max(1, NUMBERS.get(rows.device.type, UNBOUNDED) // (dots.shape[1] * rows.shape[1]))
    for cells, products, out, vector in zip(
        *(tensor.split(step) for tensor in (block.cells, block.products, dots, gradient[:, None])), strict=True
    ):
        grad_rows.index_add_(0, cells.flatten(), (products[..., None] * vector).flatten(0, 1))
        samples = rows.index_select(0, cells.flatten()).unflatten(0, cells.shape)  # n, 4 P, e
        torch.bmm(vector, samples.mT, out=out.unsqueeze(1))
    return dots


def _check(values: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> None:
    if values.dim() != 4 or locations.dim() != 6:
        expected = "values [batch, cells, heads, channels] and locations [batch, queries, heads, levels, points, 2]"
        raise ShapeError(f"deformable attention: expected {expected}, got {[*values.shape]} and {[*locations.shape]}")
    cells = sum(height * width for height, width in shapes)
    if values.shape[1] != cells:
        raise ShapeError(f"values: expected {cells} cells for levels {list(shapes)}, got {[*values.shape]}")
    batch, _, heads, _ = values.shape
    _, queries, _, _, points, _ = locations.shape
    expected_locations = [batch, queries, heads, len(shapes), points, 2]
    if list(locations.shape) != expected_locations:
        raise ShapeError(f"locations: expected {expected_locations} to fit values and levels, got {[*locations.shape]}")
    if weights.shape != locations.shape[:-1]:
        raise ShapeError(f"weights: expected {[*locations.shape[:-1]]} to fit locations, got {[*weights.shape]}")
