"""ViG and ViG-H: gated linear attention over the positions of an image, in both directions, at linear cost.

Source: Liao et al. 2024, "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", arXiv
2405.18425 (not the graph network of the same name); official code and weights at hustvl/ViG, MIT. Differs: images of
any size run.

Surprises: everything in a token mixer is made from the output of its depthwise convolution, not from its input; no
activation or softmax touches queries and keys; the plain model rounds hidden channels up to multiples of 256 and the
pyramid to multiples of 32; the initial weights of the mixers are Xavier ones in the plain model, and overwritten by
those of all linear layers in the pyramid.

Shape legend: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.vision.base import Stage, VisionBackbone
from backbones.vision.layers import ChannelRMSNorm, drop_path_rates, init_linear
from backbones.vision.vig_blocks import (
    PATCH,
    RMS_EPS,
    ConvolutionStem,
    GatedLinearMixer2d,
    NormedConvolution,
    PatchConvolution,
    SwiGLU,
    ViGBlock,
    hidden_width,
)
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from backbones.vision.config import ViGConfig


def build(
    config: ViGConfig,
    *,
    in_channels: int = 3,
    out_indices: Sequence[int] | None = None,
    checkpointing: bool = False,
    output_norms: bool = False,
) -> VisionBackbone:
    """The bare network of a configuration; arguments as in :class:`ViG`."""
    facts = config.facts
    common: dict[str, Any] = {
        "heads": facts.values["heads"],
        "drop_path": config.drop_path,
        "in_channels": in_channels,
        "out_indices": out_indices,
        "checkpointing": checkpointing,
        "output_norms": output_norms,
    }
    if facts.family == "vig_h":
        return ViGH(channels=facts.channels, depths=facts.values["depths"], **common)
    return ViG(
        width=facts.channels[0],
        depth=facts.values["depth"],
        image_size=facts.image_size,
        conv_activation=facts.values["conv_activation"],
        out_activation=facts.values["out_activation"],
        **common,
    )


class ViGBase(VisionBackbone):
    """What both layouts share: maps with channels last inside."""

    def to_map(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, C, H, W]."""
        return x.permute(0, 3, 1, 2)


