"""Blur of lenses and of moving cameras.

Shape legend: H, W sides, C channels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from datamodules.superres.banded import BandedMatrix, mirrored
from datamodules.superres.degradations.base import Degradation, Pixels, drawn
from datamodules.superres.degradations.config import GaussianBlurConfig, MotionBlurConfig
from datamodules.superres.degradations.noise import noisy

_REACH = 4.0
"""Deviations after which a Gaussian is cut."""


class GaussianBlur(Degradation):
    """Convolution with a Gaussian; beyond the border the image goes on as in a mirror.

    Args:
        config: Widths and noise.
    """

    def __init__(self, config: GaussianBlurConfig) -> None:
        super().__init__(config)
        self.width, self.width_max, self.sigma = config.width, config.width_max, config.sigma
        self.margin = math.ceil(_REACH * (config.width_max or config.width))

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C]."""
        return noisy(gaussian_blur(image, drawn(random, self.width, self.width_max)), self.sigma, random)


class MotionBlur(Degradation):
    """Mean along a line.

    Args:
        config: Length, direction and noise.
    """

    def __init__(self, config: MotionBlurConfig) -> None:
        super().__init__(config)
        self.length, self.length_max = config.length, config.length_max
        self.angle, self.sigma = config.angle, config.sigma
        self.margin = math.ceil((config.length_max or config.length) / 2) + 1

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C]."""
        length = drawn(random, self.length, self.length_max)
        angle = float(random.uniform(0, 180)) if self.angle is None else self.angle
        return noisy(convolved(image, line_kernel(length, angle)), self.sigma, random)


def gaussian_blur(image: Pixels, width: float) -> Pixels:
    """An image blurred by a Gaussian.

    Args:
        image: [H, W, C].
        width: Deviation, in pixels.
    """
    reach = math.ceil(_REACH * width)
    offsets = np.arange(-reach, reach + 1)
    bell = np.exp(-0.5 * (offsets / width) ** 2)
    bell /= bell.sum()
    result = np.ascontiguousarray(np.moveaxis(image, 2, 0))  # C, H, W
    height, across = image.shape[:2]
    result = _filter(height, offsets, bell).along_rows(result)
    result = _filter(across, offsets, bell).along_columns(result)
    return np.ascontiguousarray(np.moveaxis(result, 0, 2))


def _filter(length: int, offsets: NDArray[np.int64], weights: NDArray[np.float64]) -> BandedMatrix:
    places = mirrored(np.arange(length)[:, None] + offsets, length)
    return BandedMatrix(places, np.broadcast_to(weights, places.shape), rows=32)


def line_kernel(length: float, angle: float) -> NDArray[np.float32]:
    """Weights of the pixels that a point passes on a straight line.

    Args:
        length: Of the line, in pixels.
        angle: In degrees; 0 is across, 90 is up.

    Returns:
        [side, side] with an odd side, of sum 1: the time spent between the centres of pixels is shared bilinearly.
    """
    reach = math.ceil(max(length - 1, 0) / 2)
    steps = np.linspace(-0.5, 0.5, 16 * (2 * reach + 1)) * max(length - 1, 0)
    radians = math.radians(angle)
    down, across = -steps * math.sin(radians) + reach, steps * math.cos(radians) + reach
    down, across = np.clip(down, 0, 2 * reach), np.clip(across, 0, 2 * reach)  # against rounding alone
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2))
    top, left = np.floor(down).astype(int), np.floor(across).astype(int)
    low, right = down - top, across - left
    for row, column, share in (
        (top, left, (1 - low) * (1 - right)),
        (top, left + 1, (1 - low) * right),
        (top + 1, left, low * (1 - right)),
        (top + 1, left + 1, low * right),
    ):
        np.add.at(kernel, (row, column), share)
    kernel = kernel[:-1, :-1]  # the last row and column only take shares of zero
    return (kernel / kernel.sum()).astype(np.float32)


def convolved(image: Pixels, kernel: NDArray[np.float32]) -> Pixels:
    """An image convolved with a small kernel of odd sides, mirrored at its border; zeros of the kernel cost nothing.

    Args:
        image: [H, W, C].
        kernel: [rows, columns].
    """
    height, width = image.shape[:2]
    reach = [side // 2 for side in kernel.shape]
    rows = mirrored(np.arange(-reach[0], height + reach[0]), height)
    columns = mirrored(np.arange(-reach[1], width + reach[1]), width)
    wide = image[rows][:, columns]
    result = np.zeros_like(image)
    for row, column in np.argwhere(kernel > 0):
        top, left = 2 * reach[0] - row, 2 * reach[1] - column  # a convolution turns its kernel round
        result += kernel[row, column] * wide[top : top + height, left : left + width]
    return result
