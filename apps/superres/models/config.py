"""Configurations of the restoration networks, and their names. No torch until ``build``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.superres.models.info import ImageInfo
from backbones.vision.config import BACKBONES
from graftwork.components import Registry, component
from graftwork.errors import all_problems

if TYPE_CHECKING:
    from apps.superres.models.cfsr import CFSR
    from apps.superres.models.craft import CRAFT
    from apps.superres.models.dlgsanet import DLGSANet
    from apps.superres.models.hat import HAT
    from apps.superres.models.maxim import MAXIM
    from apps.superres.models.trunk import TrunkRestorer

__all__ = [
    "MODELS",
    "CFSRConfig",
    "CRAFTConfig",
    "DLGSANetConfig",
    "DLGSANetLightConfig",
    "DLGSANetTinyConfig",
    "HATConfig",
    "HATLargeConfig",
    "HATSmallConfig",
    "ImageInfo",
    "MAXIM2Config",
    "MAXIM3Config",
    "MAXIMConfig",
    "TrunkConfig",
    "resolved_upsampler",
]

Upsampler = Literal["auto", "classical", "light", "residual"]
_COUNTS = ("width", "kernel", "compress", "squeeze")


def resolved_upsampler(upsampler: str, own: str, info: ImageInfo) -> str:
    """The kind of the last layers that ``auto`` stands for.

    Args:
        upsampler: The configured kind.
        own: The kind that the network was published with.
        info: Its scale decides.

    Returns:
        ``residual`` for scale 1, where a network gives what to add to its input, else ``own``.
    """
    if upsampler != "auto":
        return upsampler
    return "residual" if info.scale == 1 else own


def refuse(problems: Iterator[str]) -> None:
    """Raise one error that lists all problems; do nothing if there are none.

    Raises:
        ConfigError: There is at least one.
    """
    found = list(problems)
    if found:
        raise all_problems(found)


def _divisor(number: int, near: int) -> int:
    """The divisor of a number that is nearest to ``near``."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: abs(n - near), default=1)


def _common_problems(config: Any) -> Iterator[str]:
    """Checks on the fields most networks share; a field the network lacks is skipped."""
    for name in _COUNTS:
        value = getattr(config, name, 1)
        if value < 1:
            yield f"{name}={value} must be at least 1"
    if not config.depths or min(config.depths) < 1:
        yield f"depths={tuple(config.depths)} must be one or more numbers of at least 1"
    if not 0 <= getattr(config, "drop_path", 0) < 1:
        yield f"drop_path={config.drop_path} must be at least 0 and below 1"
    if config.mlp_ratio * config.width < 1:
        yield f"mlp_ratio={config.mlp_ratio} leaves no features of width={config.width}"
    if config.image_range <= 0:
        yield f"image_range={config.image_range} must be positive"


def _group_heads(config: Any) -> tuple[int, ...]:
    """Heads of each group, where one number may stand for all."""
    heads = tuple(config.heads)
    return heads * len(config.depths) if len(heads) == 1 else heads


def _head_problems(config: Any) -> Iterator[str]:
    """Heads that fit neither the groups nor the features."""
    if len(config.group_heads) != len(config.depths):
        yield f"heads={tuple(config.heads)} must be one number, or one for each of depths={tuple(config.depths)}"
    for heads in sorted(set(config.heads)):
        if heads < 1 or config.width % heads:
            yield f"width={config.width} must be a multiple of heads={heads}; try heads={_divisor(config.width, heads)}"


def _info_problems(upsampler: str, own: str, info: ImageInfo) -> Iterator[str]:
    """Sizes of images that the last layers cannot give."""
    scale, kind = info.scale, resolved_upsampler(upsampler, own, info)
    if info.channels < 1:
        yield f"channels={info.channels} must be at least 1"
    if scale < 1:
        yield f"scale={scale} must be at least 1"
    elif kind == "classical" and scale != 3 and scale & (scale - 1):
        yield f"upsampler=classical cannot give scale={scale}; use scale 1, 2, 3, 4, 8, ... or upsampler=light"
    elif kind == "residual" and scale != 1:
        yield f"upsampler=residual keeps the size and cannot give scale={scale}; use {own}"


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
        yield from _common_problems(self)
        if self.kernel % 2 == 0:
            yield f"kernel={self.kernel} must be odd; try kernel={self.kernel + 1}"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from _info_problems(self.upsampler, "light", info)

    def build(self, info: ImageInfo) -> CFSR:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.cfsr import CFSR

        return CFSR(self, info)


