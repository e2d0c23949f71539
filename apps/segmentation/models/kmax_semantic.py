"""Auxiliary heads of kMaX-DeepLab that classify pixels, for the loss of training alone.

Shape legend: B batch, C_i channels of a level of the backbone, h x w map. Levels are coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apps.segmentation.models.kmax_layers import ConvNorm, init_truncated, resize

if TYPE_CHECKING:
    from apps.segmentation.models.kmax_config import KMaXConfig

DILATIONS = (6, 12, 18)
LOW_LEVELS = (2, 3)
"""Places of the finer levels in the list of levels; the one at stride 16 is left out."""


def _classifier(width: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, classes, 1)
    init_truncated(layer.weight, 0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class AtrousPyramid(nn.Module):
    """Convolutions of several dilations and the mean of the map, side by side.

    Args:
        inputs: Channels of the map.
        width: Channels of each branch, and given.

    Source: Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation".
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(inputs, width)])
        self.branches += [ConvNorm(inputs, width, 3, dilation=dilation) for dilation in DILATIONS]
        self.pool = ConvNorm(inputs, width)
        self.join = ConvNorm(width * (2 + len(DILATIONS)), width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, width, h, w]."""
        mean = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        joined: Tensor = self.join(torch.cat([*(branch(x) for branch in self.branches), mean], dim=1))
        return self.dropout(joined)


class LowLevel(nn.Module):
    """Joins a finer level.

    Args:
        level: Channels of the level.
        projected: Channels that it is reduced to.
        width: Channels of the coarse map, and given.
    """

    def __init__(self, level: int, projected: int, width: int) -> None:
        super().__init__()
        self.project = ConvNorm(level, projected)
        self.depthwise = ConvNorm(width + projected, width + projected, 5, depthwise=True)
        self.join = ConvNorm(width + projected, width)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """A coarse map and a level to [B, width, h, w] of the level."""
        x = resize(x, (level.shape[2], level.shape[3]), x.shape[3])
        joined: Tensor = self.join(self.depthwise(torch.cat([x, self.project(level)], dim=1)))
        return joined


class PyramidSemantic(nn.Module):
    """Atrous pyramid, joined by two finer levels: the head for COCO and ADE20K.

    Args:
        channels: Channels of the levels, coarse to fine; levels that are not there are not joined.
        classes: Number of classes; there is one more for void.
        config: Widths.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: KMaXConfig) -> None:
        super().__init__()
        width = config.semantic_width
        self.pyramid = AtrousPyramid(channels[0], width)
        self.places = [place for place in LOW_LEVELS if place < len(channels)]
        self.low_levels = nn.ModuleList(
            LowLevel(channels[place], projected, width)
            for place, projected in zip(self.places, config.semantic_projections, strict=False)
        )
        self.depthwise = ConvNorm(width, width, 5, depthwise=True)
        self.hidden = ConvNorm(width, width)
        self.classifier = _classifier(width, classes + 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels to logits, [B, classes + 1, h, w] of the finest one."""
        x = self.pyramid(levels[0])
        for place, low_level in zip(self.places, self.low_levels, strict=True):
            x = low_level(x, levels[place])
        logits: Tensor = self.classifier(self.hidden(self.depthwise(x)))
        return logits


class LightSemantic(nn.Module):
    """Three layers on the coarsest level: the head for Cityscapes.

    Args:
        channels: Channels of the levels, coarse to fine.
        classes: Number of classes.
        config: Widths.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: KMaXConfig) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels[0], channels[0], 5, depthwise=True)
        self.hidden = ConvNorm(channels[0], config.semantic_width)
        self.classifier = _classifier(config.semantic_width, classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels to logits, [B, classes, h, w] of the coarsest one."""
        logits: Tensor = self.classifier(self.hidden(self.depthwise(levels[0])))
        return logits


def finest_place(kind: str, levels: int) -> int:
    """Place, coarse to fine, of the level whose size the logits of a kind of head have."""
    return max([0, *(place for place in LOW_LEVELS if place < levels)]) if kind == "aspp" else 0


def build_semantic(channels: Sequence[int], classes: int, config: KMaXConfig) -> nn.Module | None:
    """The configured auxiliary head, None for none."""
    kinds = {"aspp": PyramidSemantic, "light": LightSemantic}
    kind = kinds.get(config.semantic)
    return None if kind is None else kind(channels, classes, config)
