"""Configurations of DLGSANet. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apps.superres.models.config_checks import Upsampler, common_problems, divisor, info_problems, refuse
from apps.superres.models.info import ImageInfo

if TYPE_CHECKING:
    from apps.superres.models.dlgsanet import DLGSANet


@dataclass(kw_only=True)
class DLGSANetConfig:
    """DLGSANet (ICCV 2023): dynamic kernels for what is near, sparse channel attention for what is far."""

    width: int = 90
    """Features."""
    depths: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    """Blocks of each group, of a local and a global layer each."""
    block: Literal["sparseedge", "edge", "idynamic", "restormer"] = "sparseedge"
    """Layers of a block: local and sparse global ones; the same with softmax; local ones only; global with softmax."""
    dynamic: bool = True
    """Local layers make a kernel for every position; false learns one for every feature in place of it."""
    kernel: int = 7
    """Side of these kernels, odd."""
    group_width: int = 6
    """Features that share a dynamic kernel."""
    squeeze: int = 4
    """Features divided by this lie inside the network that makes the kernels."""
    heads: int = 6
    """Heads of the channel attention."""
    activation: Literal["relu", "gelu", "sigmoid"] = "relu"
    """What makes weights in the sparse channel attention."""
    local_crops: bool | Literal["auto"] = "auto"
    """Compare channels within overlapping crops, outside of training; auto does in sparse layers, as published."""
    crop: int | None = None
    """Side of the crops, in pixels; 96, 72 or 48 for scale 2, 3 or 4 if omitted."""
    mlp_ratio: float = 2.0
    """Features inside the feed-forward networks, in multiples of width."""
    global_mlp_ratio: float | None = None
    """The same for global layers; mlp_ratio if omitted."""
    body_norm: bool = False
    """Normalise features before the first group and after the last."""
    upsampler: Upsampler = "auto"
    """The last layers; auto is light, and residual for scale 1."""
    image_range: float = 1.0
    """Images in [0, 1] are multiplied by this after their mean is taken off."""
    checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping their activations."""

    @property
    def has_local_layers(self) -> bool:
        """Blocks have a layer of dynamic kernels."""
        return self.block != "restormer"

    @property
    def has_global_layers(self) -> bool:
        """Blocks have a layer of channel attention."""
        return self.block != "idynamic"

    @property
    def global_activation(self) -> str:
        """What makes weights in the channel attention."""
        return self.activation if self.block == "sparseedge" else "softmax"

    @property
    def hidden(self) -> int:
        """Features inside the feed-forward networks of local layers."""
        return int(self.width * self.mlp_ratio)

    @property
    def global_hidden(self) -> int:
        """Features inside the feed-forward networks of global layers."""
        return self.hidden if self.global_mlp_ratio is None else int(self.width * self.global_mlp_ratio)

    def resolved_crop(self, scale: int) -> int | None:
        """Side of the crops for a scale; None where whole images are compared."""
        cut = self.block == "sparseedge" if self.local_crops == "auto" else self.local_crops
        if not cut:
            return None
        return self.crop or {1: 96, 2: 96, 3: 72}.get(scale, 48)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from common_problems(self)
        if self.kernel % 2 == 0:
            yield f"kernel={self.kernel} must be odd; try kernel={self.kernel + 1}"
        for name in ("group_width", "heads") if self.dynamic else ("heads",):
            value = getattr(self, name)
            if value < 1 or self.width % value:
                near = divisor(self.width, value)
                yield f"width={self.width} must be a multiple of {name}={value}; try {name}={near}"
        if self.squeeze > self.width:
            yield f"squeeze={self.squeeze} leaves no features of width={self.width}"
        if self.global_hidden < 1:
            yield f"global_mlp_ratio={self.global_mlp_ratio} leaves no features of width={self.width}"
        if self.crop is not None and self.crop < 1:
            yield f"crop={self.crop} must be at least 1; local_crops=false compares whole images"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from info_problems(self.upsampler, "light", info)

    def build(self, info: ImageInfo) -> DLGSANet:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.dlgsanet import DLGSANet

        return DLGSANet(self, info)


@dataclass(kw_only=True)
class DLGSANetLightConfig(DLGSANetConfig):
    """DLGSANet-light: about the size of CRAFT."""

    width: int = 48
    """Features."""
    depths: tuple[int, ...] = (3, 3, 3, 3)
    """Blocks of each group, of a local and a global layer each."""


@dataclass(kw_only=True)
class DLGSANetTinyConfig(DLGSANetLightConfig):
    """DLGSANet-tiny: the light network without its last group."""

    depths: tuple[int, ...] = (3, 3, 3)
    """Blocks of each group, of a local and a global layer each."""
