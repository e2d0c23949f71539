"""BiFormer: vision transformers whose regions read the few regions they resemble (bi-level routing attention).

Source: Zhu et al. 2023, "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR; official code and weights
at rayleizhu/BiFormer, MIT. Differs: maps are padded wherever they do not fit the regions, so that any image size runs.

Surprises: the number of regions is fixed, so that their size, and the cost, grow with the image; the last stage is full
attention with eight heads whatever the width; the classifier's last norm is a batch norm, all norms of blocks are layer
norms with an epsilon of 1e-6.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.dispatch import exporting
from backbones.vision.base import Stage, VisionBackbone
from backbones.vision.biformer_blocks import NORM_EPS, BiFormerBlock, token_mixer
from backbones.vision.layers import ChannelNorm, drop_path_rates, init_linear
from graftwork.errors import ConfigError
from graftwork.names import unknown

if TYPE_CHECKING:
    from backbones.vision.config import BiFormerConfig

TOPKS = (1, 4, 16, -2)
"""Published token mixing of the four stages."""


def build(
    config: BiFormerConfig,
    *,
    in_channels: int = 3,
    out_indices: Sequence[int] | None = None,
    checkpointing: bool = False,
    output_norms: bool = False,
) -> VisionBackbone:
    """The bare network of a configuration; arguments as in :class:`BiFormer`."""
    facts = config.facts
    family = BiFormerSTL if facts.family == "biformer_stl" else BiFormer
    return family(
        channels=facts.channels,
        depths=facts.values["depths"],
        topks=facts.values["topks"],
        regions=config.regions or facts.values["regions"],
        head_width=facts.values["head_width"],
        mlp_ratio=facts.values["mlp_ratio"],
        drop_path=config.drop_path,
        in_channels=in_channels,
        out_indices=out_indices,
        checkpointing=checkpointing,
        output_norms=output_norms,
    )


class _ChannelsLast(VisionBackbone):
    """Maps have their channels last in memory from the first convolution on: blocks then need no copies."""

    norm_eps = NORM_EPS

    def extract(self, images: Tensor) -> list[Tensor]:
        return super().extract(images if exporting() else images.contiguous(memory_format=torch.channels_last))


class BiFormer(_ChannelsLast):
    """The pyramid of the paper: overlapping convolutions between stages, and one before every block.

    Args:
        channels: Of every stage.
        depths: Blocks of every stage.
        topks: Token mixing of every stage: regions that each region reads, 0 for convolutions, -1 for full attention,
            -2 for full attention with a depthwise convolution beside it.
        regions: Regions per side of a map; one number, or one for every stage.
        head_width: Channels of a head of queries and keys.
        qk_widths: Channels of all heads of queries and keys in every stage; ``channels`` if omitted.
        mlp_ratio: Hidden channels of an MLP per channel; one number, or one for every stage.
        lepe_kernel: Side of the depthwise convolution beside attention; 0 for none.
        position_kernel: Side of the depthwise convolution at the start of blocks; 0 for none.
        layer_scale: Initial factor per channel on residual branches; 0 for no factors.
        mlp_convolution: A depthwise convolution inside MLPs.
        pre_norm: Layer norms before residual branches; otherwise after their addition.
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
        *,
        channels: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        topks: Sequence[int] = TOPKS,
        regions: int | Sequence[int] = 7,
        head_width: int = 32,
        qk_widths: Sequence[int | None] | None = None,
        mlp_ratio: float | Sequence[float] = 3.0,
        lepe_kernel: int = 5,
        position_kernel: int = 3,
        layer_scale: float = 0.0,
        mlp_convolution: bool = False,
        pre_norm: bool = True,
        drop_path: float = 0.0,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
        output_norms: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            strides=[4 * 2**level for level in range(len(channels))],
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels[0] // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels[0] // 2),
            nn.GELU(),
            nn.Conv2d(channels[0] // 2, channels[0], 3, stride=2, padding=1),
            nn.BatchNorm2d(channels[0]),
        )
        self.stages = _stages(
            [
                nn.Sequential(nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide))
                for narrow, wide in pairwise(channels)
            ],
            channels=channels,
            depths=depths,
            topks=topks,
            regions=regions,
            head_width=head_width,
            qk_widths=qk_widths,
            mlp_ratio=mlp_ratio,
            lepe_kernel=lepe_kernel,
            drop_path=drop_path,
            position_kernel=position_kernel,
            layer_scale=layer_scale,
            mlp_convolution=mlp_convolution,
            pre_norm=pre_norm,
        )
        self.apply(init_linear)
        self.finish(output_norms)

    def final_norm(self) -> nn.Module:
        """Batch norm, unlike the layer norms on outputs for dense prediction."""
        return nn.BatchNorm2d(self.level_channels[-1])


