"""From batches to what heads are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apps.segmentation.models.head import Segments, Targets
from datamodules.segmentation.info import IGNORED


def targets_of(batch: Mapping[str, Any]) -> Targets:
    """Labels and segments of a batch.

    Args:
        batch: ``mask`` [B, H, W] int64, 255 ignored; for panoptic data also ``segments`` [B, H, W] int32 with -1 for
            void, ``segment_classes`` [B, S] int64 filled up with -1 and ``segment_crowd`` [B, S].

    Returns:
        Segments are those of the data but for crowds, whose pixels are ignored; or all pixels of a class where the data
        is semantic.
    """
    labels: Tensor = batch["mask"]
    if "segments" not in batch:
        return Targets(labels, [class_segments(image) for image in labels])
    numbers, crowds = batch["segments"].long(), batch["segment_crowd"].bool()
    if crowds.any():
        spread = crowds.gather(1, numbers.clamp(min=0).flatten(1)).view_as(numbers)
        labels = labels.masked_fill(spread & (numbers >= 0), IGNORED)
    images = zip(batch["segments"], batch["segment_classes"], batch["segment_crowd"], strict=True)
    return Targets(labels, [_segments(*image) for image in images])


def class_segments(labels: Tensor) -> Segments:
    """A segment for every class of an image [H, W]."""
    classes = labels[labels != IGNORED].unique()
    return Segments(classes, labels == classes[:, None, None])


def _segments(numbers: Tensor, classes: Tensor, crowd: Tensor) -> Segments:
    """Segments of an image that are visible in it, crowds left out."""
    known = torch.nonzero((classes >= 0) & ~crowd.bool()).flatten()
    masks = numbers == known[:, None, None].to(numbers)
    seen = masks.flatten(1).any(1)
    return Segments(classes[known[seen]], masks[seen])
