"""Layers of NAT and DiNAT: attention to neighborhoods, its block, tokenizers and downsamplers.

Shape legend: B batch, C channels, H height, W width, h heads. Blocks have the channels last, [B, H, W, C].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.dispatch import exporting
from backbones.attention.neighborhood import cropped, lacking, neighborhood_attention, padding
from backbones.vision.layers import DropPath, Mlp
from graftwork.errors import ConfigError


class NeighborhoodAttention(nn.Module):
    """Attention of every position to its neighborhood, with a table of biases by relative position.

    A map with a side below ``kernel_size * dilation`` is zero-padded at the bottom and right before the projection, so
    that the padded positions have its bias as keys and values; they count in the softmax and are cut off at the end.

    Args:
        width: Channels, C.
        heads: Heads, a divisor of ``width``.
        kernel_size: Side of the neighborhood, odd.
        dilation: Step between neighbours; None takes on every axis the largest that the map allows.
        qkv_bias: The projection of queries, keys and values has a bias.
        scale: Factor on the products of queries and keys; (C / h) ** -0.5 if omitted.

    Raises:
        ConfigError: The heads do not divide the width.

    Source: Hassani et al. 2023, section 3; Hassani and Shi 2022, section 3.2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kernel_size: int,
        dilation: int | None = 1,
        *,
        qkv_bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"{heads} heads do not divide the width {width}")
        self.heads, self.kernel_size, self.dilation, self.scale = heads, kernel_size, dilation, scale
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.empty(heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.rpb._no_weight_decay = True  # type: ignore[attr-defined]
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def steps(self, height: int, width: int) -> tuple[int, int]:
        """Dilation along rows and columns of a map of that size."""
        if self.dilation is not None:
            return self.dilation, self.dilation
        return max(1, height // self.kernel_size), max(1, width // self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to the same."""
        height, width = x.shape[1:3]
        steps = self.steps(height, width)
        below, right = padding(height, width, self.kernel_size, steps)
        if lacking(below, right):
            x = F.pad(x, (0, 0, 0, right, 0, below))
        q, k, v = self.qkv(x).unflatten(3, (3, self.heads, -1)).unbind(3)  # B, H, W, h, C / h
        mixed = neighborhood_attention(
            q, k, v, kernel_size=self.kernel_size, dilation=steps, bias=self.rpb, scale=self.scale
        )
        out: Tensor = self.out(cropped(mixed, height, width).flatten(3))
        return out

    def extra_repr(self) -> str:
        """What the layers inside do not tell."""
        dilation = "auto" if self.dilation is None else self.dilation
        return f"heads={self.heads}, kernel_size={self.kernel_size}, dilation={dilation}"


class NeighborhoodBlock(nn.Module):
    """Attention and MLP, each after a norm, with a residual connection: [B, H, W, C] to the same.

    Args:
        width: Channels, C.
        attention: Mixes positions.
        mlp_ratio: Hidden channels of the MLP per channel.
        layer_scale: Initial factor per channel on both branches; 0 for no factors.
        drop_path: Share of samples that skip a branch in training.
    """

    def __init__(
        self, width: int, attention: nn.Module, *, mlp_ratio: float, layer_scale: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.attention_scale: nn.Parameter | None = None
        self.mlp_scale: nn.Parameter | None = None
        if layer_scale:
            self.attention_scale = nn.Parameter(torch.full((width,), layer_scale))
            self.mlp_scale = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then channels."""
        x = x + self.drop_path(_scaled(self.attention(self.attention_norm(x)), self.attention_scale))
        return x + self.drop_path(_scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale))


def _scaled(branch: Tensor, factors: Tensor | None) -> Tensor:
    return branch if factors is None else branch * factors


class ConvolutionTokenizer(nn.Module):
    """Two overlapping convolutions, with nothing between them, and a norm.

    Images [B, channels, H, W] to tokens [B, ceil(H / 4), ceil(W / 4), width].
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width // 2, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Cut images into tokens."""
        x = self.first(images if exporting() else images.contiguous(memory_format=torch.channels_last))
        tokens: Tensor = self.norm(self.second(x).permute(0, 2, 3, 1))  # B, H, W, C
        return tokens


class PatchTokenizer(nn.Module):
    """Patches that do not overlap, zero-padded at the bottom and right where the last one is not full, and a norm.

    Images [B, channels, H, W] to tokens [B, ceil(H / patch), ceil(W / patch), width].

    Args:
        channels: Of the images.
        width: Channels of tokens.
        patch: Side of a patch, in pixels.
        norm: Layer norm on the tokens.
    """

    def __init__(self, channels: int, width: int, patch: int, norm: bool = True) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Cut images into tokens."""
        below, right = ((side + self.patch - 1) // self.patch * self.patch - side for side in images.shape[2:])
        if lacking(below, right):
            images = F.pad(images, (0, right, 0, below))
        tokens: Tensor = self.norm(self.projection(images).permute(0, 2, 3, 1))  # B, H, W, C
        return tokens


class ConvolutionDownsampler(nn.Module):
    """Overlapping convolution without bias that halves the sides, and a norm: [B, H, W, C] to [B, H / 2, W / 2, C']."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides, rounded up."""
        halved: Tensor = self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return halved


class PatchMerging(nn.Module):
    """Four neighbouring tokens made one, as in Swin: [B, H, W, C] to [B, H / 2, W / 2, C'], odd sides zero-padded."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * narrow)
        self.reduction = nn.Linear(4 * narrow, wide, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides, rounded up."""
        below, right = ((side + 1) // 2 * 2 - side for side in x.shape[1:3])
        if lacking(below, right):
            x = F.pad(x, (0, 0, 0, right, 0, below))
        squares = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # B, H / 2, 2, W / 2, 2, C
        halved: Tensor = self.reduction(self.norm(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return halved
