"""A backbone and a head as one model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.head import SegmentationHead, Size
from apps.segmentation.models.info import HeadInfo
from backbones.vision.config import BackboneConfig
from graftwork.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from apps.segmentation.models.config import SegmenterConfig
    from backbones.vision.base import VisionBackbone
    from datamodules.segmentation.info import SegmentationInfo

SMALLEST = 32
"""Smallest side that backbones take; smaller images are continued with zeros."""


class Segmenter(nn.Module):
    """Levels of a backbone, and what a head makes of them.

    Args:
        backbone: Images to levels, fine to coarse.
        head: Levels to an output.
    """

    def __init__(self, backbone: VisionBackbone, head: SegmentationHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Any:
        """The head's output for images [B, C, H, W] of any size."""
        images = continued(images)
        return self.head(self.backbone(images), size_of(images))

    def class_scores(self, images: Tensor) -> Tensor:
        """Scores of all classes at every pixel, [B, classes, H, W]."""
        padded = continued(images)
        height, width = size_of(images)
        scores = self.head.class_scores(self(padded), size_of(padded))
        return scores[..., :height, :width]


class ClassMap(nn.Module):
    """A segmenter as exporters want it: images to scores of classes.

    Args:
        segmenter: Whose scores.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes, H, W]."""
        return self.segmenter.class_scores(images)


def size_of(images: Tensor) -> Size:
    """Height and width of images [..., H, W]."""
    return images.shape[-2], images.shape[-1]


def continued(images: Tensor) -> Tensor:
    """Images with sides of at least what backbones take, continued with zeros at the bottom and the right.

    Raises:
        ShapeError: Something that is no batch of images.
    """
    if images.dim() != 4 or 0 in images.shape[-2:]:
        raise ShapeError(f"images: expected [batch, channels, height, width], got {list(images.shape)}")
    height, width = size_of(images)
    bottom, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def build_segmenter(config: SegmenterConfig, info: SegmentationInfo) -> Segmenter:
    """The model for images and classes of these data.

    Levels are normalised as in published models, see ``output_norms`` of backbones. Stages of the backbone after the
    last level that the head reads are not built.

    Raises:
        ConfigError: The head cannot use the backbone's levels.
    """
    trunk = config.backbone
    options: dict[str, Any] = {"in_channels": info.channels}
    if isinstance(trunk, BackboneConfig):  # others decide for themselves
        options["dense"] = getattr(config.head, "normalised", True)
    backbone = trunk.build(**options)
    sizes = HeadInfo(
        channels=tuple(backbone.channels),
        strides=tuple(backbone.strides),
        classes=len(info.classes),
        things=tuple(info.things),
        weights=class_weights(config.class_weights, info),
    )
    head = config.head.build(sizes)
    kept = [level for place, level in enumerate(backbone.out_indices) if place <= max(head.reads)]
    if len(kept) < len(backbone.out_indices):
        backbone = trunk.build(**options, out_indices=kept)
    _freeze_unread(backbone, head.reads)
    return Segmenter(backbone, head)


def _freeze_unread(backbone: VisionBackbone, reads: Collection[int]) -> None:
    """Freeze norms on levels that nothing reads: processes that train together wait for gradients of all others."""
    if backbone.output_norms is not None:
        for place, level in enumerate(backbone.out_indices):
            if place not in reads:
                backbone.output_norms[str(level)].requires_grad_(False)


def class_weights(kind: str, info: SegmentationInfo) -> tuple[float, ...]:
    """Factor of each class in the loss.

    Args:
        kind: ``none``; ``median`` for the median over classes of f by f of the class, f the share of a class in the
            images in which it occurs (Eigen and Fergus 2015); ``sqrt`` for its square root.
        info: Has the counts of the training pixels. A class that never occurs counts 1.

    Raises:
        ConfigError: The counts are not known.
    """
    if kind == "none":
        return ()
    if len(info.pixels) != len(info.classes):
        raise ConfigError(
            f"the data did not count its classes, which class_weights={kind} needs", "model.class_weights", "Use none"
        )
    shares = [own / present if present else 0.0 for own, present in zip(info.pixels, info.present, strict=True)]
    occurring = sorted(share for share in shares if share > 0)
    if not occurring:
        return ()
    middle = len(occurring) // 2
    median = occurring[middle] if len(occurring) % 2 else (occurring[middle - 1] + occurring[middle]) / 2
    power = 0.5 if kind == "sqrt" else 1.0
    return tuple((median / share) ** power if share else 1.0 for share in shares)
