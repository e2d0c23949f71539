"""Reflections on a window pane."""

from __future__ import annotations

import math

import numpy as np

from datamodules.superres.degradations.base import Degradation, Pixels, drawn
from datamodules.superres.degradations.blur import gaussian_blur
from datamodules.superres.degradations.config import ReflectionConfig
from graftwork.errors import DataError


class Reflection(Degradation):
    """What is behind the pane plus a blurred share of what is before it; cut to 0..1.

    Args:
        config: Share and blur of the reflection.

    Source of the model: I = T + R with R out of focus, as in Fan et al. 2017, section 4.
    """

    wants_other = True

    def __init__(self, config: ReflectionConfig) -> None:
        super().__init__(config)
        self.strength, self.strength_max = config.strength, config.strength_max
        self.width, self.width_max = config.width, config.width_max
        self.margin = math.ceil(4 * (config.width_max or config.width))

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C].

        Raises:
            DataError: There is no other image of this shape.
        """
        if other is None or other.shape != image.shape:
            raise DataError("a reflection needs a second image of the same size", "data.degradation.name=reflection")
        strength = drawn(random, self.strength, self.strength_max)
        width = drawn(random, self.width, self.width_max)
        return np.clip(image + np.float32(strength) * gaussian_blur(other, width), 0, 1)
