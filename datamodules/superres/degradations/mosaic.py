"""Sensors behind colour filters: Bayer and quad-Bayer patterns, with event pixels among them.

Shape legend: B batch; H, W sides; p side of the pattern.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules.superres.degradations.base import Degradation, Pixels
from datamodules.superres.degradations.config import PATTERNS, MosaicConfig
from datamodules.superres.degradations.noise import noisy
from graftwork.errors import ConfigError, ShapeError

_COLOURS = {"r": 0, "g": 1, "b": 2}


class Mosaic(Degradation):
    """What a sensor measures of a colour image.

    Args:
        config: Pattern, form and noise.

    Source of the patterns with event pixels: Lu et al. 2024, "Event Camera Demosaicing via Swin Transformer and
    Pixel-focus Loss": some photosites of red and blue blocks see events. Which ones differs from sensor to sensor; here
    it is the lower right one of every block.
    """

    def __init__(self, config: MosaicConfig) -> None:
        super().__init__(config)
        self.pattern, self.form, self.sigma = config.pattern, config.form, config.sigma

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, 3] to [H, W, 3] with zeros, or to [H / p, W / p, p * p]."""
        mask = pattern_mask(self.pattern)
        measured = masked(noisy(image, self.sigma, random), mask)
        return packed(measured, len(mask)) if self.form == "packed" else measured


@functools.cache
def pattern_mask(pattern: str) -> NDArray[np.float32]:
    """Which colour is measured where, [p, p, 3] of zeros and ones.

    Raises:
        ConfigError: No such pattern.
    """
    if pattern not in PATTERNS:
        raise ConfigError(f"unknown pattern '{pattern}'; known: {', '.join(PATTERNS)}")
    letters = "rggb" if pattern.startswith("quad") else pattern
    colours = np.array([_COLOURS[letter] for letter in letters]).reshape(2, 2)
    if pattern.startswith("quad"):
        colours = colours.repeat(2, axis=0).repeat(2, axis=1)
    mask = np.eye(3, dtype=np.float32)[colours]
    if pattern == "quad_events":
        mask[1, 1] = mask[3, 3] = 0  # one of the red block, one of the blue block
    return mask


def masked(image: Pixels, mask: NDArray[np.float32]) -> Pixels:
    """Zeros where a colour is not measured.

    Args:
        image: [H, W, 3]; sides multiples of p.
        mask: [p, p, 3].

    Raises:
        ShapeError: Another number of channels, or a side that is no multiple.
    """
    height, width, channels = image.shape
    period = len(mask)
    if channels != 3 or height % period or width % period:
        raise ShapeError(f"a mosaic needs 3 channels and sides that are multiples of {period}, got {list(image.shape)}")
    return image * np.tile(mask, (height // period, width // period, 1))


def packed(measured: Pixels, period: int) -> Pixels:
    """Measured values with a channel for each place of the pattern, row by row: [H, W, 3] to [H / p, W / p, p * p]."""
    height, width = (side // period for side in measured.shape[:2])
    places = measured.sum(axis=2).reshape(height, period, width, period)
    return np.ascontiguousarray(places.transpose(0, 2, 1, 3).reshape(height, width, period**2))


def interpolated(measured: Tensor, pattern: str) -> Tensor:
    """A mosaic with what was not measured filled in: bilinear demosaicing, for any pattern.

    Args:
        measured: [B, 3, H, W] with zeros where a colour was not measured, or [B, p * p, H / p, W / p], packed.
        pattern: Name of the pattern.

    Returns:
        [B, 3, H, W]: measured values as they are, the others as means of measured ones nearby, weighted by a tent as
        wide as the pattern. On Bayer patterns these are the means of the two or four nearest.
    """
    mask = torch.from_numpy(pattern_mask(pattern)).to(measured).permute(2, 0, 1)  # 3, p, p
    period = mask.shape[-1]
    if measured.shape[1] == period**2:
        measured = F.pixel_shuffle(measured, period)  # B, 1, H, W
    mask = mask.tile(1, measured.shape[-2] // period, measured.shape[-1] // period)
    tent = period - torch.arange(1 - period, period, device=measured.device, dtype=measured.dtype).abs()
    kernel = (tent[:, None] * tent).expand(3, 1, -1, -1)
    values = F.conv2d(measured * mask, kernel, padding=period - 1, groups=3)
    weights = F.conv2d(mask[None], kernel, padding=period - 1, groups=3)
    return torch.where(mask > 0, measured, values / weights)
