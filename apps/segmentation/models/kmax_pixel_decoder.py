"""Pixel decoder of kMaX-DeepLab: levels of a backbone joined from coarse to fine.

Three surprises: a block activates its input for the shortcut, too, and nothing after the sum; a fusion passes a branch
that has the wanted width already as it is, neither activated nor projected; the coarse branch is projected before it is
resized.

Shape legend: B batch, C channels, H x W map; levels and stages are coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.kmax_axial import AxialAttention
from apps.segmentation.models.kmax_layers import ConvNorm, resize
from backbones.vision.layers import ChannelNorm, DropPath


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Sizes of a stage.

    Args:
        blocks: Number of blocks.
        width: Base width; the stage gives four times as many channels.
        axial: Whether its blocks attend along the axes; else they convolve.
    """

    blocks: int
    width: int
    axial: bool


class Block(nn.Module):
    """Residual block: narrow, mix positions, widen.

    Args:
        inputs: Channels of the input.
        stage: Sizes.
        heads: Heads of axial attention.
        drop_path: Share of samples without the branch in training.
    """

    def __init__(self, inputs: int, stage: Stage, heads: int, drop_path: float) -> None:
        super().__init__()
        width, outputs = stage.width, 4 * stage.width
        inner = 2 * width if stage.axial else width
        self.narrow = ConvNorm(inputs, inner)
        self.middle = AxialAttention(inner, width, heads) if stage.axial else ConvNorm(inner, width, 3)
        self.axial = stage.axial
        self.widen = ConvNorm(inner, outputs, activate=False, scale=0.0)
        self.shortcut = ConvNorm(inputs, outputs, activate=False) if inputs != outputs else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 * width, H, W]."""
        x = F.gelu(x)
        branch = self.middle(self.narrow(x))
        branch = self.widen(F.gelu(branch) if self.axial else branch)
        mixed: Tensor = self.drop_path(branch) + self.shortcut(x)
        return mixed


class Fusion(nn.Module):
    """Sum of a coarse and a fine map, at the size of the fine one.

    Args:
        coarse: Channels of the coarse map.
        fine: Channels of the fine map.
        width: Channels of the sum.
    """

    def __init__(self, coarse: int, fine: int, width: int) -> None:
        super().__init__()
        self.coarse = ConvNorm(coarse, width, activate=False) if coarse != width else None
        self.fine = ConvNorm(fine, width, activate=False) if fine != width else None

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Two maps to [B, width, H, W] of the fine one."""
        inspected = coarse.shape[3]
        coarse = coarse if self.coarse is None else self.coarse(F.gelu(coarse))
        coarse = resize(coarse, (fine.shape[2], fine.shape[3]), inspected)
        return coarse + (fine if self.fine is None else self.fine(F.gelu(fine)))


class PixelDecoder(nn.Module):
    """Levels of a backbone to a map of each stage.

    Args:
        channels: Channels of the levels, coarse to fine.
        stages: Sizes of as many stages.
        heads: Heads of axial attention.
        drop_path: Share of samples without a block's branch in training.
    """

    def __init__(self, channels: Sequence[int], stages: Sequence[Stage], heads: int, drop_path: float) -> None:
        super().__init__()
        self.input_norms = nn.ModuleList(ChannelNorm(width, eps=1e-6) for width in channels)
        self.stages = nn.ModuleList()
        self.fusions = nn.ModuleList()
        inputs = channels[0]
        for index, stage in enumerate(stages):
            if index:
                self.fusions.append(Fusion(4 * stages[index - 1].width, channels[index], stage.width))
                inputs = stage.width
            widths = [inputs, *[4 * stage.width] * (stage.blocks - 1)]
            self.stages.append(nn.Sequential(*(Block(width, stage, heads, drop_path) for width in widths)))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, H_i, W_i] to [B, 4 * width_i, H_i, W_i], both coarse to fine."""
        outputs: list[Tensor] = []
        for index, (level, norm, stage) in enumerate(zip(levels, self.input_norms, self.stages, strict=True)):
            level = norm(level)
            x = self.fusions[index - 1](outputs[-1], level) if index else level
            outputs.append(stage(x))
        return outputs
