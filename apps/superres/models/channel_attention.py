"""Channel attention and the gated feed-forward network after it, as Restormer brought them to image restoration.

Source: Zamir et al. 2022, "Restormer: Efficient Transformer for High-Resolution Image Restoration", sections 3.1 and
3.2. CRAFT and DLGSANet grew out of it. Their layers here have no bias.

Shape legend: B batch, D features, H x W map. Maps have their channels last in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.channel import projected_channel_attention


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a product of matrices, which maps with their channels last in memory need not be copied for.

    On a CPU that is 1.1 to 3 times faster than the convolution, which is meant for channels second.

    Args:
        inputs: Channels read.
        outputs: Channels written.
        bias: Add a number to each channel.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W], channels last in memory."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


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
        self.q = Pointwise(width, width)
        self.q_depthwise = depthwise(width)
        self.kv = Pointwise(width, 2 * width)
        self.kv_depthwise = depthwise(2 * width)
        self.out = Pointwise(width, width)

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
        self.expand = Pointwise(width, 2 * hidden)
        self.depthwise = depthwise(2 * hidden)
        self.contract = Pointwise(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        gate, value = self.depthwise(self.expand(x)).chunk(2, 1)
        mixed: Tensor = self.contract(F.gelu(gate) * value)
        return mixed


def depthwise(width: int) -> nn.Conv2d:
    """A 3x3 convolution of every channel by itself."""
    return nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
