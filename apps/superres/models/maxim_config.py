"""Configurations of MAXIM. No torch until ``build``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.superres.models.config_checks import refuse
from apps.superres.models.info import ImageInfo

if TYPE_CHECKING:
    from apps.superres.models.maxim import MAXIM


@dataclass(kw_only=True)
class MAXIMConfig:
    """MAXIM of one stage (CVPR 2022): a U-Net of gated MLPs, restores at the same size; width 64 is the M series."""

    width: int = 32
    """Features at full resolution; they double from level to level."""
    stages: int = 1
    """U-Nets one after the other."""
    levels: int = 3
    """Resolutions of a U-Net above its bottleneck."""
    groups: int = 2
    """Blocks of mixing and convolution of every level and bottleneck."""
    bottlenecks: int = 2
    """Bottlenecks, one after the other."""
    supervised: int = 3
    """Resolutions, from the finest on, that images are seen and compared at in every stage."""
    high_side: int = 16
    """Side of blocks and grids in the two finest levels."""
    low_side: int = 8
    """Side of blocks and grids below."""
    checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping their activations."""

    @property
    def widths(self) -> list[int]:
        """Features of every level."""
        return [self.width * 2**level for level in range(self.levels)]

    @property
    def sides(self) -> list[int]:
        """Side of blocks and grids of every level."""
        return [self.high_side if level < 2 else self.low_side for level in range(self.levels)]

    @property
    def multiple(self) -> int:
        """What the sides of images are padded to multiples of."""
        return math.lcm(*(side * 2**level for level, side in enumerate([*self.sides, self.low_side])))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        for name in ("width", "stages", "levels", "groups", "bottlenecks", "supervised", "high_side", "low_side"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        if self.supervised > self.levels:
            yield f"supervised={self.supervised} must be at most levels={self.levels}"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        if info.channels < 1:
            yield f"channels={info.channels} must be at least 1"
        if info.scale != 1:
            yield f"maxim restores images at their own size and cannot give scale={info.scale}; use trunk or hat"

    def build(self, info: ImageInfo) -> MAXIM:
        """The network for images of these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.maxim import MAXIM

        return MAXIM(self, info)


@dataclass(kw_only=True)
class MAXIM2Config(MAXIMConfig):
    """MAXIM of two stages, published for deraining, dehazing and enhancement."""

    stages: int = 2
    """U-Nets one after the other."""


@dataclass(kw_only=True)
class MAXIM3Config(MAXIMConfig):
    """MAXIM of three stages, published for denoising and deblurring."""

    stages: int = 3
    """U-Nets one after the other."""
