"""Mixup and cutmix: two images and their targets in one.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from apps.classification.config import MixConfig


class Mixed(NamedTuple):
    """A batch of mixed images.

    Attributes:
        images: [B, C, H, W].
        targets: Probabilities, [B, K].
    """

    images: Tensor
    targets: Tensor


class Box(NamedTuple):
    """A rectangle of pixels: rows ``top`` to ``bottom``, columns ``left`` to ``right``, the last ones excluded."""

    top: int
    bottom: int
    left: int
    right: int


def mix(images: Tensor, labels: Tensor, classes: int, config: MixConfig, random: np.random.Generator) -> Mixed:
    """Mix every image with its counterpart from the other end of the batch.

    One share is drawn for the whole batch. Training batches are in random order, so that pairs are random too.

    Args:
        images: [B, C, H, W].
        labels: [B] int64.
        classes: Number of classes, K.
        config: Which kinds, and how often.
        random: Where everything is drawn from.

    Source: mixup: Zhang et al. 2018, equation 1. Cutmix: Yun et al. 2019, section 3.1; its target follows the area of
    the rectangle after it is cut at the border.
    """
    targets = F.one_hot(labels, classes).to(images.dtype)
    if random.random() >= config.probability:
        return Mixed(images, targets)
    if config.cutmix and (not config.mixup or random.random() < config.switch):
        return _cutmix(images, targets, float(random.beta(config.cutmix, config.cutmix)), random)
    return mixup(images, targets, float(random.beta(config.mixup, config.mixup)))


def mixup(images: Tensor, targets: Tensor, share: float) -> Mixed:
    """``share`` of each image and target, and the rest of its counterpart's."""
    return Mixed(images.lerp(images.flip(0), 1 - share), targets.lerp(targets.flip(0), 1 - share))


def cutmix(images: Tensor, targets: Tensor, box: Box) -> Mixed:
    """A rectangle of each image replaced by its counterpart's, and as much of the target as that covers."""
    height, width = images.shape[-2:]
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    area = (box.bottom - box.top) * (box.right - box.left) / (height * width)
    mixed = images.clone()
    mixed[..., rows, columns] = images.flip(0)[..., rows, columns]
    return Mixed(mixed, targets.lerp(targets.flip(0), area))


def draw_box(height: int, width: int, area: float, random: np.random.Generator) -> Box:
    """A rectangle in the shape of the image around a random centre, cut at the border.

    Args:
        height: Of the image.
        width: Of the image.
        area: Share of the image, before cutting.
        random: Where the centre is drawn from.
    """
    rows, columns = round(height * area**0.5), round(width * area**0.5)
    top = int(random.integers(height)) - rows // 2
    left = int(random.integers(width)) - columns // 2
    return Box(max(0, top), min(height, top + rows), max(0, left), min(width, left + columns))


def _cutmix(images: Tensor, targets: Tensor, share: float, random: np.random.Generator) -> Mixed:
    height, width = images.shape[-2:]
    return cutmix(images, targets, draw_box(height, width, 1 - share, random))
