"""Padding of images whose sides a network cannot take as they are.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

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
