"""Scores of segmentation over a whole split, in percent as papers report them, beside the most frequent class.

Shape legend: B batch, C classes, H x W image, T true segments, S predicted segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from apps.segmentation.average_precision import MaskPrecision
from apps.segmentation.boundary import BoundaryAreas
from apps.segmentation.confusion import ClassAreas, ConfusionCounts, class_areas, class_scores, pixel_accuracy
from apps.segmentation.instances import objects_at
from apps.segmentation.panoptic_quality import PanopticQuality, overlaps
from apps.segmentation.prediction import Prediction
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import DataError

_PAIRS = 20


class SegmentationMetrics(nn.Module):
    """Metric suite of one split, with the most frequent class of training everywhere beside, where it is known.

    ``miou``, ``macc`` and ``fscore`` are means over the classes of the scores of their pixels in the whole split;
    classes for which a score divides by nothing are left out. ``aacc`` is the share of right pixels, ``boundary_iou``
    the mean IoU of the boundaries of classes. ``pq``, ``sq`` and ``rq`` are means over the classes that occur,
    ``pq_things`` and ``pq_stuff`` over some of them. ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``,
    ``ap_large`` and ``ar`` are COCO's, for the instances of things that the head finds, which may overlap. All are in
    percent, NaN where nothing is there to be scored, and depend neither on the batch size nor on the number of
    processes.

    Args:
        info: Classes, their frequencies in training, and which are things.
        segments: Whether predictions and data have segments.
        thorough: Whether to measure boundaries, and average precision, too.
    """

    def __init__(self, info: SegmentationInfo, segments: bool = False, thorough: bool = False) -> None:
        super().__init__()
        self.info = info
        classes = len(info.classes)
        self.pixels = ConfusionCounts(classes)
        self.boundary = BoundaryAreas(classes) if thorough else None
        self.quality = PanopticQuality(classes) if segments else None
        self.trivial_quality = PanopticQuality(classes) if segments and info.majority is not None else None
        self.precision = MaskPrecision(classes) if segments and thorough and info.things else None

    def update(self, batch: Mapping[str, Any], prediction: Prediction) -> None:
        """Add one batch.

        Args:
            batch: ``mask`` [B, H, W]; with segments ``segments`` [B, H, W], ``segment_classes`` and ``segment_crowd``
                [B, T], ``index`` [B]; ``size`` [B, 2] if images were filled up.
            prediction: Of the same images.

        Raises:
            DataError: Segments or instances are to be scored, and there are none.
            ShapeError: Predictions and labels differ in shape.
        """
        labels: Tensor = batch["mask"]
        self.pixels.update(prediction.labels, labels)
        if self.boundary is not None:
            self.boundary.update(prediction.labels, labels, batch.get("size"))
        if self.quality is None:
            return
        if prediction.segments is None or "segments" not in batch:
            raise DataError("segments are to be scored, but the prediction or the data has none")
        for place in range(len(labels)):
            self._add_segments({key: batch[key][place] for key in _SEGMENTS}, prediction, place)
        if self.precision is not None:
            if prediction.detections is None:
                raise DataError("instances are to be scored, but the prediction has none")
            for place, number in enumerate(batch["index"].tolist()):
                self.precision.update(number, objects_at(prediction.detections, batch, place, self.info.things))

    def _add_segments(self, sample: Mapping[str, Tensor], prediction: Prediction, place: int) -> None:
        """Add the segments of one image."""
        segments, classes = prediction.segments, prediction.segment_classes
        if self.quality is None or segments is None or classes is None:
            return
        true, true_classes, crowd = (sample[key] for key in _SEGMENTS)
        found = overlaps(segments[place], true, classes.shape[1], len(true_classes))
        self.quality.update(found, classes[place], true_classes, crowd)
        if self.trivial_quality is not None:
            everywhere = overlaps(torch.ones_like(segments[place]), true, 1, len(true_classes))
            self.trivial_quality.update(everywhere, true_classes.new_tensor([self.info.majority]), true_classes, crowd)

    def compute(self) -> dict[str, float]:
        """Scores of the model."""
        scores = self._pixel_scores(self.areas())
        if self.boundary is not None:
            boundary = self.boundary.compute()
            scores["boundary_iou"] = 100 * float((boundary.intersection.double() / boundary.union.double()).nanmean())
        scores |= self._quality_scores(self.quality)
        if self.precision is not None:
            found = self.precision.compute()
            scores |= {"ap": 100 * found.ap, "ap50": 100 * found.ap50, "ap75": 100 * found.ap75}
            scores |= {f"ap_{name}": 100 * getattr(found, name) for name in ("small", "medium", "large")}
            scores["ar"] = 100 * found.recall
        return scores

    def baseline(self) -> dict[str, float]:
        """Scores of the most frequent class of training at every pixel, as one segment; none if it is not known."""
        if self.info.majority is None:
            return {}
        labelled = self.areas().labelled
        everywhere = torch.arange(len(labelled), device=labelled.device) == self.info.majority
        areas = ClassAreas(labelled * everywhere, labelled.sum() * everywhere, labelled)
        return self._pixel_scores(areas) | self._quality_scores(self.trivial_quality)

    def areas(self) -> ClassAreas:
        """Pixels of every class, right and predicted."""
        return class_areas(self.pixels.compute())

    @staticmethod
    def _pixel_scores(areas: ClassAreas) -> dict[str, float]:
        scores = class_scores(areas)
        return {
            "miou": 100 * float(scores.iou.nanmean()),
            "macc": 100 * float(scores.accuracy.nanmean()),
            "aacc": 100 * float(pixel_accuracy(areas)),
            "fscore": 100 * float(scores.fscore.nanmean()),
        }

    def _quality_scores(self, quality: PanopticQuality | None) -> dict[str, float]:
        if quality is None:
            return {}
        scores = quality.compute()
        found = {name: 100 * value for name, value in zip(("pq", "sq", "rq"), scores.mean(), strict=True)}
        of_things = torch.zeros(len(self.info.classes), dtype=torch.bool, device=scores.pq.device)
        of_things[list(self.info.things)] = True
        for name, chosen in (("things", of_things), ("stuff", ~of_things)):
            if chosen.any():
                found[f"pq_{name}"] = 100 * scores.mean(chosen)[0]
        return found

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Scores of every class, and the pairs of classes that are confused most often."""
        areas = self.areas()
        scores = class_scores(areas)
        columns: dict[str, Tensor] = {
            "IoU %": scores.iou,
            "accuracy %": scores.accuracy,
            "F-score %": scores.fscore,
            "precision %": scores.precision,
        }
        if self.boundary is not None:
            boundary = self.boundary.compute()
            columns["boundary IoU %"] = boundary.intersection.double() / boundary.union.double()
        if self.quality is not None:
            quality = self.quality.compute()
            columns |= {"PQ %": quality.pq, "SQ %": quality.sq, "RQ %": quality.rq}
        if self.precision is not None:
            columns["AP %"] = self.precision.compute().by_class
        share = areas.labelled.double() / areas.labelled.sum()
        rows = [
            {"class": name, "pixels %": _percent(share[i])}
            | {key: _percent(column[i]) for key, column in columns.items()}
            for i, name in enumerate(self.info.classes)
        ]
        return {"scores by class": rows, "most confused": self._most_confused()}

    def _most_confused(self) -> list[dict[str, Any]]:
        counts = torch.from_numpy(self.confusion())
        wrong = counts.clone().fill_diagonal_(0)
        pixels, places = wrong.flatten().topk(min(_PAIRS, wrong.numel()))
        names, width, labelled = self.info.classes, len(wrong), self.areas().labelled.tolist()
        return [
            {
                "class": names[place // width],
                "taken for": names[place % width],
                "pixels": count,
                "share of the class %": 100 * count / labelled[place // width],
            }
            for count, place in zip(pixels.tolist(), places.tolist(), strict=True)
            if count
        ]

    def confusion(self) -> NDArray[np.int64]:
        """Pixels of each class (rows) by the class they were given (columns), [C, C]."""
        counts: NDArray[np.int64] = self.pixels.compute()[:-1, :-1].cpu().numpy()
        return counts

    def count(self) -> int:
        """Images seen by this process."""
        return int(self.pixels.images)

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()


_SEGMENTS = ("segments", "segment_classes", "segment_crowd")


def _percent(value: Tensor) -> float | None:
    return None if value.isnan() else 100 * float(value)
