"""Configuration of the restorer on a vision backbone. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.superres.models.config_checks import Upsampler, info_problems, refuse
from apps.superres.models.info import ImageInfo
from backbones.vision.config import BACKBONES
from graftwork.components import component

if TYPE_CHECKING:
    from apps.superres.models.trunk import TrunkRestorer


@dataclass(kw_only=True)
class TrunkConfig:
    """The stages of any vision backbone in the frame of SwinIR (ICCVW 2021)."""

    backbone: Any = component(BACKBONES)
    """The trunk; published weights fit: --model.backbone.weights FILE."""
    width: int = 64
    """Features around the trunk."""
    stride: int = 1
    """Input pixels per position of its finest level, 1, 2 or 4; 2 and 4 make the trunk cheaper."""
    levels: int = 3
    """Levels of the trunk that are used, from the finest on; each has half the resolution of the one before."""
    upsampler: Upsampler = "auto"
    """The last layers; auto is classical, and residual for scale 1."""
    image_skip: bool = True
    """Add the image, enlarged by cubic interpolation, to the result: trains much faster."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        for name in ("width", "levels"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        if self.stride not in (1, 2, 4):
            yield f"stride={self.stride} must be 1, 2 or 4 pixels per position"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from info_problems(self.upsampler, "classical", info)

    def build(self, info: ImageInfo) -> TrunkRestorer:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.trunk import TrunkRestorer

        return TrunkRestorer(self, info)
