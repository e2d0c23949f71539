"""Panoptic quality: segments found, and how well they fit.

Shape legend: C classes, H x W image, T true segments, S predicted segments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from graftwork.errors import ShapeError

_MATCH = 0.5
_LEFT_OUT = 0.5
_UNIT = 2.0**-40


class Overlaps(NamedTuple):
    """Pixels that true and predicted segments of one image share.

    Args:
        shared: Of each pair, [T, S] int64.
        on_void: Of each predicted segment where nothing is labelled, [S].
        true_areas: Of each true segment, [T].
        found_areas: Of each predicted segment, [S].
    """

    shared: Tensor
    on_void: Tensor
    true_areas: Tensor
    found_areas: Tensor


def overlaps(found: Tensor, true: Tensor, found_count: int, true_count: int) -> Overlaps:
    """Count the pixels that segments share.

    Args:
        found: Predicted segment of every pixel from 1, 0 for void, [H, W].
        true: True segment of every pixel from 0, -1 for void, [H, W].
        found_count: Predicted segments, S.
        true_count: True segments, T.

    Raises:
        ShapeError: The maps differ in shape, or have numbers of segments that there are not.
    """
    if found.shape != true.shape:
        raise ShapeError(f"predicted segments {list(found.shape)} must have the shape of true ones {list(true.shape)}")
    rows, columns = true.flatten().long() + 1, found.flatten().long()
    for values, count, name in ((rows, true_count, "true"), (columns, found_count, "predicted")):
        if values.numel() and (int(values.min()) < 0 or int(values.max()) > count):
            raise ShapeError(f"{name} segments are numbered up to {int(values.max())}, but {count} classes are given")
    size = true_count + 1, found_count + 1
    table = torch.bincount(rows * size[1] + columns, minlength=size[0] * size[1]).unflatten(0, size)
    return Overlaps(table[1:, 1:], table[0, 1:], table.sum(1)[1:], table.sum(0)[1:])


class QualityScores(NamedTuple):
    """Scores of every class, [C] float64 from 0 to 1 each; NaN for classes that occur neither truly nor predicted.

    Args:
        pq: Panoptic quality, the product of the others.
        sq: Segmentation quality: mean IoU of the pairs.
        rq: Recognition quality: the F-score of the segments.
    """

    pq: Tensor
    sq: Tensor
    rq: Tensor

    def mean(self, classes: Tensor | None = None) -> tuple[float, float, float]:
        """Means over the classes that occur, of some classes or of all; NaN where none does."""
        pq, sq, rq = (values.nanmean() if classes is None else values[classes].nanmean() for values in self)
        return float(pq), float(sq), float(rq)


class PanopticQuality(Metric):
    """Pairs of segments, and those left alone, of every class over a whole split.

    A true and a predicted segment of one class are a pair if their IoU exceeds one half, void pixels of the prediction
    left out of the union; then no other can be. A crowd is no segment to find. Predicted segments without partner of
    which more than half lies on void or on crowds of their class are left out.

    Sums are whole numbers, IoU in units of 2 ** -40: every device knows these, unlike float64, and their sum depends
    neither on the order of images nor on the number of processes. Each class has room for eight million pairs.

    Args:
        classes: Number of classes, C.

    Source: Kirillov et al. 2019, "Panoptic Segmentation", sections 4.1 and 4.2.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    iou: Tensor
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("iou", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, overlap: Overlaps, found_classes: Tensor, true_classes: Tensor, crowd: Tensor) -> None:
        """Add one image.

        Args:
            overlap: Of :func:`overlaps`.
            found_classes: Class of each predicted segment, [S].
            true_classes: Class of each true segment, [T]; -1 for none.
            crowd: Whether a true segment is a crowd, [T].
        """
        device = self.iou.device
        overlap = Overlaps(*(values.cpu() for values in overlap))
        found_classes, true_classes, crowd = found_classes.cpu(), true_classes.cpu(), crowd.cpu()
        same = true_classes[:, None] == found_classes
        there = overlap.found_areas > 0  # segments without pixels are none
        union = overlap.true_areas[:, None] + overlap.found_areas - overlap.shared - overlap.on_void
        iou = overlap.shared.double() / union.clamp(min=1)
        wanted = (true_classes >= 0) & ~crowd.bool() & (overlap.true_areas > 0)
        pairs = same & wanted[:, None] & (iou > _MATCH)
        beside = overlap.on_void + (overlap.shared * (same & crowd.bool()[:, None])).sum(0)
        left_out = beside.double() > _LEFT_OUT * overlap.found_areas.double()
        units = ((iou * pairs).sum(1) / _UNIT).round().long()
        paired = torch.zeros(self.classes, dtype=torch.int64)
        self.iou += paired.index_add_(0, true_classes[pairs.any(1)], units[pairs.any(1)]).to(device)
        alone = there & ~pairs.any(0) & ~left_out & (found_classes >= 0)
        groups = (true_classes[pairs.any(1)], found_classes[alone], true_classes[wanted & ~pairs.any(1)])
        for row, members in enumerate(groups):
            self.counts[row] += torch.bincount(members, minlength=self.classes).to(device)

    def compute(self) -> QualityScores:
        """Scores of every class."""
        pairs, wrong, missed = self.counts.cpu().double()
        iou = self.iou.cpu() * _UNIT
        weight = pairs + 0.5 * wrong + 0.5 * missed
        occurs = weight > 0
        nothing = torch.full_like(weight, torch.nan)
        sq = (iou / pairs.clamp(min=1)).where(occurs, nothing)
        return QualityScores(iou / weight, sq, pairs / weight)
