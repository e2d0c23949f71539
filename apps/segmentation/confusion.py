"""What is taken for what, counted over a whole split, and the scores of classes that follow from the counts.

Shape legend: B batch, C classes, H x W image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.segmentation.info import IGNORED
from graftwork.errors import ShapeError


class ClassAreas(NamedTuple):
    """Pixels over a whole split, [C] int64 each.

    Args:
        intersection: Of the class that were given it.
        predicted: That were given the class.
        labelled: Of the class.
    """

    intersection: Tensor
    predicted: Tensor
    labelled: Tensor

    @property
    def union(self) -> Tensor:
        """Pixels of the class or given it."""
        return self.predicted + self.labelled - self.intersection


class ClassScores(NamedTuple):
    """Scores of every class, [C] float64 from 0 to 1 each; NaN where a score divides by no pixel.

    Args:
        iou: Intersection over union.
        accuracy: Share of the pixels of the class that were given it.
        fscore: Harmonic mean of precision and recall.
        precision: Share of the pixels given the class that are of it.
        recall: The same as ``accuracy``.
    """

    iou: Tensor
    accuracy: Tensor
    fscore: Tensor
    precision: Tensor
    recall: Tensor


class ConfusionCounts(Metric):
    """Pixels of each class by the class that they were given.

    Pixels labelled 255 are left out. A prediction that is no class counts for the pixel's own class as missed, and for
    no class as predicted; likewise a label that is neither a class nor 255.

    Args:
        classes: Number of classes, C.

    Source: mmsegmentation 1.2.2, IoU metric. Differs: counts are whole numbers, not float32.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor
    images: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("counts", torch.zeros((classes + 1) ** 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            prediction: Class of every pixel, [B, H, W].
            labels: The right one, [B, H, W]; 255 is ignored.

        Raises:
            ShapeError: They differ in shape.
        """
        if prediction.shape != labels.shape:
            raise ShapeError(f"predictions {list(prediction.shape)} must have the shape of labels {list(labels.shape)}")
        codes = labels.long().clamp(-1, IGNORED + 1).add_(1).mul_(self.classes + 2)
        codes += prediction.long().clamp(-1, self.classes).add_(1)
        pixels = torch.bincount(codes.flatten(), minlength=(IGNORED + 3) * (self.classes + 2))
        pixels = pixels.unflatten(0, (IGNORED + 3, self.classes + 2))
        pixels[IGNORED + 1] = 0
        pixels = _none_last(_none_last(pixels, self.classes).T, self.classes).T
        self.counts += pixels.flatten()
        self.images += len(labels)

    def compute(self) -> Tensor:
        """Pixels by label (rows) and prediction (columns), [C + 1, C + 1] int64; the last ones are for no class."""
        return self.counts.unflatten(0, (self.classes + 1, self.classes + 1))


def _none_last(table: Tensor, classes: int) -> Tensor:
    """Rows of the numbers -1, 0, 1, ... as rows of the classes and one of all numbers that are none."""
    return torch.cat([table[1 : classes + 1], (table[0] + table[classes + 1 :].sum(0))[None]])


def class_areas(counts: Tensor) -> ClassAreas:
    """Areas of the classes, on the CPU: scores are made of them in float64, which not every device knows.

    Args:
        counts: Of :meth:`ConfusionCounts.compute`, [C + 1, C + 1].
    """
    counts = counts.cpu()
    return ClassAreas(counts.diagonal()[:-1], counts.sum(0)[:-1], counts.sum(1)[:-1])


def class_scores(areas: ClassAreas) -> ClassScores:
    """Scores of the classes from their areas.

    Source: mmsegmentation 1.2.2, IoU metric.
    """
    intersection, predicted, labelled = (area.double() for area in areas)
    precision, recall = intersection / predicted, intersection / labelled
    fscore = 2 * precision * recall / (precision + recall)
    return ClassScores(intersection / areas.union.double(), recall, fscore, precision, recall)


def pixel_accuracy(areas: ClassAreas) -> Tensor:
    """Share of all pixels that were given their class, float64 from 0 to 1."""
    return areas.intersection.sum().double() / areas.labelled.sum().double()
