"""What a restoration model must know of its images. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Sizes of the task.

    Args:
        scale: Output pixels per input pixel and side; 1 restores at the same size.
        channels: Channels of the images: 3 for RGB, 1 for grey or a mosaic.
    """

    scale: int
    channels: int = 3
