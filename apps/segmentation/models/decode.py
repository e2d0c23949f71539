"""What heads of pixels share: the levels they read, classifier, second head, and loss.

Source: mmsegmentation's ``BaseDecodeHead``. Differs: the mean of the cross entropy is over valid pixels unless
``average`` says otherwise, and class weights go together with ignored pixels.

Shape legend: B batch, C classes, h x w map, H x W labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apps.segmentation.losses import cross_entropy, dice, hardest, resize
from apps.segmentation.models.blocks import AuxiliaryHead, ConvBody, NormKind, classifier
from apps.segmentation.models.head import PixelHead, PixelOutput, Size, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import PixelHeadConfig
from graftwork.errors import ConfigError


class DecodeHead(PixelHead):
    """Base of heads that fuse levels to one map and classify its positions; a subclass gives :meth:`fuse`.

    Args:
        config: Options of the head.
        info: Sizes of backbone and data.
        levels: Levels of the backbone that are read.
        channels: Channels that :meth:`fuse` gives.

    Attributes:
        literal: Compute as the papers say, rather than in the equal form that takes less; for comparisons.
        chosen: Levels that are read, counted from 0.
        in_channels: Their channels.
        norm: The norm after convolutions.

    Raises:
        ConfigError: A level that the backbone does not give.
    """

    literal = False
    class_weights: Tensor | None

    def __init__(self, config: PixelHeadConfig, info: HeadInfo, levels: Sequence[int], channels: int) -> None:
        super().__init__(info)
        count = len(info.channels)
        self.config = config
        self.norm = NormKind(config.norm, config.groups)
        self.chosen = chosen_levels("in_levels", levels, count)
        self.in_channels = [info.channels[level] for level in self.chosen]
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = classifier(channels, info.classes)
        self.auxiliary: AuxiliaryHead | None = None
        self.auxiliary_level = max(-count, min(config.auxiliary_level, count - 1)) % count
        if config.auxiliary_weight:
            width = config.auxiliary_channels
            body = ConvBody(info.channels[self.auxiliary_level], width, config.auxiliary_convs, norm=self.norm)
            self.auxiliary = AuxiliaryHead(body, width, info.classes, config.dropout)
        weights = torch.tensor(info.weights) if info.weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def reads(self) -> frozenset[int]:
        """Levels that are read, by the second head too."""
        further = () if self.auxiliary is None else (self.auxiliary_level,)
        return frozenset((*self.chosen, *further))

    def forward(self, levels: Sequence[Tensor], size: Size) -> PixelOutput:
        """Levels of a backbone, fine to coarse, [B, C_i, h_i, w_i], to logits at the finest one that is read.

        Raises:
            ShapeError: Other levels than the head was built for; the message names both.
        """
        self.check_levels(levels)
        logits = self.classifier(self.dropout(self.fuse([levels[level] for level in self.chosen])))
        if not self.training or self.auxiliary is None:
            return PixelOutput(logits)
        return PixelOutput(logits, (self.auxiliary(levels[self.auxiliary_level]),))

    @abstractmethod
    def fuse(self, levels: list[Tensor]) -> Tensor:
        """The chosen levels to features before dropout and classifier, [B, channels, h, w] of the first level."""

    def class_scores(self, output: PixelOutput, size: Size) -> Tensor:
        """Logits, bilinearly resized."""
        return resize(output.logits, size, self.config.align_corners)

    def loss(self, output: PixelOutput, targets: Targets) -> dict[str, Tensor]:
        """Cross entropy and Dice loss at the resolution of the labels, and those of the second head.

        Returns:
            ``loss``, the sum of its weighted parts ``ce``, ``dice`` and ``aux``, those that there are.
        """
        parts = self.pixel_losses(output.logits, targets.labels)
        if output.auxiliary:
            further = [sum(self.pixel_losses(logits, targets.labels).values()) for logits in output.auxiliary]
            parts["aux"] = torch.as_tensor(sum(further)) * self.config.auxiliary_weight
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def pixel_losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Weighted losses of one map of logits, [B, C, h, w], with labels [B, H, W]."""
        config = self.config
        logits = resize(logits, (labels.shape[-2], labels.shape[-1]), config.align_corners)
        parts = {}
        if config.cross_entropy_weight:
            hard = labels
            if config.hard_threshold:
                hard = hardest(logits, labels, threshold=config.hard_threshold, least=config.hard_least)
            mean = cross_entropy(
                logits, hard, weights=self.class_weights, average=config.average, smoothing=config.label_smoothing
            )
            parts["ce"] = mean * config.cross_entropy_weight
        if config.dice_weight:
            parts["dice"] = dice(logits, labels, activation=config.dice_activation) * config.dice_weight
        return parts


def chosen_levels(option: str, wanted: Sequence[int], count: int) -> tuple[int, ...]:
    """Levels counted from 0.

    Args:
        option: Name of the option, for the message.
        wanted: Numbers from 0, or negative ones from the end.
        count: Levels that there are.

    Raises:
        ConfigError: A level twice, or one that does not exist.
    """
    levels = tuple(level + count if level < 0 else level for level in wanted)
    if len(set(levels)) < len(levels) or not all(0 <= level < count for level in levels):
        raise ConfigError(
            f"{option}={list(wanted)} must be different levels of the {count} that the backbone gives",
            mend=f"Use numbers from 0 to {count - 1}, or from -{count} to -1",
        )
    return levels
