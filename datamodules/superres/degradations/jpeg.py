"""Compression by JPEG, in memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from datamodules.superres.bicubic import LEVELS
from datamodules.superres.degradations.base import Degradation, Pixels
from datamodules.superres.degradations.config import JpegConfig
from graftwork.errors import ShapeError

_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


class Jpeg(Degradation):
    """What libjpeg makes of an image.

    Args:
        config: Quality and subsampling.
    """

    def __init__(self, config: JpegConfig) -> None:
        super().__init__(config)
        self.quality, self.quality_max = config.quality, config.quality_max
        self.subsampling = _SUBSAMPLING[config.subsampling]
        self.grid = 8 if config.subsampling == "4:4:4" else 16  # blocks of subsampled colours are twice as large
        self.margin = self.grid  # smooth upsampling of colours looks into the neighbouring block

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C] in steps of 1/255."""
        quality = self.quality
        if self.quality_max is not None:
            quality = int(random.integers(self.quality, self.quality_max + 1))
        return compressed(image, quality, self.subsampling)


def compressed(image: Pixels, quality: int, subsampling: int = 0) -> Pixels:
    """An image after JPEG.

    Args:
        image: [H, W, 3] or [H, W, 1] from 0 to 1.
        quality: 1 to 100.
        subsampling: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.

    Raises:
        ShapeError: JPEG knows no such number of channels.
    """
    if image.shape[2] not in (1, 3):
        raise ShapeError(f"JPEG takes 1 or 3 channels, got {image.shape[2]}")
    values = np.rint(np.clip(image, 0, 1) * LEVELS).astype(np.uint8)
    stream = io.BytesIO()
    plain = values[..., 0] if image.shape[2] == 1 else values
    Image.fromarray(plain).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    decoded = np.asarray(Image.open(stream), dtype=np.float32).reshape(image.shape)
    return decoded / np.float32(LEVELS)
