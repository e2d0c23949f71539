"""Padding of images whose sides a network cannot take as they are.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Continue images to the right and to the bottom until both sides are multiples.

    Args:
        images: [B, C, H, W], both sides at least 1.
        multiple: What the sides must be multiples of.

    Returns:
        [B, C, H', W'], mirrored without repeating the edge; an axis not longer than its padding has nothing to mirror
        and repeats its last row or column instead.
    """
    height, width = images.shape[-2:]
    return pad_right_bottom(images, -height % multiple, -width % multiple)


def pad_right_bottom(images: Tensor, bottom: int, right: int) -> Tensor:
    """[B, C, H, W] to [B, C, H + bottom, W + right], continued as by :func:`pad_to_multiple`."""
    height, width = images.shape[-2:]
    if bottom:
        images = F.pad(images, (0, 0, 0, bottom), mode="reflect" if bottom < height else "replicate")
    if right:
        images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return images


def before(side: int, multiple: int) -> int:
    """Pixels that :func:`pad_both_sides` puts before a side of this length."""
    return -(side + side % 2) % multiple // 2


def pad_both_sides(images: Tensor, multiple: int) -> Tensor:
    """Continue images to an even size, then half before and half behind, until both sides are multiples.

    Args:
        images: [B, C, H, W], both sides at least 1.
        multiple: What the sides must be multiples of, even.

    Returns:
        [B, C, H', W'], mirrored without repeating the edge, back and forth where the padding is longer than the image;
        a single row or column is repeated.
    """
    for axis in (-2, -1):
        side = images.shape[axis]
        longer = side + -side % multiple
        if longer > side:
            evened = _mirrored(0, side + side % 2, side)  # a mirror image of the evened one, not of the image itself
            positions = _mirrored(-before(side, multiple), longer - before(side, multiple), len(evened))
            index = torch.tensor([evened[position] for position in positions], device=images.device)
            images = images.index_select(axis, index)
    return images


def _mirrored(first: int, end: int, side: int) -> list[int]:
    """Positions from ``first`` to ``end`` folded into a side, as numpy's ``reflect`` has them."""
    period = max(1, 2 * (side - 1))
    return [min(position % period, period - position % period) for position in range(first, end)]
