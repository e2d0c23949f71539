"""NAT and DiNAT: pyramids whose positions attend to their neighborhoods, dilated in every second block of DiNAT.

Source: Hassani et al. 2023, "Neighborhood Attention Transformer", CVPR, and Hassani and Shi 2022, "Dilated Neighborhood
Attention Transformer"; official code and weights at SHI-Labs/Neighborhood-Attention-Transformer, MIT. Differs: no
compiled operator is needed, and images of any size run.

Surprises: dilations are a setting of the task and no part of the weights, see ``dinat_dilations``; a map too small for
a dilated window is zero-padded before the projection, so that the padding is seen; the two convolutions of the
tokenizer have neither norm nor activation between them.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.vision.base import Stage, VisionBackbone
from backbones.vision.dinat_blocks import (
    ConvolutionDownsampler,
    ConvolutionTokenizer,
    NeighborhoodAttention,
    NeighborhoodBlock,
    PatchMerging,
    PatchTokenizer,
)
from backbones.vision.dinat_dilations import Levels, block_dilations
from backbones.vision.layers import drop_path_rates, init_linear
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from backbones.vision.config import DiNATConfig


def build(
    config: DiNATConfig,
    *,
    in_channels: int = 3,
    out_indices: Sequence[int] | None = None,
    checkpointing: bool = False,
    output_norms: bool = False,
) -> VisionBackbone:
    """The bare network of a configuration; arguments as in :class:`DiNAT`."""
    facts = config.facts
    values = facts.values
    family = {"dinat_s": DiNAT_s, "dinat_isotropic": DiNATIsotropic}.get(facts.family, DiNAT)
    return family(
        width=facts.channels[0],
        depths=values["depths"],
        heads=values["heads"],
        kernel_size=values["kernel_size"],
        dilations=block_dilations(
            config.dilations,
            depths=values["depths"],
            strides=facts.strides,
            kernel_size=values["kernel_size"],
            image_size=facts.image_size,
            dilated=values["dilated"],
        ),
        mlp_ratio=values["mlp_ratio"],
        layer_scale=values.get("layer_scale", 0.0),
        drop_path=config.drop_path,
        in_channels=in_channels,
        out_indices=out_indices,
        checkpointing=checkpointing,
        output_norms=output_norms,
    )


class NeighborhoodPyramid(VisionBackbone):
    """What the three layouts share: blocks, and maps with channels last inside.

    Args:
        stem: From images [B, in_channels, H, W] to tokens [B, H, W, width].
        stride: Side of what a token of the first level stands for, in pixels.
        downsampler: Makes the layer between two levels, from the channels of both.
        width: Channels of the first level; they double from level to level.
        depths: Blocks of every level.
        heads: Attention heads of every level.
        kernel_size: Side of the neighborhood, odd.
        dilations: Dilation of every block, a list per level, short lists repeat; None inside takes the largest that the
            map allows, and None altogether is 1 everywhere.
        mlp_ratio: Hidden channels of an MLP per channel.
        layer_scale: Initial factor per channel on residual branches; 0 for no factors.
        qkv_bias: Projections of queries, keys and values have a bias.
        scale: Factor on the products of queries and keys; (channels of a head) ** -0.5 if omitted.
        drop_path: Share of samples that skip a branch of the last block, growing linearly from 0 over the blocks.
        in_channels: See :class:`backbones.vision.base.VisionBackbone`.
        out_indices: See there.
        checkpointing: See there.
        output_norms: Layer norms on the returned maps.

    Raises:
        ConfigError: Lists of different lengths, or numbers that do not fit each other.
    """

    def __init__(
        self,
        stem: nn.Module,
        stride: int,
        downsampler: Callable[[int, int], nn.Module],
        *,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int | None]] | None = None,
        mlp_ratio: float = 3.0,
        layer_scale: float = 0.0,
        qkv_bias: bool = True,
        scale: float | None = None,
        drop_path: float = 0.0,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
        output_norms: bool = False,
    ) -> None:
        levels = range(len(depths))
        super().__init__(
            in_channels=in_channels,
            channels=[width * 2**level for level in levels],
            strides=[stride * 2**level for level in levels],
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        steps = _dilations(dilations, depths)
        if len(heads) != len(depths):
            raise ConfigError(f"heads={tuple(heads)} must name as many levels as depths={tuple(depths)}")
        self.stem = stem
        downsamples = [nn.Identity(), *(downsampler(*pair) for pair in pairwise(self.level_channels))]
        rates = drop_path_rates(drop_path, tuple(depths))
        stages = []
        for level, channels in enumerate(self.level_channels):
            blocks = []
            for dilation, rate in zip(steps[level], rates[level], strict=True):
                attention = NeighborhoodAttention(
                    channels, heads[level], kernel_size, dilation, qkv_bias=qkv_bias, scale=scale
                )
                block = NeighborhoodBlock(
                    channels, attention, mlp_ratio=mlp_ratio, layer_scale=layer_scale, drop_path=rate
                )
                blocks.append(block)
            stages.append(Stage(downsamples[level], blocks))
        self.stages = nn.ModuleList(stages)
        self.finish(output_norms)
        self.apply(init_linear)

    def to_map(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, C, H, W], without moving memory."""
        return x.permute(0, 3, 1, 2)

    def fit_tensor(self, name: str, found: Tensor, wanted: Tensor) -> Tensor | None:
        """Tables of biases of another kernel are interpolated, bicubically as is custom for Swin."""
        if not name.endswith(".attention.rpb") or found.dim() != 3 or found.shape[0] != wanted.shape[0]:
            return None
        return F.interpolate(found[None].float(), size=wanted.shape[1:], mode="bicubic")[0].to(found.dtype)


