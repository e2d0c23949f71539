"""What heads of pixels share: the levels they read, classifier, second head, and loss.

Source: mmsegmentation's ``BaseDecodeHead``. Differs: the mean of the cross entropy is over valid pixels unless
``average`` says otherwise, and class weights go together with ignored pixels.

Shape legend: B batch, C classes, h x w map, H x W labels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apps.segmentation.losses import cross_entropy, dice, hardest, resize
from apps.segmentation.models.blocks import AuxiliaryHead, ConvBody, NormAct, classifier
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
        after: Norm and activation after convolutions.

    Raises:
        ConfigError: A level that the backbone does not give, or a single logit for other than two classes.
    """

    literal = False
    class_weights: Tensor | None

    def __init__(self, config: PixelHeadConfig, info: HeadInfo, levels: Sequence[int], channels: int) -> None:
        super().__init__(info)
        count = len(info.channels)
        self.config = config
        self.after = NormAct(config.norm, config.groups, config.norm_eps, config.norm_momentum, config.activation)
        self.chosen = chosen_levels("in_levels", levels, count)
        self.in_channels = [info.channels[level] for level in self.chosen]
        self.dropout = nn.Dropout2d(config.dropout)
        logits = _logits(config, info)
        self.classifier = classifier(channels, logits)
        self.auxiliary: AuxiliaryHead | None = None
        self.auxiliary_level = max(-count, min(config.auxiliary_level, count - 1)) % count
        if config.auxiliary_weight:
            width = config.auxiliary_channels
            body = ConvBody(info.channels[self.auxiliary_level], width, config.auxiliary_convs, after=self.after)
            self.auxiliary = AuxiliaryHead(body, width, logits, config.dropout)
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
        """Logits of all classes, bilinearly resized."""
        return self.per_class(resize(output.logits, size, self.config.align_corners))

    def per_class(self, logits: Tensor) -> Tensor:
        """What the classifier gave, [B, 1 or C, h, w], as logits of all classes, [B, C, h, w]."""
        threshold = self.config.binary_threshold
        return two_classes(logits, threshold) if threshold else logits

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
        """Weighted losses of one map of logits, [B, C, h, w], with labels [B, H, W].

        Of a single logit the cross entropy of two classes is the binary one, and a Dice loss of sigmoids is that of
        class 1.
        """
        config = self.config
        single = resize(logits, (labels.shape[-2], labels.shape[-1]), config.align_corners)
        logits = two_classes(single) if config.binary_threshold else single
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
            rated = single if config.dice_activation == "sigmoid" else logits
            parts["dice"] = dice(rated, labels, activation=config.dice_activation) * config.dice_weight
        return parts


def _logits(config: PixelHeadConfig, info: HeadInfo) -> int:
    """How many logits a pixel has."""
    if not config.binary_threshold:
        return info.classes
    if info.classes != 2:
        raise ConfigError(
            f"binary_threshold={config.binary_threshold:g} means one logit for two classes, but the data have "
            f"{info.classes}",
            mend="Set binary_threshold=0",
        )
    return 1


def two_classes(logit: Tensor, threshold: float = 0.5) -> Tensor:
    """Logits of two classes from that of class 1, [B, 1, h, w] to [B, 2, h, w].

    Args:
        logit: Of class 1.
        threshold: Probability of class 1 at which the two are equal.
    """
    moved = logit - math.log(threshold / (1 - threshold))
    return torch.cat([torch.zeros_like(moved), moved], dim=1)


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
