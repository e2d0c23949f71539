"""Average precision of masks as COCO defines it: over ten thresholds of IoU, 101 recalls, and sizes of objects.

States are whole numbers: GPUs of Apple know no float64, and processes exchange states on the device they compute on.

Shape legend: C classes, D detections and G true objects of an image, K thresholds, R ranges of area, N detections in
all images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""The reference's very numbers: an IoU of 17 / 20 reaches its 0.85, but not 0.5 + 7 * 0.05."""
RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of objects, in pixels, both ends included."""
MOST_DETECTIONS = 100
"""Of each class and image, the most certain ones."""

_RECALLS = np.linspace(0, 1, 101)
_COLUMNS = 3 + 2 * len(RANGES)
_BITS = 2 ** torch.arange(len(THRESHOLDS))


class Objects(NamedTuple):
    """What is compared in one image.

    Args:
        shared: Pixels that each detection and each true object share, [D, G].
        areas: Of the detections, in pixels, [D].
        classes: Of the detections, [D].
        scores: Of the detections, [D].
        true_areas: Of the true objects, in pixels, [G].
        true_classes: Of the true objects, [G].
        crowd: Whether a true object is a crowd, in which any number of detections may lie, [G].
    """

    shared: Tensor
    areas: Tensor
    classes: Tensor
    scores: Tensor
    true_areas: Tensor
    true_classes: Tensor
    crowd: Tensor


class PrecisionScores(NamedTuple):
    """Averages over classes that occur, from 0 to 1; NaN where no class does.

    Args:
        ap: Average precision over all thresholds.
        ap50: At an IoU of 0.5.
        ap75: At an IoU of 0.75.
        small: Of objects below 32 x 32 pixels.
        medium: Of objects between.
        large: Of objects above 96 x 96 pixels.
        recall: Average recall over all thresholds.
        by_class: Average precision of every class, [C] float64; NaN for classes without true objects.
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    recall: float
    by_class: Tensor