class BiFormerSTL(_ChannelsLast):
    """Bi-level routing attention in the layout of Swin-T: patches instead of overlapping convolutions, none in blocks.

    Args:
        channels: As for :class:`BiFormer`, and so are all others but ``norm``.
        depths: See there.
        topks: See there.
        regions: See there.
        head_width: See there.
        mlp_ratio: See there.
        lepe_kernel: See there.
        norm: Norm of the stem, between stages and before the head: ``batch``, or ``channel`` for a layer norm over the
            channels of every position.
        drop_path: See there.
        in_channels: See there.
        out_indices: See there.
        checkpointing: See there.
        output_norms: See there.

    Raises:
        ConfigError: An unknown norm, and see :class:`BiFormer`.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        topks: Sequence[int] = TOPKS,
        regions: int | Sequence[int] = 7,
        head_width: int = 32,
        mlp_ratio: float | Sequence[float] = 4.0,
        lepe_kernel: int = 5,
        norm: str = "batch",
        drop_path: float = 0.0,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
        output_norms: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            strides=[4 * 2**level for level in range(len(channels))],
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.norm = norm
        self.stem = nn.Sequential(PatchConvolution(in_channels, channels[0], 4), _norm(norm, channels[0]))
        self.stages = _stages(
            [
                nn.Sequential(_norm(norm, narrow), PatchConvolution(narrow, wide, 2))
                for narrow, wide in pairwise(channels)
            ],
            channels=channels,
            depths=depths,
            topks=topks,
            regions=regions,
            head_width=head_width,
            mlp_ratio=mlp_ratio,
            lepe_kernel=lepe_kernel,
            drop_path=drop_path,
            position_kernel=0,
        )
        self.apply(init_linear)
        self.finish(output_norms)

    def final_norm(self) -> nn.Module:
        """The kind of norm that stands between stages."""
        return _norm(self.norm, self.level_channels[-1])


class PatchConvolution(nn.Conv2d):
    """A convolution of patches side by side; maps are zero-padded at the bottom and right to whole patches.

    Args:
        narrow: Channels in.
        wide: Channels out.
        patch: Side of a patch.
    """

    def __init__(self, narrow: int, wide: int, patch: int) -> None:
        super().__init__(narrow, wide, patch, stride=patch)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """[B, narrow, H, W] to [B, wide, ceil(H / patch), ceil(W / patch)]."""
        low, right = ((side + self.patch - 1) // self.patch * self.patch - side for side in x.shape[2:])
        return super().forward(F.pad(x, (0, right, 0, low)) if exporting() or low or right else x)


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "channel":
        return ChannelNorm(width, eps=NORM_EPS)
    raise unknown("norm", kind, ("batch", "channel"))


def _stages(
    downsamples: Sequence[nn.Module],
    *,
    channels: Sequence[int],
    depths: Sequence[int],
    topks: Sequence[int],
    regions: int | Sequence[int],
    head_width: int,
    mlp_ratio: float | Sequence[float],
    lepe_kernel: int,
    drop_path: float,
    qk_widths: Sequence[int | None] | None = None,
    **options: Any,
) -> nn.ModuleList:
    """The stages of either family; ``options`` are those of :class:`BiFormerBlock` that all blocks share."""
    count = len(channels)
    sides = [regions] * count if isinstance(regions, int) else list(regions)
    ratios = [mlp_ratio] * count if isinstance(mlp_ratio, int | float) else list(mlp_ratio)
    qk_widths = [None] * count if qk_widths is None else qk_widths
    lists = {"depths": depths, "topks": topks, "regions": sides, "qk_widths": qk_widths, "mlp_ratio": ratios}
    for name, values in lists.items():
        if len(values) != count:
            raise ConfigError(f"{name}={list(values)} must have {count} entries, one for each of channels={channels}")
    stages = []
    for level, rates in enumerate(drop_path_rates(drop_path, list(depths))):
        blocks = []
        for rate in rates:
            mixer = token_mixer(
                channels[level],
                topks[level],
                regions=sides[level],
                head_width=head_width,
                qk_width=qk_widths[level],
                lepe_kernel=lepe_kernel,
            )
            blocks.append(BiFormerBlock(channels[level], mixer, mlp_ratio=ratios[level], drop_path=rate, **options))
        stages.append(Stage(downsamples[level - 1] if level else nn.Identity(), blocks))
    return nn.ModuleList(stages)
