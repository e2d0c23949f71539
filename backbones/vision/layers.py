"""Small layers that the vision backbones of this package share.

Shape legend: B batch, C channels, H height, W width; N any leading axes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map that has them second, [B, C, H, W] to the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position by itself."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelRMSNorm(nn.RMSNorm):
    """Root-mean-square norm over the channels of a map that has them second, [B, C, H, W] to the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position by itself."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Leaves out a residual branch for some samples of a batch, and scales it up for the others.

    Args:
        rate: Share of samples without the branch, in [0, 1).

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", per sample.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] to the same."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.dim() - 1), device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:.3f}"


def drop_path_rates(highest: float, depths: list[int] | tuple[int, ...]) -> list[list[float]]:
    """Rates that grow linearly over all blocks from 0 to ``highest``, a list per stage."""
    blocks = sum(depths)
    rates = [highest * block / max(1, blocks - 1) for block in range(blocks)]
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


class Mlp(nn.Module):
    """Linear, GELU, linear on the last axis: [N, width] to [N, width]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of every token by itself."""
        mixed: Tensor = self.contract(F.gelu(self.expand(x)))
        return mixed


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights and zero biases of linear layers; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