class DiNAT(NeighborhoodPyramid):
    """The pyramid of both papers, with overlapping convolutions; NAT where every dilation is 1.

    Args:
        width: Channels of the first level.
        in_channels: Channels of the images.
        options: See :class:`NeighborhoodPyramid`.
    """

    def __init__(self, *, width: int = 64, in_channels: int = 3, **options: Any) -> None:
        stem = ConvolutionTokenizer(in_channels, width)
        super().__init__(stem, 4, ConvolutionDownsampler, width=width, in_channels=in_channels, **options)


class DiNAT_s(NeighborhoodPyramid):
    """DiNAT in the layout of Swin: patches that do not overlap, and merging of 2 x 2 tokens between levels.

    Args:
        width: Channels of the first level.
        patch: Side of a patch, in pixels.
        patch_norm: Layer norm on the first tokens.
        in_channels: Channels of the images.
        options: See :class:`NeighborhoodPyramid`.
    """

    def __init__(
        self, *, width: int = 96, patch: int = 4, patch_norm: bool = True, in_channels: int = 3, **options: Any
    ) -> None:
        stem = PatchTokenizer(in_channels, width, patch, patch_norm)
        super().__init__(stem, patch, PatchMerging, width=width, in_channels=in_channels, **options)


class DiNATIsotropic(DiNAT_s):
    """One level all the way, as in ViT.

    Args:
        width: Channels.
        patch: Side of a patch, in pixels.
        options: See :class:`DiNAT_s`.
    """

    def __init__(self, *, width: int = 384, patch: int = 16, **options: Any) -> None:
        super().__init__(width=width, patch=patch, **options)


def _dilations(dilations: Sequence[Sequence[int | None]] | None, depths: Sequence[int]) -> Levels:
    if dilations is None:
        return [[1] * depth for depth in depths]
    if len(dilations) != len(depths) or not all(dilations):
        raise ConfigError(f"dilations={dilations} must be a list for each of the levels of depths={tuple(depths)}")
    return [
        [level[block % len(level)] for block in range(depth)] for level, depth in zip(dilations, depths, strict=True)
    ]
