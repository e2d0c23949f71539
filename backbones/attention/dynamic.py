"""Dynamic convolution: a depth-wise convolution whose kernel is another one at every position.

    out[b, c, p] = sum_t kernels[b, g(c), t, p] x[b, c, p + t]      t over a window of k x k around 0, zeros outside

Source: Li et al. 2023, "DLGSANet", section 3.2 (MHDLSA); the operator is the involution of Li et al. 2021.

Two forms of the same sum:

- ``math``: every window side by side (unfolded) and weighted, k * k times the map in memory and more for gradients;
- ``fast``: a few positions at a time, whose windows are views of the padded map, so that no window is ever copied.
  The backward pass goes the same way and keeps its inputs alone.

Kernels are k * k / (C / G) times the map themselves. :func:`projected_dynamic_convolution` therefore takes what they
are projected from: its fast form makes the kernels of a few positions, uses them and forgets them, in both passes.

Shape legend: B batch, C channels, G groups, e channels of a group (C = G * e), k side of a kernel, H x W map,
F features that kernels are projected from; b samples and n rows that are taken at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.attention.attend import without_autocast
from backbones.attention.dispatch import eager, exporting, resolve_form
from graftwork.errors import ConfigError, ShapeError

NUMBERS = {"cpu": 1 << 20}
"""Numbers of the kernels that the fast form takes at once, by device; measured: they should stay in a CPU's cache."""
UNBOUNDED = 1 << 28
"""The same on other devices, where many small steps cost more than memory traffic."""


def dynamic_convolution(x: Tensor, kernels: Tensor, *, backend: str = "auto") -> Tensor:
    """Weight the window around every position by a kernel of that position.

    Args:
        x: Map, [B, C, H, W]; outside of it are zeros.
        kernels: [B, G, k, k, H, W] with k odd, rows of the kernel first; C is a multiple of G, and C / G channels that
            follow each other share a kernel.
        backend: ``math`` for windows side by side.

    Returns:
        [B, C, H, W] in the type of the map. Sums and gradients are made in float32 for half types.

    Raises:
        ShapeError: Tensors that do not fit each other, or an even k; the message names both shapes.
        ConfigError: Unknown backend.

    Source: Li et al. 2023, section 3.2, without the projections around it.
    """
    _check_map(x)
    _check_kernels(x, kernels)
    form = _form(backend)
    with without_autocast(x):
        if form == "fast":
            mixed: Tensor = _Streamed.apply(x, kernels, None, kernels.shape[2])
        else:
            dtype = _precise(x, kernels)
            mixed = (_side_by_side if form == "math" else _by_rows)(x.to(dtype), kernels.to(dtype))
    return mixed.to(x.dtype)


def projected_dynamic_convolution(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None = None, *, kernel: int, backend: str = "auto"
) -> Tensor:
    """:func:`dynamic_convolution` by kernels that a 1x1 convolution makes, which the fast form never holds together.

    Args:
        x: Map, [B, C, H, W]; outside of it are zeros.
        features: What the kernels are projected from, [B, F, H, W].
        weight: Of the convolution, [G * k * k, F] or [G * k * k, F, 1, 1]; the numbers of a group follow each other,
            rows of the kernel first.
        bias: [G * k * k].
        kernel: k, odd.
        backend: ``math`` for all kernels, and then all windows side by side.

    Returns:
        [B, C, H, W] in the type of the map. Kernels, sums and gradients are made in float32 for half types, also under
        autocast.

    Raises:
        ShapeError: Tensors that do not fit each other or k; the message names both.
        ConfigError: Unknown backend, or a k that is even or below 1.
    """
    _check_map(x)
    _check_projection(x, features, weight, bias, kernel)
    form, dtype = _form(backend), _precise(x, features, weight)
    matrix = weight.flatten(1).to(dtype)
    with without_autocast(x):
        if bias is not None:
            # As the weight of one more feature that is 1 everywhere the bias takes no pass over the kernels.
            features = F.pad(features, (0, 0, 0, 0, 0, 1), value=1.0)
            matrix = torch.cat([matrix, bias[:, None].to(dtype)], 1)
        if form == "fast":
            mixed: Tensor = _Streamed.apply(x, features, matrix, kernel)
        else:
            kernels = _project(features.to(dtype), matrix, kernel)
            mixed = (_side_by_side if form == "math" else _by_rows)(x.to(dtype), kernels)
    return mixed.to(x.dtype)