@dataclass(kw_only=True)
class HATConfig:
    """HAT (CVPR 2023): window attention, channel attention and overlapping cross-attention together."""

    width: int = 180
    """Features."""
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    """Blocks of each group."""
    heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    """Heads of each group; one number stands for all groups."""
    window: int = 16
    """Side of an attention window, in pixels."""
    overlap: float = 0.5
    """Keys of the cross-attention lie in windows larger by this share."""
    compress: int = 3
    """Features divided by this lie between the convolutions of a channel attention block."""
    squeeze: int = 30
    """Features divided by this lie inside the channel attention."""
    conv_scale: float = 0.01
    """Constant factor on the convolutional branch."""
    mlp_ratio: float = 2.0
    """Features inside the feed-forward networks, in multiples of width."""
    qkv_bias: bool = True
    """Projections to queries, keys and values have a bias."""
    qk_scale: float | None = None
    """Factor on the logits; (width / heads) ** -0.5 if omitted."""
    patch_norm: bool = True
    """Normalise the shallow features before the first group."""
    group_convolution: bool = True
    """A 3x3 convolution ends every group and the body."""
    image_size: int = 64
    """Smallest side of training images, as the original is told it: one not above window takes the shifts away and
    shrinks the windows of self-attention to it. Of no other effect: any image size fits."""
    upsampler: Upsampler = "auto"
    """The last layers; auto is classical, and residual for scale 1."""
    image_range: float = 1.0
    """Images in [0, 1] are multiplied by this after their mean is taken off."""
    drop_path: float = 0.1
    """Share of samples whose branch is left out in training, of the last block; rises linearly up to it."""
    checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping their activations."""

    @property
    def group_heads(self) -> tuple[int, ...]:
        """Heads of each group."""
        return _group_heads(self)

    @property
    def attention_window(self) -> int:
        """Side of the windows of self-attention."""
        return min(self.window, self.image_size)

    @property
    def key_window(self) -> int:
        """Side of the windows that the keys of the cross-attention lie in."""
        return self.window + int(self.window * self.overlap)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)
        yield from _head_problems(self)
        if self.window < 1:
            yield f"window={self.window} must be at least 1"
        for name in ("compress", "squeeze"):
            if getattr(self, name) > self.width:
                yield f"{name}={getattr(self, name)} leaves no features of width={self.width}"
        if self.overlap < 0 or (self.key_window - self.window) % 2:
            wider = self.key_window - self.window
            yield f"overlap={self.overlap} widens window={self.window} by {wider}, which must be even and not negative"
        if self.image_size < 1:
            yield f"image_size={self.image_size} must be at least 1"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from _info_problems(self.upsampler, "classical", info)

    def build(self, info: ImageInfo) -> HAT:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.hat import HAT

        return HAT(self, info)


@dataclass(kw_only=True)
class HATSmallConfig(HATConfig):
    """HAT-S: HAT with fewer features and narrower convolutions, about the size of SwinIR."""

    width: int = 144
    """Features."""
    compress: int = 24
    """Features divided by this lie between the convolutions of a channel attention block."""
    squeeze: int = 24
    """Features divided by this lie inside the channel attention."""


@dataclass(kw_only=True)
class HATLargeConfig(HATConfig):
    """HAT-L: HAT with twice the groups; published with ImageNet pre-training only."""

    depths: tuple[int, ...] = (6,) * 12
    """Blocks of each group."""
    heads: tuple[int, ...] = (6,) * 12
    """Heads of each group; one number stands for all groups."""


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
        yield from _info_problems(self.upsampler, "classical", info)

    def build(self, info: ImageInfo) -> TrunkRestorer:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.trunk import TrunkRestorer

        return TrunkRestorer(self, info)


@dataclass(kw_only=True)
class CRAFTConfig:
    """CRAFT (ICCV 2023): attention in rectangles refined by high frequencies; light, twice as large as CFSR."""

    width: int = 48
    """Features, even and at least 32."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Steps of each group, of two attention blocks each."""
    heads: tuple[int, ...] = (6, 6, 6, 6)
    """Heads of each group, even; one number stands for all groups."""
    window: tuple[int, int] = (4, 16)
    """Height and width of the rectangles for one half of the heads, in pixels; upright for the other half."""
    mlp_ratio: float = 2.0
    """Features inside the feed-forward networks, in multiples of width."""
    gate_ratio: float = 2.66
    """Features inside the gated feed-forward networks, in multiples of width."""
    qkv_bias: bool = True
    """Projections to queries, keys and values have a bias."""
    qk_scale: float | None = None
    """Factor on the logits within rectangles; (width / heads) ** -0.5 if omitted."""
    group_convolution: bool = True
    """A 3x3 convolution ends every group and the body."""
    upsampler: Upsampler = "auto"
    """The last layers; auto is light, and residual for scale 1."""
    image_range: float = 1.0
    """Images in [0, 1] are multiplied by this after their mean is taken off."""
    checkpointing: bool = False
    """Compute steps again in the backward pass instead of keeping their activations."""

    @property
    def group_heads(self) -> tuple[int, ...]:
        """Heads of each group."""
        return _group_heads(self)

    @property
    def position_width(self) -> int:
        """Features of the networks that make a bias of positions."""
        return self.width // 2 // 4 // 4

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)
        yield from _head_problems(self)
        if self.width < 32 or self.width % 2:
            yield f"width={self.width} must be even and at least 32"
        for heads in sorted(set(self.heads)):
            if heads % 2:
                yield f"heads={heads} must be even: each half sees rectangles of its own; try heads={heads + 1}"
        if len(self.window) != 2 or min(self.window) < 1:
            yield f"window={tuple(self.window)} must be height and width, each at least 1"
        if self.gate_ratio * self.width < 1:
            yield f"gate_ratio={self.gate_ratio} leaves no features of width={self.width}"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from _info_problems(self.upsampler, "light", info)

    def build(self, info: ImageInfo) -> CRAFT:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.craft import CRAFT

        return CRAFT(self, info)


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


