"""Noise of sensors."""

from __future__ import annotations

import numpy as np

from datamodules.superres.degradations.base import Degradation, Pixels, drawn
from datamodules.superres.degradations.config import GaussianNoiseConfig

LEVELS = 255


class GaussianNoise(Degradation):
    """Independent noise on every value; neither rounded nor cut, as denoising papers measure it.

    Args:
        config: Deviation.
    """

    def __init__(self, config: GaussianNoiseConfig) -> None:
        super().__init__(config)
        self.sigma, self.sigma_max = config.sigma, config.sigma_max

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C], may leave 0 to 1."""
        return noisy(image, drawn(random, self.sigma, self.sigma_max), random)


def noisy(image: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    """An image with Gaussian noise.

    Args:
        image: [H, W, C].
        sigma: Deviation in levels of 255; 0 draws nothing.
        random: Where the noise is drawn from.
    """
    if not sigma:
        return image
    noise = random.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(sigma / LEVELS)
    noise += image
    return noise