class ViG(ViGBase):
    """The plain model: one resolution at a stride of 16 pixels, with learned positions.

    Args:
        width: Channels.
        depth: Number of blocks.
        heads: Heads of every block.
        image_size: Side of the images that the table of positions is for, in pixels, or height and width. Other images
            get the table interpolated.
        positions: Whether there is a table of positions.
        key_ratio: Channels of queries and keys per channel.
        conv_activation: SiLU after the depthwise convolutions.
        out_activation: SiLU before the output projections of the mixers.
        drop_path: Share of samples that skip a branch of the last block, growing linearly from 0 over the blocks.
        in_channels: See :class:`backbones.vision.base.VisionBackbone`.
        out_indices: See there.
        checkpointing: See there.
        output_norms: A layer norm on the returned map.

    Raises:
        ConfigError: Heads that do not divide the channels.
    """

    def __init__(
        self,
        *,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        image_size: int | Sequence[int] = 224,
        positions: bool = True,
        key_ratio: float = 0.5,
        conv_activation: bool = True,
        out_activation: bool = False,
        drop_path: float = 0.0,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
        output_norms: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=(width,),
            strides=(PATCH,),
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid = ((sides[0] + 9) // PATCH, (sides[1] + 9) // PATCH)  # the official convolutions need seven pixels
        self.stem = ConvolutionStem(PatchConvolution(in_channels, width // 2), nn.SiLU(), width)
        self.pos_embed: nn.Parameter | None = None
        if positions:
            self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], width))
            self.pos_embed._no_weight_decay = True  # type: ignore[attr-defined]
        blocks = [
            ViGBlock(
                GatedLinearMixer2d(
                    width, heads, key_ratio=key_ratio, conv_activation=conv_activation, out_activation=out_activation
                ),
                SwiGLU(width, hidden_width(width, 256)),
                (nn.RMSNorm(width, eps=RMS_EPS), nn.RMSNorm(width, eps=RMS_EPS)),
                rate,
            )
            for rate in drop_path_rates(drop_path, [depth])[0]
        ]
        self.stages = nn.ModuleList([Stage(nn.Identity(), blocks)])
        self._reset(blocks)
        self.finish(output_norms)

    @classmethod
    def from_official(cls, constructor: Mapping[str, Any], **options: Any) -> ViG:
        """The model of a call of the official class.

        Args:
            constructor: Its keyword arguments; ``num_classes`` belongs to the classifier and is ignored.
            options: Ours, such as ``out_indices``.

        Raises:
            ConfigError: An argument asks for what no released model has; all of them are named.
        """
        found = _checked(cls, constructor, OFFICIAL_PLAIN)
        return cls(
            width=found.get("embed_dim", 192),
            depth=found.get("depth", 12),
            heads=found.get("num_heads", 3),
            image_size=found.get("img_size", 224),
            positions=found.get("if_abs_pos_embed", True),
            **_shared(found),
            **options,
        )

    def extract(self, images: Tensor) -> list[Tensor]:
        """The one level there is."""
        x = self.stem(images)
        if self.pos_embed is not None:
            x = x + _resized(self.pos_embed.unflatten(1, self.grid), x.shape[1], x.shape[2])
        for block in self.built_stages[0].blocks:
            x = self.run(block, x)
        return [self.to_map(x)]

    def final_norm(self) -> nn.Module:
        """Root-mean-square norm, as in the blocks."""
        return ChannelRMSNorm(self.level_channels[-1], eps=RMS_EPS)

    def fit_tensor(self, name: str, found: Tensor, wanted: Tensor) -> Tensor | None:
        """Interpolate a table of positions, which must be a square one."""
        side = math.isqrt(found.shape[1]) if found.dim() == 3 else 0
        if name != "pos_embed" or side * side != found.shape[1] or found.shape[2] != wanted.shape[2]:
            return None
        return _resized(found.unflatten(1, (side, side)), *self.grid).flatten(1, 2)

    def _reset(self, blocks: Sequence[ViGBlock]) -> None:
        """Initial weights of the official code."""
        for module in self.stages.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for block in blocks:
            block.mixer.reset()
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)


