"""What metrics and pictures read of a batch of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apps.segmentation.instances import Detections
from apps.segmentation.models.head import Panoptic


class Prediction(NamedTuple):
    """Classes, and segments, of a batch of images.

    Args:
        labels: Most probable class of every pixel, [B, H, W] int64.
        certainty: Its probability, [B, H, W].
        loss: Mean negative logarithm of the probability of the right class over the pixels that count, [B]; NaN where
            the right ones are not known, 0 where none counts.
        segments: Segment of every pixel from 1, 0 for void, [B, H, W] int32; None where the head makes none.
        segment_classes: Class of segment 1, 2, ..., [B, S] int64, filled up with -1.
        segment_scores: Certainty of each, [B, S].
        detections: The head's own instances beside the true ones, in tests; they may overlap, unlike segments.
    """

    labels: Tensor
    certainty: Tensor
    loss: Tensor
    segments: Tensor | None = None
    segment_classes: Tensor | None = None
    segment_scores: Tensor | None = None
    detections: Detections | None = None


def with_segments(prediction: Prediction, found: Sequence[Panoptic]) -> Prediction:
    """A prediction together with the segments of each of its images."""
    most = max((len(image.classes) for image in found), default=0)
    classes = torch.full((len(found), most), -1, dtype=torch.int64)
    scores = torch.zeros(len(found), most)
    for row, image in enumerate(found):
        classes[row, : len(image.classes)] = image.classes.cpu()
        scores[row, : len(image.scores)] = image.scores.float().cpu()
    return prediction._replace(
        segments=torch.stack([image.segments for image in found]),
        segment_classes=classes.to(prediction.labels.device),
        segment_scores=scores.to(prediction.labels.device),
    )
