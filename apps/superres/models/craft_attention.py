"""Attention of CRAFT within rectangles that lie across for one half of the features and upright for the other.

Shape legend: B batch, H x W map (multiples of the rectangle's sides), D features, h heads of a half, c channels of a
head (D = 2 * h * c), n tokens of a rectangle, p features of the position network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from backbones.attention.dispatch import exporting
from backbones.attention.partition import Pair, relative_bias
from backbones.attention.tables import table
from backbones.attention.window import window_attention

if TYPE_CHECKING:
    from apps.superres.models.craft_config import CRAFTConfig


class PositionNetwork(nn.Module):
    """A logit for every head and every offset between a query and a key, from a small network on the offset.

    Surprise: its layer norms have a 32nd of the network's features, and a norm over a single one gives its bias,
    whatever the offset; below 32 features there are none, and the last bias alone is left. In the published network,
    with 48 features, all logits of a head are therefore raised by the same number, which softmax does not notice: no
    bias is added, and the parameters, kept for official weights, are frozen.

    On a CPU the bias is kept while no gradient is wanted, for as long as the parameters hold the numbers it was made
    of: weights that are loaded, averaged or moved need no further care.

    Args:
        width: p, 0 and above.
        heads: h.
        window: Height and width of the rectangle.

    Source: Li et al., ICCV 2023, section 3.3; the network is the dynamic position bias of Wang et al. 2022,
        "CrossFormer", section 3.3, on offsets in pixels.
    """

    def __init__(self, width: int, heads: int, window: Pair) -> None:
        super().__init__()
        self.window = window
        self.embed = nn.Linear(2, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)) for out in (width, width, heads)
        )
        self.constant = width <= 1
        self.requires_grad_(not self.constant)
        self._kept: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> PositionNetwork:
        """Training or evaluation mode; nothing is kept over a change."""
        self._kept = None
        return super().train(mode)

    def table(self) -> Tensor:
        """The logits of all offsets, [(2 * height - 1) * (2 * width - 1), h], row-major from the most negative one."""
        weight = self.embed.weight
        logits: Tensor = self.embed(offsets(*self.window, weight.device).to(weight.dtype))
        for layer in self.layers:
            logits = layer(logits)
        return logits

    def forward(self) -> Tensor | None:
        """The bias, [h, n, n], or None where it would change nothing."""
        if self.constant:
            return None
        if not self._may_keep():
            return relative_bias(self.table(), self.window)
        numbers = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        if self._kept is None or not _identical(self._kept[0], numbers):
            self._kept = numbers, relative_bias(self.table(), self.window)
        return self._kept[1]

    def _may_keep(self) -> bool:
        if self.training or torch.is_grad_enabled() or self.embed.weight.device.type != "cpu":
            return False
        # Under autocast the network computes in another type.
        return not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or exporting())


@table()
def offsets(height: int, width: int, device: torch.device) -> Tensor:
    """All offsets of a query from a key, down and right in pixels, [(2 * height - 1) * (2 * width - 1), 2]."""
    down = torch.arange(1 - height, height, device=device, dtype=torch.float32)
    right = torch.arange(1 - width, width, device=device, dtype=torch.float32)
    return torch.cartesian_prod(down, right)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class RectangleAttention(nn.Module):
    """Multi-head self-attention within rectangles, and a depth-wise convolution of the values beside it.

    The first half of the features sees ``window``, the other half the same upright. Shifted rectangles go on at the
    other side of the map: nothing is hidden.

    Args:
        config: Sizes of the network.
        heads: Twice the heads of each half, or one more.
        shifted: Whether the rectangles lie half their sides further down and to the right.
    """

    def __init__(self, config: CRAFTConfig, heads: int, shifted: bool) -> None:
        super().__init__()
        width, (height, length) = config.width, config.window
        self.heads = heads // 2
        self.windows: tuple[Pair, Pair] = (height, length), (length, height)
        self.shifts = [(down // 2, right // 2) if shifted else (0, 0) for down, right in self.windows]
        self.scale = config.qk_scale
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.positions = nn.ModuleList(
            PositionNetwork(config.position_width, self.heads, window) for window in self.windows
        )
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        packed = self.qkv(x).unflatten(-1, (3, 2, self.heads, -1))  # B, H, W, 3, 2, h, c
        halves, values = [], []
        # Taken apart by unbind, whose gradients are put together once, where slices would add up whole maps.
        for half, position, window, shift in zip(
            packed.unbind(4), self.positions, self.windows, self.shifts, strict=True
        ):
            q, k, v = half.unbind(3)
            mixed = window_attention(q, k, v, window=window, shift=shift, wrap=True, bias=position(), scale=self.scale)
            halves.append(mixed.flatten(3))
            values.append(v.flatten(3))
        local = self.local(torch.cat(values, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        projected: Tensor = self.out(torch.cat(halves, -1) + local)
        return projected
