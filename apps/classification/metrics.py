"""Scores of classifiers over a whole split, in percent as papers report them, beside the majority class.

Shape legend: B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from apps.core.metrics.mean import WeightedMean
from datamodules.classification.info import ClassificationInfo

TOP = 5
"""Guesses that top5 allows."""

MOST_CONFUSED_OF = 2000
"""Classes up to which a confusion matrix is kept: it grows with their square."""

_PAIRS = 20


class CalibrationError(Metric):
    """Expected calibration error: how far the confidence of a classifier lies from its accuracy.

    Guesses are sorted into bins of equal width by the probability of the most probable class; the error is the mean
    over bins, weighted by their guesses, of the difference between accuracy and mean confidence. Memory is constant.

    Args:
        bins: Bins between 0 and 1.

    Source: Naeini et al. 2015; Guo et al. 2017, equation 3, with their 15 bins.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    counts: Tensor
    hits: Tensor
    confidence: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        for name in ("counts", "hits", "confidence"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Add guesses.

        Args:
            confidence: Probability of the most probable class, [B].
            right: Whether it was the right one, [B].
        """
        places = (confidence.double() * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)  # (low, high] each
        one = torch.ones_like(places)
        for state, values in ((self.counts, one), (self.hits, right), (self.confidence, confidence)):
            state.index_add_(0, places, values.double())

    def compute(self) -> Tensor:
        """The error, from 0 to 1; NaN where nothing was added."""
        return (self.hits - self.confidence).abs().sum() / self.counts.sum()


class ClassHits(Metric):
    """Images of each class, and how many of them had their class among the first guesses.

    Args:
        classes: Number of classes, C.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    images: Tensor
    first: Tensor
    first_five: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("images", "first", "first_five"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits [B, C] and labels [B]."""
        guesses = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
        hits = ((self.images, torch.ones_like(labels)), (self.first, guesses[:, 0]), (self.first_five, guesses.any(1)))
        for state, values in hits:
            state.index_add_(0, labels, values.long())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, hits of the first guess, hits of the first five, [C] int64 each."""
        return self.images, self.first, self.first_five


class ClassificationMetrics(nn.Module):
    """Metric suite of one split, with the majority class and the class frequencies of training beside.

    ``top1`` and ``top5`` are shares of all images; ``mean_class_accuracy`` is the mean over the classes of the split of
    top1 within each; ``ece`` is the expected calibration error; all in percent. ``loss`` is the mean cross entropy in
    nats. They depend neither on the batch size nor on the number of processes.

    Args:
        info: Classes, and their frequencies in training.
    """

    def __init__(self, info: ClassificationInfo) -> None:
        super().__init__()
        self.info = info
        classes = len(info.classes)
        self.hits, self.calibration = ClassHits(classes), CalibrationError()
        self.loss, self.prior_loss = WeightedMean(), WeightedMean()
        small = classes <= MOST_CONFUSED_OF
        self.confusion = MulticlassConfusionMatrix(classes, validate_args=False) if small else None
        counts = torch.tensor(info.counts, dtype=torch.float64).clamp(min=1e-6)
        self.register_buffer("prior", (counts / counts.sum()).log(), persistent=False)
        self.prior: Tensor

    def update(self, batch: Mapping[str, Tensor], prediction: Tensor) -> None:
        """Add one batch of labels [B] and logits [B, C]."""
        labels, logits = batch["label"], prediction.double()
        confidence, guess = logits.softmax(dim=1).max(dim=1)
        self.hits.update(logits, labels)
        self.calibration.update(confidence, guess == labels)
        self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.prior_loss.update(-self.prior.double()[labels])
        if self.confusion is not None:
            self.confusion.update(guess, labels)

    def compute(self) -> dict[str, float]:
        """Scores of the model."""
        images, first, first_five = (counts.double() for counts in self.hits.compute())
        known = images > 0
        return {
            **self._shares(images, first.sum(), first_five.sum()),
            "mean_class_accuracy": 100 * float((first[known] / images[known]).mean()),
            "ece": 100 * float(self.calibration.compute()),
            "loss": float(self.loss.compute()),
        }

    def baseline(self) -> dict[str, float]:
        """Scores of the most frequent classes of training, and of its frequencies as probabilities."""
        images = self.hits.compute()[0].double()
        frequent = self.prior.argsort(descending=True, stable=True)
        known = (images > 0).double()
        return {
            **self._shares(images, images[frequent[0]], images[frequent[:TOP]].sum()),
            "mean_class_accuracy": 100 * float(known[frequent[0]] / known.sum()),
            "loss": float(self.prior_loss.compute()),
        }

    def _shares(self, images: Tensor, first: Tensor, first_five: Tensor) -> dict[str, float]:
        """Of all images, in percent; five guesses among as few classes say nothing."""
        shares = {"top1": 100 * float(first / images.sum())}
        if len(self.info.classes) > TOP:
            shares["top5"] = 100 * float(first_five / images.sum())
        return shares

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Accuracy of every class, and the pairs of classes that are confused most often."""
        images, first, _ = (counts.tolist() for counts in self.hits.compute())
        rows = [
            {"class": name, "images": count, "top1 %": 100 * hits / count if count else None}
            for name, count, hits in zip(self.info.classes, images, first, strict=True)
        ]
        return {"accuracy by class": rows, "most confused": self._most_confused()}

    def _most_confused(self) -> list[dict[str, Any]]:
        matrix = self.matrix()
        if matrix is None:
            return []
        wrong = matrix.clone().fill_diagonal_(0)
        counts, places = wrong.flatten().topk(min(_PAIRS, wrong.numel()))
        names, width = self.info.classes, len(wrong)
        return [
            {"class": names[place // width], "taken for": names[place % width], "images": count}
            for count, place in zip(counts.tolist(), places.tolist(), strict=True)
            if count
        ]

    def matrix(self) -> Tensor | None:
        """Images of each class (rows) by the class they were given (columns), [C, C]; None for too many classes."""
        if self.confusion is None:
            return None
        found: Tensor = self.confusion.compute()
        return found.cpu()

    def count(self) -> int:
        """Images seen by this process."""
        return int(self.hits.images.sum())

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()


class PositionMetrics(nn.Module):
    """Metric suite of pretraining on positions, with pure chance beside.

    Args:
        patches: Patches of an image, N.
    """

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches
        self.right, self.loss, self.images = WeightedMean((patches,)), WeightedMean(), WeightedMean()

    def update(self, batch: Mapping[str, Tensor], prediction: tuple[Tensor, Tensor]) -> None:
        """Add one batch: logits [B, N, N], and the position that every patch had, [B, N]."""
        logits, order = prediction[0].double(), prediction[1]
        origins = F.one_hot(order, self.patches).flatten(0, 1)  # B N, N
        right = (logits.argmax(2) == order).double().flatten()[:, None].expand_as(origins)
        self.right.update(right, origins)
        self.loss.update(F.cross_entropy(logits.flatten(0, 1), order.flatten(), reduction="none"))
        self.images.update(torch.ones(len(order), device=order.device))

    def compute(self) -> dict[str, float]:
        """Share of patches whose position was told, in percent, and mean cross entropy in nats."""
        accuracy = 100 * float(self.right.compute().mean())  # every image has each position once
        return {"position_accuracy": accuracy, "loss": float(self.loss.compute())}

    def baseline(self) -> dict[str, float]:
        """The same of guessing."""
        return {"position_accuracy": 100 / self.patches, "loss": math.log(self.patches)}

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Accuracy by the position that a patch had."""
        accuracy, side = self.right.compute().tolist(), math.isqrt(self.patches)
        rows = [
            {"row": place // side + 1, "column": place % side + 1, "accuracy %": 100 * share}
            for place, share in enumerate(accuracy)
        ]
        return {"accuracy by position": rows}

    def count(self) -> int:
        """Images seen."""
        return round(float(self.images.weight))

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.right, self.loss, self.images):
            metric.reset()
