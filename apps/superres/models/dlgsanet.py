"""DLGSANet: convolutions by dynamic kernels for what is near, sparse channel attention for what is far.

Paper: Li et al., "DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image Super-Resolution",
ICCV 2023. Origin: NeonLeexiang/DLGSANet, Apache-2.0. Three surprises: the number published as heads of the dynamic
convolution is that of the features which share a kernel; the weights of the channel attention are a ReLU of cosines
and sum to nothing in particular; outside of training the attention looks at overlapping crops, see
:class:`~apps.superres.models.dlgsanet_attention.ChannelSelfAttention`.

Shape legend: B batch, D features, H x W map. Features have their channels last in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from apps.superres.models.channel_attention import GatedFeedForward
from apps.superres.models.config_checks import resolved_upsampler
from apps.superres.models.dlgsanet_attention import ChannelSelfAttention, DynamicAttention
from apps.superres.models.network import ResidualTrunk, run_block
from backbones.vision.layers import ChannelNorm

if TYPE_CHECKING:
    from apps.superres.models.dlgsanet_config import DLGSANetConfig
    from apps.superres.models.info import ImageInfo


class Layer(nn.Module):
    """Attention of either kind, then a gated feed-forward network, each after a norm and added.

    Args:
        width: D.
        attention: [B, D, H, W] to the same.
        hidden: Features inside the feed-forward network.
    """

    def __init__(self, width: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.attention_norm = ChannelNorm(width)
        self.attention = attention
        self.mlp_norm = ChannelNorm(width)
        self.mlp = GatedFeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        x = x + self.attention(self.attention_norm(x))
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class Group(nn.Module):
    """Layers and a convolution, added to the input (RHDTG).

    Args:
        config: Sizes of the network.
        depth: Blocks, of one layer for each kind of attention that they have.
        crop: Side of the crops of the channel attention outside of training; None for the whole image.
    """

    def __init__(self, config: DLGSANetConfig, depth: int, crop: int | None) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = []
        for _ in range(depth):
            if config.has_local_layers:
                local = DynamicAttention(width, config.kernel, config.group_width, config.squeeze, config.dynamic)
                layers.append(Layer(width, local, config.hidden))
            if config.has_global_layers:
                channels = ChannelSelfAttention(width, config.heads, config.global_activation, crop)
                layers.append(Layer(width, channels, config.global_hidden))
        self.layers = nn.ModuleList(layers)
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.checkpointing = config.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        y = x
        for layer in self.layers:
            y = run_block(layer, y, self.checkpointing)
        return x + self.convolution(y)


class DLGSANet(ResidualTrunk):
    """DLGSANet for one scale.

    Args:
        config: Sizes of the network.
        info: Scale and channels.
    """

    def __init__(self, config: DLGSANetConfig, info: ImageInfo) -> None:
        super().__init__(
            info,
            width=config.width,
            upsampler=resolved_upsampler(config.upsampler, "light", info),
            image_range=config.image_range,
            shallow_bias=False,
            # The channel attention compares maps of the whole image, or of crops that lie by its borders.
            receptive_radius=None,
        )
        self.config = config
        crop = config.resolved_crop(info.scale)
        groups = [Group(config, depth, crop) for depth in config.depths]
        norms = [ChannelNorm(config.width) for _ in range(2 * config.body_norm)]
        # Numbered as official weights are, so that norms shift the groups' numbers by one.
        self.body = nn.Sequential(*norms[:1], *groups, *norms[1:])
        self.after_body = nn.Conv2d(config.width, config.width, 3, padding=1)

    def deep(self, shallow: Tensor) -> Tensor:
        """Deep features, [B, D, H, W] to the same."""
        features: Tensor = self.after_body(self.body(shallow))
        return features
