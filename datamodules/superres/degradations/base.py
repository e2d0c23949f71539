"""What every degradation offers to the datasets.

Shape legend: H, W sides of the original, C its channels; s scale; h = H / s, w = W / s; c channels of the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.superres.degradations.config import DegradationConfig

Pixels = NDArray[np.float32]


class Degradation:
    """A degradation of clean images.

    It is a function of the image and of the generator alone. Where nothing is drawn, a part that begins at a multiple
    of ``grid`` gives the same as that part of the degraded whole, but for ``margin`` pixels at its sides; so training
    sees what evaluation sees.

    Args:
        config: Its options.
    """

    grid: int = 1
    """Parts begin at multiples of this, in pixels of the original."""
    margin: int = 0
    """Pixels of the original that the result depends on, to each side."""
    wants_other: bool = False
    """Whether a second image of the same size is mixed in."""

    def __init__(self, config: DegradationConfig) -> None:
        self.scale, self.period = config.scale, config.period
        self.grid = config.period

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """Degrade an image.

        Args:
            image: Clean, [H, W, C] from 0 to 1; both sides multiples of ``period``.
            random: Where everything random is drawn from.
            other: A second clean image of the same shape, for those that want one.

        Returns:
            [h, w, c] float32.
        """
        raise NotImplementedError(f"{type(self).__name__} must degrade images")


def drawn(random: np.random.Generator, low: float, high: float | None) -> float:
    """``low``, or a number between ``low`` and ``high`` where there is one."""
    return low if high is None else float(random.uniform(low, high))
