"""Configurations of HAT. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.superres.models.config_checks import (
    Upsampler,
    common_problems,
    group_heads,
    head_problems,
    info_problems,
    refuse,
)
from apps.superres.models.info import ImageInfo

if TYPE_CHECKING:
    from apps.superres.models.hat import HAT


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
    absolute_positions: tuple[int, int] | None = None
    """Height and width of a learned map that is added to the shallow features behind their norm, in pixels; resized for
    other images. None has no such map."""
    group_convolution: bool = True
    """A 3x3 convolution ends every group and the body."""
    image_size: int = 64
    """Smallest side of training images, as the original is told it (in its patches): one not above window takes the
    shifts away and shrinks the windows of self-attention to it. Of no other effect: any image size fits."""
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
        return group_heads(self)

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
        yield from common_problems(self)
        yield from head_problems(self)
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
        if self.absolute_positions is not None and min(self.absolute_positions) < 1:
            yield f"absolute_positions={tuple(self.absolute_positions)} must be height and width, each at least 1"

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from info_problems(self.upsampler, "classical", info)

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
