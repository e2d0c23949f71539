"""The two attentions of HAT: within windows, and from windows to larger ones that overlap.

Shape legend: B batch, H x W map (multiples of the window), D features, h heads, c channels of a head (D = h * c),
n tokens of a window, N tokens of a window of keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.dispatch import exporting
from backbones.attention.partition import relative_bias
from backbones.attention.window import overlapping_window_attention, window_attention

if TYPE_CHECKING:
    from apps.superres.models.hat_config import HATConfig

ALIGNMENT = {"cuda": 8}
"""Fused kernels want channels of a head in multiples of this, by kind of device; the published widths are 24 and 30."""


class PositionBias(nn.Module):
    """A learned logit for every head and every offset between a query and a key.

    On a CPU the bias is kept while no gradient is wanted, for as long as the table holds the numbers it was gathered
    from: weights that are loaded, averaged or moved need no further care. A GPU gathers in no time.

    Args:
        window: Side of the window of queries.
        heads: h.
        key_window: Side of the window of keys where it is a larger one.
    """

    def __init__(self, window: int, heads: int, key_window: int | None = None) -> None:
        super().__init__()
        self.window, self.key_window = window, key_window
        self.table = nn.Parameter(torch.empty((window + (key_window or window) - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self._kept: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> PositionBias:
        """Training or evaluation mode; nothing is kept over a change."""
        self._kept = None
        return super().train(mode)

    def forward(self) -> Tensor:
        """The bias, [h, n, N]."""
        if not self._may_keep():
            return relative_bias(self.table, self.window, self.key_window)
        if self._kept is None or not _identical(self._kept[0], self.table):
            self._kept = self.table.detach().clone(), relative_bias(self.table, self.window, self.key_window)
        return self._kept[1]

    def _may_keep(self) -> bool:
        if self.training or torch.is_grad_enabled() or self.table.device.type != "cpu":
            return False
        return not (torch.compiler.is_compiling() or exporting())


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, shifted or not.

    Args:
        config: Sizes of the network.
        heads: h.
        shift: Pixels that the windows are shifted down and to the right. Differs from the original: what a shift
            brought together from different sides of the map is hidden, where theirs adds -100 to its logit.
    """

    def __init__(self, config: HATConfig, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, config.attention_window, shift
        self.scale = config.qk_scale
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.position = PositionBias(self.window, heads)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        q, k, v, scale = _heads(self.qkv(x), self.heads, self.scale)
        mixed = window_attention(q, k, v, window=self.window, shift=self.shift, bias=self.position(), scale=scale)
        return _project(self.out, mixed)


class OverlappingAttention(nn.Module):
    """Multi-head attention from every window to a larger one around it.

    Args:
        config: Sizes of the network.
        heads: h.
    """

    def __init__(self, config: HATConfig, heads: int) -> None:
        super().__init__()
        self.heads, self.window, self.key_window = heads, config.window, config.key_window
        self.scale = config.qk_scale
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.position = PositionBias(self.window, heads, self.key_window)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        q, k, v, scale = _heads(self.qkv(x), self.heads, self.scale)
        mixed = overlapping_window_attention(
            q, k, v, window=self.window, key_window=self.key_window, bias=self.position(), scale=scale
        )
        return _project(self.out, mixed)


def _heads(qkv: Tensor, heads: int, scale: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Queries, keys and values from [B, H, W, 3 * D], [B, H, W, h, c] each, and the factor on the logits.

    Where kernels want it they get channels of zeros, which change no product.
    """
    packed = qkv.unflatten(-1, (3, heads, -1))  # B, H, W, 3, h, c
    channels = packed.shape[-1]
    if lacking := -channels % ALIGNMENT.get(qkv.device.type, 1):
        packed = F.pad(packed, (0, lacking))
    q, k, v = packed.unbind(-3)
    return q, k, v, channels**-0.5 if scale is None else scale


def _project(out: nn.Linear, mixed: Tensor) -> Tensor:
    """[B, H, W, h, c] to [B, H, W, D], without channels of zeros."""
    channels = out.in_features // mixed.shape[-2]
    projected: Tensor = out(mixed[..., :channels].flatten(-2))
    return projected
