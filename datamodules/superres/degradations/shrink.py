"""Low resolution: MATLAB's bicubic, or files that the data has."""

from __future__ import annotations

import numpy as np

from datamodules.superres.bicubic import imresize
from datamodules.superres.degradations.base import Degradation, Pixels
from datamodules.superres.degradations.config import BicubicConfig, StoredConfig
from graftwork.errors import DataError


class Bicubic(Degradation):
    """The image shrunk by MATLAB's imresize.

    Args:
        config: Scale and rounding.
    """

    def __init__(self, config: BicubicConfig) -> None:
        super().__init__(config)
        self.rounding = config.rounding
        self.margin = 2 * config.scale if config.scale > 1 else 0  # half of the kernel's support

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """[H, W, C] to [h, w, C]; draws nothing."""
        return imresize(image, 1 / self.scale, rounding=self.rounding)


class Stored(Degradation):
    """What cannot be computed.

    Args:
        config: Scale.
    """

    def __init__(self, config: StoredConfig) -> None:
        super().__init__(config)

    def __call__(self, image: Pixels, random: np.random.Generator, other: Pixels | None = None) -> Pixels:
        """Refuses.

        Raises:
            DataError: Always: degraded images are files here.
        """
        raise DataError("degraded images are read from files", "data.degradation.name=stored", "Choose another one")