class MaskPrecision(Metric):
    """Average precision of masks.

    The detections of a class are taken in the order of their scores; each takes the free true object of largest IoU
    above the threshold. Crowds, and objects out of the range of area, are ignored, together with the detections that
    take them and free detections out of the range. Precision is made monotone and read at 101 recalls.

    Args:
        classes: Number of classes, C.

    Source: COCO API (pycocotools), ``COCOeval`` for segmentations. Differs: detections of equal score are ordered by
    the number of their image, so that processes and batches do not matter.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor] | Tensor
    objects: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("objects", torch.zeros(len(RANGES), classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, image: int, objects: Objects) -> None:
        """Add one image.

        Args:
            image: Its number in the split.
            objects: Detections and true objects.
        """
        device = self.objects.device
        objects = Objects(*(values.cpu() for values in objects))
        for row, (least, most) in enumerate(RANGES.values()):
            counted = ~objects.crowd & (objects.true_areas >= least) & (objects.true_areas <= most)
            self.objects[row] += torch.bincount(objects.true_classes[counted], minlength=self.classes).to(device)
        parts = [_matched(image, label, objects) for label in objects.classes.unique().tolist()]
        rows = torch.cat([torch.zeros(0, _COLUMNS, dtype=torch.int64), *parts])  # also without detections: all gather
        self.rows.append(rows.to(device))  # type: ignore[union-attr]

    def compute(self) -> PrecisionScores:
        """Scores over all images."""
        precision, recall = self._curves()
        over_all = precision[0].mean(1)  # C
        means = [float(values.nanmean()) for values in precision.mean(2)]
        at = {threshold: float(precision[0, :, place].nanmean()) for place, threshold in ((0, 50), (5, 75))}
        return PrecisionScores(
            ap=means[0],
            ap50=at[50],
            ap75=at[75],
            small=means[1],
            medium=means[2],
            large=means[3],
            recall=float(recall[0].mean(1).nanmean()),
            by_class=over_all,
        )

    def _curves(self) -> tuple[Tensor, Tensor]:
        """Average precision and highest recall of ranges, classes and thresholds, [R, C, K] float64 each."""
        shape = len(RANGES), self.classes, len(THRESHOLDS)
        precision, recall = torch.full(shape, torch.nan).double(), torch.full(shape, torch.nan).double()
        objects = self.objects.cpu()
        rows = dim_zero_cat(self.rows).cpu() if len(self.rows) else torch.zeros(0, _COLUMNS, dtype=torch.int64)
        rows = rows[rows[:, 0].argsort(stable=True)]
        scores = rows[:, 2].view(torch.float64)
        rows = rows[scores.argsort(descending=True, stable=True)]  # by score, then by image
        for place in range(len(RANGES)):
            for label in objects[place].nonzero()[:, 0].tolist():
                mine = rows[rows[:, 1] == label]
                matched, ignored = (_from_bits(mine[:, 3 + 2 * place + kind]) for kind in (0, 1))
                found = _average_precision(matched & ~ignored, ~matched & ~ignored, int(objects[place, label]))
                precision[place, label], recall[place, label] = found
        return precision, recall


def _matched(image: int, label: int, objects: Objects) -> Tensor:
    """Rows of the detections of a class, [D, columns] int64.

    Columns are image, class, bits of the score as float64, and for each range the thresholds matched and ignored.
    """
    mine = (objects.classes == label).nonzero()[:, 0]
    mine = mine[objects.scores[mine].argsort(descending=True, stable=True)][:MOST_DETECTIONS]
    true = (objects.true_classes == label).nonzero()[:, 0]
    shared, areas = objects.shared[mine][:, true].double(), objects.areas[mine].double()
    true_areas, crowd = objects.true_areas[true].double(), objects.crowd[true]
    union = areas[:, None] + true_areas - shared
    iou = shared / areas[:, None].expand_as(shared).where(crowd, union).clamp(min=1e-12)
    scores = objects.scores[mine].double().view(torch.int64)
    columns = [torch.full_like(mine, image), torch.full_like(mine, label), scores]
    for least, most in RANGES.values():
        ignored = crowd | (true_areas < least) | (true_areas > most)
        matched, left_out = _assign(iou, ignored, crowd)
        outside = ((areas < least) | (areas > most))[:, None]
        columns += [_bits(matched), _bits(left_out | (~matched & outside))]
    return torch.stack(columns, dim=1)


def _assign(iou: Tensor, ignored: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor]:
    """Which detections, in the order of their scores, take a true object, and one that is ignored, [D, K] bool each.

    Args:
        iou: [D, G].
        ignored: Whether a true object is not to be found, [G]; others are taken first.
        crowd: Whether a true object can be taken again, [G].
    """
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64).clamp(max=1 - 1e-10)
    detections, true = iou.shape
    matched = torch.zeros(detections, len(thresholds), dtype=torch.bool)
    left_out = torch.zeros_like(matched)
    if not true:
        return matched, left_out
    free = torch.ones(len(thresholds), true, dtype=torch.bool)
    for place, row in enumerate(iou):
        fits = (row >= thresholds[:, None]) & (free | crowd)  # K, G
        rank = row.expand_as(fits).where(fits, row.new_tensor(-1.0)) + 2.0 * (fits & ~ignored)
        best = true - 1 - rank.flip(1).argmax(1)  # of equal ones the last
        taken = fits.any(1)
        matched[place], left_out[place] = taken, taken & ignored[best]
        free[taken.nonzero()[:, 0], best[taken]] = False
    return matched, left_out


def _average_precision(hits: Tensor, wrong: Tensor, objects: int) -> tuple[Tensor, Tensor]:
    """Mean precision at 101 recalls, and the highest recall, of every threshold, [K] each.

    Args:
        hits: Whether a detection found an object, in the order of scores, [N, K].
        wrong: Whether it found none, [N, K].
        objects: True objects that there were.
    """
    found, missed = hits.double().cumsum(0), wrong.double().cumsum(0)
    recall = found / objects
    precision = found / (found + missed).clamp(min=torch.finfo(torch.float64).eps)
    if not len(recall):
        return torch.zeros(hits.shape[1]).double(), torch.zeros(hits.shape[1]).double()
    precision = precision.flip(0).cummax(0).values.flip(0)
    precision = torch.cat([precision, precision.new_zeros(1, precision.shape[1])])  # of recalls that are not reached
    wanted = torch.from_numpy(_RECALLS).expand(recall.shape[1], -1).contiguous()
    places = torch.searchsorted(recall.T.contiguous(), wanted)  # K, 101
    return precision.T.gather(1, places).mean(1), recall[-1]


def _bits(flags: Tensor) -> Tensor:
    """[D, K] bool as one number each."""
    return (flags.long() * _BITS).sum(1)


def _from_bits(numbers: Tensor) -> Tensor:
    return (numbers[:, None] & _BITS) > 0
