"""Blocks of BiFormer: three kinds of token mixing, and an MLP.

Shape legend: B batch, H height, W width, C channels, h heads. Everything here has the channels last, [B, H, W, C],
except for whole blocks, whose maps are [B, C, H, W] with the memory of the former.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.attend import attend
from backbones.attention.dispatch import exporting
from backbones.attention.routed import padded_size, region_routes, routed_attention
from backbones.vision.layers import DropPath, Mlp
from graftwork.errors import ConfigError

NORM_EPS = 1e-6
"""Of layer norms."""
FULL_HEADS = 8
"""Heads of full attention, whatever the width."""


class DepthwiseConvolution(nn.Conv2d):
    """A filter per channel, zero-padded to keep the size: [B, H, W, C] to the same.

    Args:
        width: Channels, C.
        kernel: Side of the filters, odd.

    Raises:
        ConfigError: An even kernel, which cannot keep the size.
    """

    def __init__(self, width: int, kernel: int) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"the kernel of a depthwise convolution must be odd, got {kernel}")
        super().__init__(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """Filter every channel by itself."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class RoutedAttention(nn.Module):
    """Bi-level routing attention with a convolution of the values beside it.

    Maps that cannot be cut into the regions are zero-padded at the bottom and right before the projection; the padded
    positions then have the projection's biases for keys and values, count in region means and in the softmax, and are
    cut off at the end.

    Args:
        width: Channels, C.
        heads: Heads; both widths are multiples of it.
        regions: Regions per side (rows and columns), not their size.
        topk: Regions that each region reads.
        qk_width: Channels of all heads of queries and of keys; ``width`` if omitted.
        lepe_kernel: Side of the local enhancement of positions, a depthwise convolution of the values; 0 for none.

    Raises:
        ConfigError: Widths that the heads do not divide, ``topk`` above the number of regions, an even kernel.

    Source: Zhu et al. 2023, section 3.2.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        regions: int | tuple[int, int],
        topk: int,
        qk_width: int | None = None,
        lepe_kernel: int = 5,
    ) -> None:
        super().__init__()
        self.qk_width = qk_width or width
        self.heads, self.topk, self.regions = heads, topk, regions
        rows, columns = (regions, regions) if isinstance(regions, int) else regions
        if rows < 1 or columns < 1 or not 1 <= topk <= rows * columns:
            raise ConfigError(f"topk={topk} must be between 1 and the {rows * columns} regions of regions={regions}")
        if heads < 1 or width % heads or self.qk_width % heads:
            raise ConfigError(f"{heads} heads do not divide the widths {width} and {self.qk_width}")
        self.qkv = nn.Linear(width, 2 * self.qk_width + width)
        self.lepe = DepthwiseConvolution(width, lepe_kernel) if lepe_kernel > 0 else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to the same."""
        height, width = x.shape[1:3]
        q, k, v = self._project(x)
        mixed = routed_attention(q, k, v, regions=self.regions, topk=self.topk).flatten(3)  # B, H, W, C
        if self.lepe is not None:
            mixed = mixed + self.lepe(v.flatten(3))
        out: Tensor = self.out(mixed)
        return out[:, :height, :width]

    def routes(self, x: Tensor) -> Tensor:
        """The regions that each region of a map reads, [B, regions, topk], best first."""
        q, k, _ = self._project(x)
        return region_routes(q, k, self.regions, self.topk)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pad, project and part into heads: queries, keys and values, [B, H, W, h, channels] each."""
        high, wide = padded_size(x.shape[1], x.shape[2], self.regions)
        if exporting() or (high, wide) != tuple(x.shape[1:3]):
            x = F.pad(x, (0, 0, 0, wide - x.shape[2], 0, high - x.shape[1]))
        widths = (self.qk_width, self.qk_width, self.out.in_features)
        q, k, v = (part.unflatten(3, (self.heads, -1)) for part in self.qkv(x).split(widths, dim=3))
        return q, k, v

    def extra_repr(self) -> str:
        """What the layers inside do not tell."""
        return f"heads={self.heads}, regions={self.regions}, topk={self.topk}"


class FullAttention(nn.Module):
    """Softmax attention over all positions, eight heads, no bias on the projection of queries, keys and values.

    Args:
        width: Channels, C, a multiple of eight.
        lepe_kernel: Side of a depthwise convolution beside it; 0 for none. It sees the input, not the values as in
            :class:`RoutedAttention`.

    Raises:
        ConfigError: A width that eight heads do not divide, an even kernel.
    """

    def __init__(self, width: int, *, lepe_kernel: int = 0) -> None:
        super().__init__()
        if width % FULL_HEADS:
            raise ConfigError(f"full attention has {FULL_HEADS} heads, which do not divide the width {width}")
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.lepe = DepthwiseConvolution(width, lepe_kernel) if lepe_kernel > 0 else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to the same."""
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(2, (3, FULL_HEADS, -1)).unbind(2)  # B, H * W, h, c
        mixed = attend(q, k, v).flatten(2).view(x.shape)
        if self.lepe is not None:
            mixed = mixed + self.lepe(x)
        out: Tensor = self.out(mixed)
        return out


