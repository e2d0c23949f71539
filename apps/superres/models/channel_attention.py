"""Channel attention and the gated feed-forward network after it, as Restormer brought them to image restoration.

Source: Zamir et al. 2022, "Restormer: Efficient Transformer for High-Resolution Image Restoration", sections 3.1 and
3.2. CRAFT and DLGSANet grew out of it. No layer here has a bias.

Shape legend: B batch, D features, H x W map. Maps have their channels last in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.channel import projected_channel_attention


class ChannelCrossAttention(nn.Module):
    """Channels of one map attend to those of another, each map projected by a 1x1 and a depth-wise convolution.

    Args:
        width: D.
        heads: Heads, each of ``width / heads`` channels.
        activation: What makes weights of cosines, a name of :data:`backbones.attention.channel.ACTIVATIONS`.
    """

    def __init__(self, width: int, heads: int, activation: str = "softmax") -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = nn.Conv2d(width, width, 1, bias=False)
        self.q_depthwise = depthwise(width)
        self.kv = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.kv_depthwise = depthwise(2 * width)
        self.out = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Read from ``keys`` what ``queries`` ask for: [B, D, H, W] each, to the same."""
        q = self.q_depthwise(self.q(queries))
        k, v = self.kv_depthwise(self.kv(keys)).chunk(2, 1)
        return projected_channel_attention(
            q, k, v, self.temperature, self.out.weight, heads=self.heads, activation=self.activation
        )


class GatedFeedForward(nn.Module):
    """Feed-forward network of which one half gates the other, with a depth-wise convolution before.

    Args:
        width: D.
        hidden: Features of each half.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * hidden, 1, bias=False)
        self.depthwise = depthwise(2 * hidden)
        self.contract = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        gate, value = self.depthwise(self.expand(x)).chunk(2, 1)
        mixed: Tensor = self.contract(F.gelu(gate) * value)
        return mixed


def depthwise(width: int) -> nn.Conv2d:
    """A 3x3 convolution of every channel by itself."""
    return nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
