"""Rain and haze, drawn.

Shape legend: H, W sides, C channels.
"""

from __future__ import annotations

import numpy as np

from datamodules.superres.bicubic import imresize
from datamodules.superres.degradations.base import Degradation, Pixels, drawn
from datamodules.superres.degradations.blur import convolved, line_kernel
from datamodules.superres.degradations.config import HazeConfig, RainConfig

_CELLS = 4
"""Cells along each side of the grid that the depth of a scene is drawn on."""


class Rain(Degradation):
    """Streaks of one direction, brighter than what they cover; cut to 0..1.

    Args:
        config: Drops and their look.

    Source of the model: an image plus a layer of sparse streaks, as in Zhang and Patel 2018, equation 1.
    """

    def __init__(self, config: RainConfig) -> None:
        super().__init__(config)
        self.density, self.length = config.density, config.length
        self.strength, self.tilt = config.strength, config.tilt

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C]."""
        shape = (*image.shape[:2], 1)
        drops = (random.random(shape, dtype=np.float32) < self.density) * random.random(shape, dtype=np.float32)
        kernel = line_kernel(self.length, 90 + float(random.uniform(-self.tilt, self.tilt)))
        streaks = convolved(drops, kernel / kernel.max())
        return np.clip(image + np.float32(self.strength) * np.minimum(streaks, 1), 0, 1)


class Haze(Degradation):
    """Light that is lost with depth, and the haze's own in its place.

    Args:
        config: Extinction and airlight.

    Source: Koschmieder's law, I = J t + A (1 - t) with t = exp(-beta d); the depth d is a smooth random field.
    """

    def __init__(self, config: HazeConfig) -> None:
        super().__init__(config)
        self.thickness, self.thickness_max, self.airlight = config.thickness, config.thickness_max, config.airlight

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C]."""
        beta = drawn(random, self.thickness, self.thickness_max)
        depth = smooth_field(image.shape[0], image.shape[1], random)[..., None]
        left = np.exp(-np.float32(beta) * depth)
        return image * left + np.float32(self.airlight) * (1 - left)


def smooth_field(height: int, width: int, random: np.random.Generator) -> Pixels:
    """A smooth random field from 0 to 1, [height, width]: far above, near below, with random relief."""
    slope = np.linspace(1, 0, _CELLS)[:, None]
    coarse = slope + random.uniform(-0.5, 0.5, (_CELLS, _CELLS))
    fine = imresize(coarse, (height / _CELLS, width / _CELLS))[:height, :width]
    span = fine.max() - fine.min()
    return ((fine - fine.min()) / max(span, 1e-9)).astype(np.float32)