def _form(backend: str) -> str:
    """``math``, ``fast``, or ``traced`` for a graph, to which the fast form's blocks would be thousands of steps."""
    form = resolve_form("dynamic_convolution", backend)
    return "traced" if form == "fast" and (exporting() or not eager()) else form


def _side_by_side(x: Tensor, kernels: Tensor) -> Tensor:
    """The formula on unfolded windows."""
    groups, side = kernels.shape[1:3]
    windows = F.unfold(x, side, padding=side // 2).unflatten(2, x.shape[2:])  # B, C k k, H, W
    windows = windows.unflatten(1, (groups, x.shape[1] // groups, side * side))  # B, G, e, k k, H, W
    return (windows * kernels.flatten(2, 3).unsqueeze(2)).sum(3).flatten(1, 2)


def _by_rows(x: Tensor, kernels: Tensor) -> Tensor:
    """The sum a row of the kernel at a time, from k copies of the map: few steps, none of them in place."""
    (groups, side), (height, width) = kernels.shape[1:3], x.shape[2:]
    padded = F.pad(x, (side // 2,) * 4).unflatten(1, (groups, x.shape[1] // groups))
    shifted = torch.stack([padded.narrow(4, column, width) for column in range(side)], 3)  # B, G, e, k, H + k - 1, W
    mixed = torch.zeros((), dtype=x.dtype, device=x.device)
    for row in range(side):
        mixed = mixed + (shifted.narrow(4, row, height) * kernels[:, :, row].unsqueeze(2)).sum(3)
    return mixed.flatten(1, 2)


def _project(features: Tensor, weight: Tensor, side: int) -> Tensor:
    """Kernels [B, G, k, k, H, W] of features [B, F, H, W], positions last in memory whatever the features' order."""
    kernels = weight @ features.flatten(2)  # B, G k k, H W
    return kernels.unflatten(2, features.shape[2:]).unflatten(1, (weight.shape[0] // side**2, side, side))


class _Streamed(torch.autograd.Function):
    """The fast form, some positions at a time; saves its inputs only.

    ``source`` holds the kernels, or where ``weight`` is given the features that they are projected from; the type of
    ``weight`` is then that of all sums.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, weight: Tensor | None, side: int) -> Tensor:
        ctx.save_for_backward(x, source, weight)
        ctx.side = side
        block = _Block(x, source, weight, side)
        padded = block.grouped(_padded(x, side, block.dtype))
        mixed = block.grouped(torch.zeros(x.shape, dtype=block.dtype, device=x.device))
        for part, rows in block.parts():
            _accumulate(_windows(padded[part], rows, side), block.kernels(part, rows), mixed[part][..., rows, :])
        return mixed.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, source, weight = ctx.saved_tensors
        with without_autocast(x):
            return _gradients(_Block(x, source, weight, ctx.side), gradient, ctx.needs_input_grad)


class _Block:
    """The inputs of a call, cut into parts."""

    def __init__(self, x: Tensor, source: Tensor, weight: Tensor | None, side: int) -> None:
        self.x, self.source, self.side = x, source, side
        self.weight, self.dtype = weight, _precise(x, source) if weight is None else weight.dtype
        self.groups = source.shape[1] if weight is None else weight.shape[0] // side**2

    def grouped(self, tensor: Tensor) -> Tensor:
        """[B, C, ...] to [B, G, e, ...]."""
        return tensor.unflatten(1, (self.groups, self.x.shape[1] // self.groups))

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Samples and rows to be taken at once: some samples whole, or some rows of one."""
        samples, channels, height, width = self.x.shape
        if 0 in (samples, channels, height, width):
            return
        numbers = NUMBERS.get(self.x.device.type, UNBOUNDED)
        step = max(1, numbers // (self.groups * self.side**2 * width))  # rows
        for first in range(0, samples, max(1, step // height)):
            for row in range(0, height, step):
                yield slice(first, first + max(1, step // height)), slice(row, min(row + step, height))

    def rows_of(self, part: slice, rows: slice) -> Tensor:
        """The source of a part, columns last in memory."""
        source = self.source[part][..., rows, :].to(self.dtype)
        return source if source.stride(-1) == 1 else source.contiguous()

    def kernels(self, part: slice, rows: slice) -> Tensor:
        """Kernels of a part, [b, G, k, k, n, W]."""
        source = self.rows_of(part, rows)
        return source if self.weight is None else _project(source, self.weight, self.side)


def _surrounded(x: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Zeros for a map and what windows see around it, positions last in memory: [B, C, H + k - 1, W + k - 1]."""
    height, width = x.shape[2:]
    return torch.zeros(*x.shape[:2], height + side - 1, width + side - 1, dtype=dtype, device=x.device)


def _padded(x: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """The map with zeros around it."""
    padded = _surrounded(x, side, dtype)
    _inner(padded, side).copy_(x)
    return padded


def _inner(padded: Tensor, side: int) -> Tensor:
    """The map inside of :func:`_padded`, a view."""
    margin = side // 2
    height, width = padded.shape[-2] - 2 * margin, padded.shape[-1] - 2 * margin
    return padded.narrow(-2, margin, height).narrow(-1, margin, width)


def _windows(padded: Tensor, rows: slice, side: int) -> Tensor:
    """Windows around all positions of some rows, a view: [b, G, e, H + k - 1, W + k - 1] to [b, G, e, k, k, n, W]."""
    height, width = rows.stop - rows.start, padded.shape[-1] - side + 1
    return padded[..., rows.start : rows.stop + side - 1, :].unfold(-2, height, 1).unfold(-2, width, 1)


def _offsets(tensor: Tensor, axis: int) -> Iterator[Tensor]:
    """The views for every place in the kernel, whose two axes begin at ``axis``."""
    for row in tensor.unbind(axis):
        yield from row.unbind(axis)


def _accumulate(windows: Tensor, kernels: Tensor, mixed: Tensor) -> None:
    """Add weighted windows into ``mixed`` [b, G, e, n, W]."""
    for shifted, weights in zip(_offsets(windows, 3), _offsets(kernels.unsqueeze(2), 3), strict=True):
        mixed.addcmul_(shifted, weights)


def _spread(gradient: Tensor, kernels: Tensor, windows: Tensor) -> None:
    """Add what a part of the sums gives back into the windows of the map's gradient."""
    for shifted, weights in zip(_offsets(windows, 3), _offsets(kernels.unsqueeze(2), 3), strict=True):
        shifted.addcmul_(gradient, weights)


def _kernel_gradient(gradient: Tensor, windows: Tensor) -> Tensor:
    """The gradient of a part's kernels: products summed over the channels of a group, [b, G, k, k, n, W].

    A row of the kernel at a time, so that the sums stay in a CPU's cache while channels are added.
    """
    total = gradient.new_empty(*windows.shape[:2], *windows.shape[3:])
    outer, *outers = gradient.unsqueeze(3).unbind(2)  # b, G, 1, n, W
    for row, sums in zip(windows.unbind(3), total.unbind(2), strict=True):
        shifted, *others = row.unbind(2)  # b, G, k, n, W
        torch.mul(shifted, outer, out=sums)
        for other, its_outer in zip(others, outers, strict=True):
            sums.addcmul_(other, its_outer)
    return total


def _gradients(block: _Block, gradient: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of map, source and weight, those that are needed, and None for the side."""
    x, source, weight, side = block.x, block.source, block.weight, block.side
    padded = block.grouped(_padded(x, side, block.dtype)) if any(needed[1:]) else None
    grad_padded = block.grouped(_surrounded(x, side, block.dtype)) if needed[0] else None
    grad_source = torch.zeros(source.shape, dtype=source.dtype, device=source.device) if needed[1] else None
    grad_weight = torch.zeros_like(weight) if weight is not None and needed[2] else None
    for part, rows in block.parts():
        outer = block.grouped(gradient[part, :, rows].to(block.dtype).contiguous())
        if grad_padded is not None:
            _spread(outer, block.kernels(part, rows), _windows(grad_padded[part], rows, side))
        if padded is None:
            continue
        by_source = _kernel_gradient(outer, _windows(padded[part], rows, side))
        if weight is not None:
            by_kernel, size = by_source.flatten(4).flatten(1, 3), by_source.shape[-2:]  # b, G k k, n W
            if grad_weight is not None:
                grad_weight += (by_kernel @ block.rows_of(part, rows).flatten(2).mT).sum(0)
            by_source = (weight.mT @ by_kernel).unflatten(2, size)
        if grad_source is not None:
            grad_source[part][..., rows, :] = by_source
    grad_x = None if grad_padded is None else _inner(grad_padded, side).flatten(1, 2).to(x.dtype)
    return grad_x, grad_source, grad_weight, None


def _precise(*tensors: Tensor) -> torch.dtype:
    """The common type, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _check_map(x: Tensor) -> None:
    if x.dim() != 4:
        raise ShapeError(f"x: expected [batch, channels, height, width], got {list(x.shape)}")


def _check_kernels(x: Tensor, kernels: Tensor) -> None:
    batch, channels, height, width = x.shape
    shape = list(kernels.shape)
    if kernels.dim() != 6 or shape[2] != shape[3] or shape[2] % 2 == 0:
        raise ShapeError(f"kernels: expected [batch, groups, k, k, height, width] with k odd, got {shape}")
    if [shape[0], *shape[4:]] != [batch, height, width]:
        expected = [batch, shape[1], *shape[2:4], height, width]
        raise ShapeError(f"kernels: expected {expected} to fit x {list(x.shape)}, got {shape}")
    if shape[1] < 1 or channels % shape[1]:
        raise ShapeError(f"kernels: {shape[1]} groups do not divide {channels} channels of x {list(x.shape)}")


def _check_projection(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel={kernel} must be odd and at least 1; try kernel={max(1, kernel + 1)}")
    batch, channels, height, width = x.shape
    if features.dim() != 4 or [features.shape[0], *features.shape[2:]] != [batch, height, width]:
        expected = f"[{batch}, features, {height}, {width}]"
        raise ShapeError(f"features: expected {expected} to fit x {list(x.shape)}, got {list(features.shape)}")
    inputs = features.shape[1]
    if weight.dim() not in (2, 4) or weight.shape[1] != inputs or weight.shape[2:].numel() != 1:
        raise ShapeError(
            f"weight: expected [groups * {kernel**2}, {inputs}] or the same with [1, 1] for features "
            f"{list(features.shape)}, got {list(weight.shape)}"
        )
    outputs = weight.shape[0]
    groups, rest = divmod(outputs, kernel**2)
    if rest or groups < 1 or channels % groups:
        raise ShapeError(
            f"weight: expected [groups * {kernel**2}, ...] with groups that divide {channels} channels, "
            f"got {list(weight.shape)}"
        )
    if bias is not None and list(bias.shape) != [outputs]:
        raise ShapeError(f"bias: expected [{outputs}] to fit weight {list(weight.shape)}, got {list(bias.shape)}")