@dataclass(kw_only=True)
class DLGSANetConfig:
    """DLGSANet (ICCV 2023): dynamic kernels for what is near, sparse channel attention for what is far."""

    width: int = 90
    """Features."""
    depths: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    """Blocks of each group, of a local and a global layer each."""
    block: Literal["sparseedge", "edge", "idynamic", "restormer"] = "sparseedge"
    """Layers of a block: local and sparse global ones; the same with softmax; local ones only; global with softmax."""
    kernel: int = 7
    """Side of the dynamic kernels, odd."""
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
        yield from _common_problems(self)
        if self.kernel % 2 == 0:
            yield f"kernel={self.kernel} must be odd; try kernel={self.kernel + 1}"
        for name in ("group_width", "heads"):
            value = getattr(self, name)
            if value < 1 or self.width % value:
                near = _divisor(self.width, value)
                yield f"width={self.width} must be a multiple of {name}={value}; try {name}={near}"
        if self.squeeze > self.width:
            yield f"squeeze={self.squeeze} leaves no features of width={self.width}"
        if self.global_hidden < 1:
            yield f"global_mlp_ratio={self.global_mlp_ratio} leaves no features of width={self.width}"
        if self.crop is not None and self.crop < 1:
            yield f"crop={self.crop} must be at least 1; local_crops=false compares whole images"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from _info_problems(self.upsampler, "light", info)

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


MODELS = Registry(
    "model",
    {
        "cfsr": CFSRConfig,
        "hat_s": HATSmallConfig,
        "hat": HATConfig,
        "hat_l": HATLargeConfig,
        "craft": CRAFTConfig,
        "dlgsanet_tiny": DLGSANetTinyConfig,
        "dlgsanet_light": DLGSANetLightConfig,
        "dlgsanet": DLGSANetConfig,
        "maxim_s1": MAXIMConfig,
        "maxim_s2": MAXIM2Config,
        "maxim_s3": MAXIM3Config,
        "trunk": TrunkConfig,
    },
)
