"""Configurations of heads that classify pixels one by one. Standard library only until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from apps.segmentation.models.fcn import FCNHead
    from apps.segmentation.models.info import HeadInfo
    from apps.segmentation.models.segformer import SegFormerHead
    from apps.segmentation.models.unet import UNetHead
    from apps.segmentation.models.upernet import UPerNetHead

Norm = Literal["batch", "sync", "group", "none"]
Activation = Literal["relu", "leaky_relu", "gelu", "silu", "none"]


@dataclass(kw_only=True)
class PixelHeadConfig:
    """What heads of pixels share."""

    channels: int = 512
    """Width of the head."""
    dropout: float = 0.1
    """Share of channels dropped before the classifier."""
    norm: Norm = "batch"
    """Norm after convolutions; sync takes statistics over all devices, group needs no batch."""
    groups: int = 32
    """Groups of the group norm; fewer where they do not divide the channels."""
    norm_eps: float = 1e-5
    """Added to variances in norms."""
    norm_momentum: float = 0.1
    """What a batch weighs in the running statistics of batch norms."""
    activation: Activation = "relu"
    """Activation after convolutions."""
    in_levels: tuple[int, ...] = ()
    """Levels of the backbone that are read, from 0 for the finest, negative ones from the end; empty for all."""
    align_corners: bool = False
    """Resize so that the middles of corner pixels coincide, rather than the corners of images."""
    binary_threshold: float = 0.0
    """For two classes: one logit per pixel, that of class 1, which is chosen where its probability is above this
    (mmsegmentation's default is 0.3); predicted probabilities are moved so that this is one half. 0 for a logit per
    class."""
    auxiliary_weight: float = 0.4
    """Factor of the loss of a second head on one level; 0 for no such head."""
    auxiliary_level: int = -2
    """Level that the second head reads; of a backbone with fewer the nearest one."""
    auxiliary_channels: int = 256
    """Width of the second head."""
    auxiliary_convs: int = 1
    """Convolutions of the second head."""
    cross_entropy_weight: float = 1.0
    """Factor of the cross entropy."""
    dice_weight: float = 0.0
    """Factor of the Dice loss."""
    dice_activation: Literal["softmax", "sigmoid"] = "softmax"
    """Probabilities in the Dice loss: of all classes together, or of each by itself (mmsegmentation's default)."""
    average: Literal["valid", "all"] = "valid"
    """Pixels that the cross entropy is divided by; all is mmsegmentation's default."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    hard_threshold: float = 0.0
    """Train only on pixels whose class has a lower probability than this; 0 for all pixels."""
    hard_least: int = 100_000
    """Pixels per image that are trained on at least, the hardest ones first, where hard_threshold is set."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        for name in ("channels", "groups", "auxiliary_channels", "hard_least"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be 1 or more"
        if self.auxiliary_convs < 0:
            yield f"auxiliary_convs={self.auxiliary_convs} must be 0 or more"
        if self.norm_eps <= 0:
            yield f"norm_eps={self.norm_eps:g} must be above 0"
        if not 0 < self.norm_momentum <= 1:
            yield f"norm_momentum={self.norm_momentum:g} must be above 0 and at most 1"
        for name in ("dropout", "label_smoothing", "binary_threshold"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}={getattr(self, name):g} must be from 0 to below 1"
        for name in ("auxiliary_weight", "cross_entropy_weight", "dice_weight"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name):g} must be 0 or more"
        if self.cross_entropy_weight == 0 and self.dice_weight == 0:
            yield "cross_entropy_weight=0 and dice_weight=0 leave no loss; set one of them"
        if not 0 <= self.hard_threshold <= 1:
            yield f"hard_threshold={self.hard_threshold:g} must be from 0 to 1"
        if len(set(self.in_levels)) < len(self.in_levels):
            yield f"in_levels={list(self.in_levels)} names a level twice"


@dataclass(kw_only=True)
class UPerNetConfig(PixelHeadConfig):
    """UPerNet: pooled context on the coarsest level, a feature pyramid, all levels joined."""

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    """Positions per side that the coarsest level is pooled to."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if min(self.pool_scales, default=1) < 1:
            yield f"pool_scales={list(self.pool_scales)} must be 1 or more each"

    def build(self, info: HeadInfo) -> UPerNetHead:
        """The head for a backbone and classes."""
        from apps.segmentation.models.upernet import UPerNetHead

        return UPerNetHead(self, info)


@dataclass(kw_only=True)
class SegFormerConfig(PixelHeadConfig):
    """SegFormer's head: every level mixed by itself, all joined and mixed once more."""

    channels: int = 256
    """Width of the head."""
    auxiliary_weight: float = 0.0
    """Factor of the loss of a second head on one level; 0 for no such head."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How levels are brought to the size of the finest one."""

    def build(self, info: HeadInfo) -> SegFormerHead:
        """The head for a backbone and classes."""
        from apps.segmentation.models.segformer import SegFormerHead

        return SegFormerHead(self, info)


@dataclass(kw_only=True)
class FCNConfig(PixelHeadConfig):
    """A fully convolutional head, on the coarsest level unless told otherwise."""

    in_levels: tuple[int, ...] = (-1,)
    """Levels that are read; several are resized to the first one and joined."""
    convs: int = 2
    """Convolutions."""
    kernel: int = 3
    """Side of their kernels."""
    dilation: int = 1
    """Positions from tap to tap."""
    joined: bool = True
    """Join the level to what came of it, and convolve both."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if self.convs < 0:
            yield f"convs={self.convs} must be 0 or more"
        if self.kernel < 1 or self.kernel % 2 == 0:
            yield f"kernel={self.kernel} must be odd"
        if self.dilation < 1:
            yield f"dilation={self.dilation} must be 1 or more"
        if not self.in_levels:
            yield "in_levels must name a level or more"

    def build(self, info: HeadInfo) -> FCNHead:
        """The head for a backbone and classes."""
        from apps.segmentation.models.fcn import FCNHead

        return FCNHead(self, info)


@dataclass(kw_only=True)
class UNetConfig(PixelHeadConfig):
    """A U-Net decoder: from the coarsest level up, joined with every finer one."""

    channels: int = 64
    """Width at the finest level; twice as wide at each coarser one."""
    widest: int = 512
    """Largest width."""
    auxiliary_weight: float = 0.0
    """Factor of the loss of a second head on one level; 0 for no such head."""
    convs: int = 2
    """Convolutions at every level."""
    upsample: Literal["bilinear", "wau"] = "bilinear"
    """How coarse features are brought to a finer level; wau adds what each position reads from a window of them."""
    window: int = 4
    """Side of these windows, in positions of the coarser level."""
    heads: int = 4
    """Attention heads, where upsample=wau."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds."""
        yield from super().problems()
        for name in ("convs", "window", "heads", "widest"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be 1 or more"
        if self.widest < self.channels:
            yield f"widest={self.widest} must be at least channels={self.channels}"
        if self.upsample == "wau" and self.heads > 0 and (self.channels % self.heads or self.widest % self.heads):
            yield f"heads={self.heads} must divide channels={self.channels} and widest={self.widest}"

    def build(self, info: HeadInfo) -> UNetHead:
        """The head for a backbone and classes."""
        from apps.segmentation.models.unet import UNetHead

        return UNetHead(self, info)
