"""CRAFT: attention in rectangles and convolutions for high frequencies side by side, joined by channel attention.

Paper: Li et al., "Feature Modulation Transformer: Cross-Refinement of Global Representation via High-Frequency Prior
for Image Super-Resolution", ICCV 2023. Origin: AVC2-UESTC/CRAFT-SR, Apache-2.0. Four surprises: shifted rectangles wrap
around the map and nothing is hidden; the published size has no position bias in effect, see
:class:`~apps.superres.models.craft_attention.PositionNetwork`; both paths read the same input and no residual leads
around a step; the queries of the channel attention are not normalised as the keys are.

Shape legend: B batch, D features, H x W map. Tokens are [B, H, W, D] throughout, which for convolutions is a map with
its channels last in memory, so that nothing is copied between the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apps.superres.models.channel_attention import ChannelCrossAttention, GatedFeedForward, Pointwise
from apps.superres.models.config_checks import resolved_upsampler
from apps.superres.models.craft_attention import RectangleAttention
from apps.superres.models.network import ResidualTrunk
from backbones.vision.layers import Mlp, init_linear

if TYPE_CHECKING:
    from apps.superres.models.craft_config import CRAFTConfig
    from apps.superres.models.info import ImageInfo


class RectangleBlock(nn.Module):
    """Attention in rectangles, then a feed-forward network (SRWAB).

    Args:
        config: Sizes of the network.
        heads: Heads of the attention.
        shifted: Whether the rectangles are shifted by half their sides.
    """

    def __init__(self, config: CRAFTConfig, heads: int, shifted: bool) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = RectangleAttention(config, heads, shifted)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        x = x + self.attention(self.attention_norm(x))
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class FrequencyBlock(nn.Module):
    """High frequencies: one half of the features by a convolution, the other by the brightest neighbours (HFERB).

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.peaks = Pointwise(width // 2, width // 2, bias=True)
        self.out = Pointwise(width, width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        near, sharp = x.permute(0, 3, 1, 2).chunk(2, 1)
        sharp = F.max_pool2d(sharp, 3, stride=1, padding=1)
        high = F.gelu(torch.cat((self.convolution(near), self.peaks(sharp)), 1))
        return x + self.out(high).permute(0, 2, 3, 1)


class FusionBlock(nn.Module):
    """Refines low frequencies by what high ones ask of them, then a gated feed-forward network (HFB).

    Args:
        config: Sizes of the network.
        heads: Heads of the channel attention.
    """

    def __init__(self, config: CRAFTConfig, heads: int) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = ChannelCrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = GatedFeedForward(width, int(width * config.gate_ratio))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """[B, H, W, D] each, to the same."""
        keys = self.attention_norm(low).permute(0, 3, 1, 2)
        x = low + self.attention(high.permute(0, 3, 1, 2), keys).permute(0, 2, 3, 1)
        hidden = self.mlp(self.mlp_norm(x).permute(0, 3, 1, 2))
        return x + hidden.permute(0, 2, 3, 1)


class Group(nn.Module):
    """Steps of two rectangle blocks beside a frequency block and the fusion of both, and a convolution (RCRFG).

    Args:
        config: Sizes of the network.
        depth: Steps.
        heads: Heads of all attentions.
    """

    def __init__(self, config: CRAFTConfig, depth: int, heads: int) -> None:
        super().__init__()
        # Numbered through, as in official weights: two rectangle blocks belong to a step.
        self.rectangles = nn.ModuleList(RectangleBlock(config, heads, bool(index % 2)) for index in range(2 * depth))
        self.frequencies = nn.ModuleList(FrequencyBlock(config.width) for _ in range(depth))
        self.fusions = nn.ModuleList(FusionBlock(config, heads) for _ in range(depth))
        self.convolution = _ending(config)
        self.checkpointing = config.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        y = x
        for index in range(len(self.fusions)):
            if self.checkpointing and torch.is_grad_enabled():
                y = checkpoint(self.step, index, y, use_reentrant=False)
            else:
                y = self.step(index, y)
        return x + self.convolution(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def step(self, index: int, x: Tensor) -> Tensor:
        """One step, [B, H, W, D] to the same."""
        low = self.rectangles[2 * index + 1](self.rectangles[2 * index](x))
        fused: Tensor = self.fusions[index](low, self.frequencies[index](x))
        return fused


class CRAFT(ResidualTrunk):
    """CRAFT for one scale.

    Args:
        config: Sizes of the network.
        info: Scale and channels.
    """

    def __init__(self, config: CRAFTConfig, info: ImageInfo) -> None:
        super().__init__(
            info,
            width=config.width,
            upsampler=resolved_upsampler(config.upsampler, "light", info),
            image_range=config.image_range,
            # The channel attention compares maps of the whole image.
            receptive_radius=None,
            tile_multiple=math.lcm(*config.window),
        )
        self.config = config
        self.groups = nn.ModuleList(
            Group(config, depth, heads) for depth, heads in zip(config.depths, config.group_heads, strict=True)
        )
        self.norm = nn.LayerNorm(config.width)
        self.after_body = _ending(config)
        self.groups.apply(init_linear)

    def deep(self, shallow: Tensor) -> Tensor:
        """Deep features, [B, D, H, W] to the same."""
        x = shallow.permute(0, 2, 3, 1)  # B, H, W, D
        for group in self.groups:
            x = group(x)
        features: Tensor = self.after_body(self.norm(x).permute(0, 3, 1, 2))
        return features


def _ending(config: CRAFTConfig) -> nn.Module:
    """The convolution at the end of a group and of the body, [B, D, H, W] to the same."""
    if not config.group_convolution:
        return nn.Identity()
    return nn.Conv2d(config.width, config.width, 3, padding=1)
