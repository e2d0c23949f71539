"""HAT: window attention, channel attention and overlapping cross-attention in one block each.

Papers: Chen et al., "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023, and "HAT: Hybrid
Attention Transformer for Image Restoration", 2023. Origin: XPixelGroup/HAT, Apache-2.0. Three surprises: stochastic
depth leaves the convolutional branch alone, which a small constant scales; zeros around the map take part in the
cross-attention, while in shifted windows pairs across the border are all but hidden; the shallow features are
normalised before the first group, yet the long skip takes them as they are.

Shape legend: B batch, D features, H x W map. Tokens are [B, H, W, D] throughout, which for convolutions is a map with
its channels last in memory, so that nothing is copied between the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.config_checks import resolved_upsampler
from apps.superres.models.hat_attention import OverlappingAttention, WindowAttention
from apps.superres.models.network import ResidualTrunk, run_block
from backbones.vision.layers import DropPath, Mlp, drop_path_rates, init_linear

if TYPE_CHECKING:
    from apps.superres.models.hat_config import HATConfig
    from apps.superres.models.info import ImageInfo


class ChannelAttentionConvolutions(nn.Module):
    """Two convolutions whose channels are weighted by their means over the image.

    Args:
        width: D.
        compress: D divided by this lies between the convolutions.
        squeeze: D divided by this lies between mean and weight.
        scale: Constant factor on the result.
    """

    def __init__(self, width: int, compress: int, squeeze: int, scale: float) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // compress, 3, padding=1)
        self.expand = nn.Conv2d(width // compress, width, 3, padding=1)
        self.squeeze = nn.Conv2d(width, width // squeeze, 1)
        self.excite = nn.Conv2d(width // squeeze, width, 1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        maps = self.expand(F.gelu(self.reduce(x.permute(0, 3, 1, 2))))  # B, D, H, W
        means = maps.mean((2, 3), keepdim=True)
        # The constant scales a number per channel instead of the map.
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(means)))) * self.scale
        return (maps * weights).permute(0, 2, 3, 1)


class HybridBlock(nn.Module):
    """Window attention beside channel attention, then a feed-forward network.

    Args:
        config: Sizes of the network.
        heads: Heads of the attention.
        shift: Pixels that the windows are shifted.
        drop_path: Share of samples whose attention and feed-forward network are left out in training.
    """

    def __init__(self, config: HATConfig, heads: int, shift: int, drop_path: float = 0.0) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = WindowAttention(config, heads, shift)
        self.convolutions = ChannelAttentionConvolutions(width, config.compress, config.squeeze, config.conv_scale)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        normed = self.attention_norm(x)
        x = x + self.drop_path(self.attention(normed)) + self.convolutions(normed)
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


class OverlappingBlock(nn.Module):
    """Overlapping cross-attention, then a feed-forward network.

    Args:
        config: Sizes of the network.
        heads: Heads of the attention.
    """

    def __init__(self, config: HATConfig, heads: int) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = OverlappingAttention(config, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        x = x + self.attention(self.attention_norm(x))
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class Group(nn.Module):
    """Hybrid blocks, an overlapping one and a convolution, added to the input.

    Args:
        config: Sizes of the network.
        heads: Heads of the attentions.
        drop_paths: Share of samples left out by every hybrid block; their number is the group's depth.
    """

    def __init__(self, config: HATConfig, heads: int, drop_paths: list[float]) -> None:
        super().__init__()
        # Windows as large as the images of training have no neighbours to be shifted to.
        shift = config.window // 2 if config.image_size > config.window else 0
        self.blocks = nn.ModuleList(
            HybridBlock(config, heads, shift if index % 2 else 0, rate) for index, rate in enumerate(drop_paths)
        )
        self.overlapping = OverlappingBlock(config, heads)
        self.convolution = _ending(config)
        self.checkpointing = config.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        y = x
        for block in (*self.blocks, self.overlapping):
            y = run_block(block, y, self.checkpointing)
        return x + self.convolution(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AbsolutePositions(nn.Module):
    """Adds a learned vector to every position of a map.

    Differs from the original, which takes maps of one size only: for those of another size the vectors are resized.

    Args:
        size: Height and width of the map.
        width: D.
    """

    def __init__(self, size: tuple[int, int], width: int) -> None:
        super().__init__()
        self.size = tuple(size)
        self.table = nn.Parameter(torch.empty(1, math.prod(size), width))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.table._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        vectors = self.table.unflatten(1, self.size)  # 1, h, w, D
        if x.shape[1:3] != self.size:
            vectors = F.interpolate(vectors.permute(0, 3, 1, 2), x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        return x + vectors


class HAT(ResidualTrunk):
    """HAT for one scale.

    Args:
        config: Sizes of the network.
        info: Scale and channels.
    """

    def __init__(self, config: HATConfig, info: ImageInfo) -> None:
        super().__init__(
            info,
            width=config.width,
            upsampler=resolved_upsampler(config.upsampler, "classical", info),
            image_range=config.image_range,
            # The channel attention averages over the whole image.
            receptive_radius=None,
            tile_multiple=math.lcm(config.window, config.attention_window),
        )
        self.config = config
        rates = drop_path_rates(config.drop_path, config.depths)
        self.patch_norm = nn.LayerNorm(config.width) if config.patch_norm else nn.Identity()
        places = config.absolute_positions
        self.positions = AbsolutePositions(places, config.width) if places else nn.Identity()
        self.groups = nn.ModuleList(
            Group(config, heads, group_rates) for heads, group_rates in zip(config.group_heads, rates, strict=True)
        )
        self.norm = nn.LayerNorm(config.width)
        self.after_body = _ending(config)
        self.groups.apply(init_linear)

    def deep(self, shallow: Tensor) -> Tensor:
        """Deep features, [B, D, H, W] to the same."""
        x = self.positions(self.patch_norm(shallow.permute(0, 2, 3, 1)))  # B, H, W, D
        for group in self.groups:
            x = group(x)
        features: Tensor = self.after_body(self.norm(x).permute(0, 3, 1, 2))
        return features


def _ending(config: HATConfig) -> nn.Module:
    """The convolution at the end of a group and of the body, [B, D, H, W] to the same."""
    if not config.group_convolution:
        return nn.Identity()
    return nn.Conv2d(config.width, config.width, 3, padding=1)