class ViGH(ViGBase):
    """The pyramid: four resolutions from a stride of 4 pixels on, without positions.

    Args:
        channels: Of every stage.
        depths: Blocks of every stage.
        heads: Heads of the blocks of every stage.
        key_ratio: Channels of queries and keys per channel.
        conv_activation: SiLU after the depthwise convolutions of the mixers.
        out_activation: SiLU before the output projections of the mixers.
        mlp_ratio: Hidden channels of an MLP per channel, before the third that its gate costs.
        drop_path: Share of samples that skip a branch of the last block, growing linearly from 0 over the blocks.
        in_channels: See :class:`backbones.vision.base.VisionBackbone`.
        out_indices: See there.
        checkpointing: See there.
        output_norms: Layer norms on the returned maps.

    Raises:
        ConfigError: Lists of different lengths, or heads that do not divide the channels.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 5, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        key_ratio: float = 0.5,
        conv_activation: bool = False,
        out_activation: bool = False,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
        output_norms: bool = False,
    ) -> None:
        for name, values in (("depths", depths), ("heads", heads)):
            if len(values) != len(channels):
                raise ConfigError(f"{name}={list(values)} must have as many entries as channels={list(channels)}")
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            strides=[4 * 2**level for level in range(len(channels))],
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.stem = ConvolutionStem(NormedConvolution(in_channels, channels[0] // 2), nn.GELU(), channels[0])
        downsamples = [nn.Identity(), *(NormedConvolution(narrow, wide) for narrow, wide in pairwise(channels))]
        rates = drop_path_rates(drop_path, list(depths))
        stages = []
        for level, width in enumerate(channels):
            blocks = [
                ViGBlock(
                    GatedLinearMixer2d(
                        width,
                        heads[level],
                        key_ratio=key_ratio,
                        conv_activation=conv_activation,
                        out_activation=out_activation,
                    ),
                    SwiGLU(width, hidden_width(width, 32, mlp_ratio)),
                    (nn.LayerNorm(width), nn.LayerNorm(width)),
                    rate,
                )
                for rate in rates[level]
            ]
            for block in blocks:
                block.mixer.reset()
            stages.append(Stage(downsamples[level], blocks))
        self.stages = nn.ModuleList(stages)
        self.apply(init_linear)  # leaves the convolutions as they are
        self.finish(output_norms)

    @classmethod
    def from_official(cls, constructor: Mapping[str, Any], **options: Any) -> ViGH:
        """The model of a call of the official class, see :meth:`ViG.from_official`."""
        found = _checked(cls, constructor, OFFICIAL_PYRAMID)
        dims = found.get("dims", (96, 192, 384, 768))
        depths = found.get("depths", (2, 2, 5, 2))
        return cls(
            channels=[dims * 2**level for level in range(len(depths))] if isinstance(dims, int) else dims,
            depths=depths,
            heads=found.get("num_heads", (3, 6, 12, 24)),
            mlp_ratio=found.get("mlp_ratio", 4.0),
            **_shared(found),
            **options,
        )


_COMMON = {
    "num_classes": ...,
    "drop_path_rate": ...,
    "use_act_in_conv": ...,
    "use_out_act": ...,
    "expand_k": ...,
    "expand_v": 1.0,
    "rope_mode": "none",
    "in_chans": ...,
}
OFFICIAL_PLAIN: Mapping[str, Any] = {
    **_COMMON,
    "img_size": ...,
    "patch_size": PATCH,
    "stride": PATCH,
    "depth": ...,
    "num_heads": ...,
    "embed_dim": ...,
    "classification_mode": "avgpool",
    "if_abs_pos_embed": ...,
    "use_swiglu": True,
    "patch_embed_version": "v2",
}
"""Keyword arguments of the official plain model: the only value that released models have, or ... for any."""
OFFICIAL_PYRAMID: Mapping[str, Any] = {
    **_COMMON,
    "dims": ...,
    "depths": ...,
    "num_heads": ...,
    "patch_size": 4,
    "mlp_ratio": ...,
    "gmlp": True,
    "norm_layer": "ln2d",
    "downsample_version": "v3",
    "patchembed_version": "v2",
}
"""The same of the pyramid."""


def _checked(cls: type, constructor: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse official arguments that ours have no counterpart for; what is switched off needs none."""
    refused = []
    for name, value in constructor.items():
        allowed = known.get(name)
        if allowed is ... or value == allowed or (name not in known and value in (None, False, 0, "none", "")):
            continue
        wanted = f"only {name}={allowed!r} is" if name in known else "it is not"
        refused.append(f"{name}={value!r}: {wanted} in released models")
    if refused:
        raise ConfigError(
            f"{cls.__name__} has no counterpart for official arguments: " + "; ".join(refused),
            mend="Leave them out, or at their released values",
        )
    return constructor


def _shared(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key_ratio": found.get("expand_k", 0.5),
        "conv_activation": found.get("use_act_in_conv", True),
        "out_activation": found.get("use_out_act", False),
        "drop_path": found.get("drop_path_rate", 0.0),
        "in_channels": found.get("in_chans", 3),
    }


def _resized(table: Tensor, height: int, width: int) -> Tensor:
    """[1, h, w, C] to [1, height, width, C], bicubic."""
    fixed = isinstance(height, int) and isinstance(width, int)  # a graph with open sides must not depend on what fits
    if fixed and table.shape[1:3] == (height, width):
        return table
    table = F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1)