class ConvolutionMixer(nn.Module):
    """In the place of attention: linear, depthwise convolution, linear. [B, H, W, C] to the same.

    Args:
        width: Channels, C.
        kernel: Side of the filters.
    """

    def __init__(self, width: int, kernel: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(width, width)
        self.depthwise = DepthwiseConvolution(width, kernel)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every position with those near it."""
        mixed: Tensor = self.leave(self.depthwise(self.enter(x)))
        return mixed


class ConvolutionMlp(Mlp):
    """An MLP with a depthwise convolution before its activation, [B, H, W, C] to the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.depthwise = DepthwiseConvolution(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels, and the hidden ones with their neighbours."""
        mixed: Tensor = self.contract(F.gelu(self.depthwise(self.expand(x))))
        return mixed


class BiFormerBlock(nn.Module):
    """Convolution of positions, token mixing and MLP, each with a residual connection.

    Args:
        width: Channels, C.
        mixer: Token mixing, [B, H, W, C] to the same; see :func:`token_mixer`.
        mlp_ratio: Hidden channels of the MLP per channel.
        position_kernel: Side of the depthwise convolution before everything else; 0 for none.
        layer_scale: Initial factor per channel on both branches; 0 for no factors.
        mlp_convolution: A depthwise convolution inside the MLP.
        pre_norm: Layer norm before each branch; otherwise after its addition.
        drop_path: Share of samples that skip a branch in training.
    """

    def __init__(
        self,
        width: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 3.0,
        position_kernel: int = 3,
        layer_scale: float = 0.0,
        mlp_convolution: bool = False,
        pre_norm: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.position = DepthwiseConvolution(width, position_kernel) if position_kernel > 0 else None
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = mixer
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = (ConvolutionMlp if mlp_convolution else Mlp)(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)
        self.attention_scale = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale > 0 else None
        self.mlp_scale = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        x = x.permute(0, 2, 3, 1).contiguous()  # B, H, W, C; no copy but of foreign maps
        if self.position is not None:
            x = x + self.position(x)
        x = self._add(x, self.attention_norm, self.attention, self.attention_scale)
        x = self._add(x, self.mlp_norm, self.mlp, self.mlp_scale)
        return x.permute(0, 3, 1, 2)

    def _add(self, x: Tensor, norm: nn.Module, branch: nn.Module, scale: Tensor | None) -> Tensor:
        found = branch(norm(x) if self.pre_norm else x)
        total: Tensor = x + self.drop_path(found if scale is None else scale * found)
        return total if self.pre_norm else norm(total)


def token_mixer(
    width: int, topk: int, *, regions: int, head_width: int = 32, qk_width: int | None = None, lepe_kernel: int = 5
) -> nn.Module:
    """The token mixing of a stage.

    Args:
        width: Channels, C.
        topk: Above 0, regions that each region reads; 0 for convolutions, -1 for full attention, -2 for full attention
            with a depthwise convolution beside it.
        regions: Regions per side.
        head_width: Channels of a head of queries and keys.
        qk_width: Channels of all of them; ``width`` if omitted.
        lepe_kernel: Side of the depthwise convolution beside attention; 0 for none.

    Raises:
        ConfigError: Another ``topk``, or numbers that do not fit each other.
    """
    if topk > 0:
        heads = (qk_width or width) // head_width
        return RoutedAttention(
            width, heads=heads, regions=regions, topk=topk, qk_width=qk_width, lepe_kernel=lepe_kernel
        )
    if topk == 0:
        return ConvolutionMixer(width)
    if topk in (-1, -2):
        return FullAttention(width, lepe_kernel=lepe_kernel if topk == -2 else 0)
    raise ConfigError(f"topk={topk} must be a number of regions, 0, -1 or -2")
