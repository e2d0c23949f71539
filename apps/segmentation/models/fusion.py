"""A convolution over levels that are resized to one size and joined, computed where each level is small.

Both a convolution and resizing are linear, so the convolution over joined levels is a sum over levels. One
with a kernel of 1 mixes channels only and changes places with resizing: the level is mixed at its own resolution. A
larger kernel is a sum over its taps, each a kernel of 1 on the resized level moved by a position, so the taps are mixed
at the level's own resolution, too, and resized, moved and summed by two small matrices, one per axis. Beyond the border
of the resized level are zeros, which the matrices hold. Values and gradients are those of the literal form.

For a level of a quarter of the positions mixing takes a quarter of the multiply-adds; the matrices take some that do
not depend on its channels. Where these are more than what is saved, the level is resized and convolved.

Shape legend: B batch, C channels of a level, F filters, k kernel, h x w level, H x W result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.dispatch import eager

Size = tuple[int, int]
Mode = Literal["bilinear", "bicubic"]

MATRIX_COST = 2
"""What a multiply-add of the matrices that resize costs, in those of convolutions; measured on a CPU."""


def resized(level: Tensor, size: Size, align_corners: bool = False, mode: Mode = "bilinear") -> Tensor:
    """A level resized, [B, C, h, w] to [B, C, *size]; itself where it has that size."""
    if level.shape[-2:] == tuple(size):
        return level
    return F.interpolate(level, size=size, mode=mode, align_corners=align_corners)


def fuse(
    levels: Sequence[Tensor],
    weight: Tensor,
    size: Size,
    *,
    align_corners: bool = False,
    mode: Mode = "bilinear",
    literal: bool = False,
) -> Tensor:
    """Convolve levels that are resized to one size and joined along their channels.

    Args:
        levels: Maps, [B, C_i, h_i, w_i].
        weight: Filters over all channels in the order of the levels, [F, sum of C_i, k, k], k odd.
        size: Height and width of the result.
        align_corners: See :func:`torch.nn.functional.interpolate`.
        mode: How levels are resized.
        literal: Resize, join and convolve as it says.

    Returns:
        [B, F, *size], padded with zeros as ``padding=k // 2`` does it; without a bias.
    """
    padding = weight.shape[-1] // 2
    if literal:
        joined = torch.cat([resized(level, size, align_corners, mode) for level in levels], dim=1)
        return F.conv2d(joined, weight, padding=padding)
    filters = weight.split([level.shape[1] for level in levels], dim=1)
    parts = [_level(level, own, size, align_corners, mode) for level, own in zip(levels, filters, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _level(level: Tensor, weight: Tensor, size: Size, align_corners: bool, mode: Mode) -> Tensor:
    """The share of one level."""
    if level.shape[-2:] == tuple(size):
        return F.conv2d(level, weight, padding=weight.shape[-1] // 2)
    if weight.shape[-1] == 1:
        return resized(F.conv2d(level, weight), size, align_corners, mode)
    if mode == "bilinear" and _pays(level, weight, size):
        return _by_taps(level, weight, size, align_corners)
    return F.conv2d(resized(level, size, align_corners, mode), weight, padding=weight.shape[-1] // 2)


def _pays(level: Tensor, weight: Tensor, size: Size) -> bool:
    """Whether taps take fewer multiply-adds per filter; they do not for few channels on long axes."""
    if not eager():
        return True  # a graph may be for many sizes
    channels, kernel = weight.shape[1], weight.shape[-1]
    (height, width), (rows, columns) = level.shape[-2:], size
    literal = kernel**2 * channels * rows * columns
    mixing = kernel**2 * channels * height * width
    matrices = kernel**2 * height * width * columns + kernel * height * rows * columns
    return mixing + MATRIX_COST * matrices < literal


def _by_taps(level: Tensor, weight: Tensor, size: Size, align_corners: bool) -> Tensor:
    filters, channels, kernel, _ = weight.shape
    taps = weight.permute(2, 3, 0, 1).reshape(kernel * kernel * filters, channels, 1, 1)
    mixed = F.conv2d(level, taps).unflatten(1, (kernel, kernel, filters))  # B, ky, kx, F, h, w
    across = _moved(level, level.shape[-1], size[1], kernel, align_corners)  # kx * w, W
    down = _moved(level, level.shape[-2], size[0], kernel, align_corners)  # ky * h, H
    rows = mixed.permute(0, 3, 1, 4, 2, 5).flatten(4) @ across  # B, F, ky, h, W
    return down.t() @ rows.flatten(2, 3)  # B, F, H, W


def _moved(like: Tensor, length: int, target: int, kernel: int, align_corners: bool) -> Tensor:
    """Linear resizing of an axis for every tap: [kernel * length, target]; what a tap sees beyond the ends is 0."""
    full = like.dtype if like.dtype == torch.float64 else torch.float32
    unit = torch.eye(length, dtype=full, device=like.device)[None]
    places = F.interpolate(unit, size=target, mode="linear", align_corners=align_corners)[0]  # length, target
    padding = kernel // 2
    padded = F.pad(places, (padding, padding))
    return torch.cat([padded[:, tap : tap + target] for tap in range(kernel)]).to(like.dtype)
