"""Configuration of CFSR. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apps.superres.models.config_checks import Upsampler, common_problems, info_problems, refuse
from apps.superres.models.info import ImageInfo

if TYPE_CHECKING:
    from apps.superres.models.cfsr import CFSR


@dataclass(kw_only=True)
class CFSRConfig:
    """CFSR (IEEE TIP 2024): large depth-wise kernels in place of attention; light, any image size without padding."""

    width: int = 48
    """Features."""
    depths: tuple[int, ...] = (6, 6)
    """Blocks of each layer."""
    kernel: int = 9
    """Side of the depth-wise kernels, odd."""
    mlp_ratio: float = 2.0
    """Features inside the feed-forward networks, in multiples of width."""
    edges: Literal["branches", "merged"] = "branches"
    """Edge convolutions with their branches, for training, or summed up as official weights are."""
    upsampler: Upsampler = "auto"
    """The last layers; auto is light, and residual for scale 1."""
    image_skip: bool = False
    """Add the image, enlarged by cubic interpolation, to the result: trains much faster; the paper has none."""
    layer_scale: float = 1e-6
    """First value of the learned factors on every branch."""
    image_range: float = 1.0
    """Images in [0, 1] are multiplied by this after their mean is taken off."""
    drop_path: float = 0.0
    """Share of samples whose branch is left out in training, of the last block; rises linearly up to it."""
    checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping their activations."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from common_problems(self)
        if self.kernel % 2 == 0:
            yield f"kernel={self.kernel} must be odd; try kernel={self.kernel + 1}"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from info_problems(self.upsampler, "light", info)

    def build(self, info: ImageInfo) -> CFSR:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.cfsr import CFSR

        return CFSR(self, info)
