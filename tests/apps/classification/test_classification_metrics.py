"""Scores worked out by hand; they depend neither on batches nor on processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.classification.metrics import CalibrationError, ClassificationMetrics, PositionMetrics
from apps.core.metrics.direction import higher_is_better
from apps.core.protocols import MetricSuite
from datamodules.classification.info import ClassificationInfo


def info(counts: tuple[int, ...]) -> ClassificationInfo:
    names = tuple("abcdefghijkl"[: len(counts)])
    return ClassificationInfo(32, 3, names, counts, (0.0,) * 3, (1.0,) * 3)


def batch(labels: list[int]) -> dict[str, torch.Tensor]:
    return {"label": torch.tensor(labels)}


def guesses(best: list[int], classes: int, confidence: float) -> torch.Tensor:
    """Logits that give one class a probability and spread the rest."""
    rest = (1 - confidence) / (classes - 1)
    probabilities = torch.full((len(best), classes), rest, dtype=torch.float64)
    probabilities[torch.arange(len(best)), best] = confidence
    return probabilities.log()


def test_scores_by_hand():
    # labels 0 0 0 1 1 2, guesses 0 0 1 1 2 2: right are 2 of 3, 1 of 2, 1 of 1
    suite = ClassificationMetrics(info((5, 3, 2)))
    assert isinstance(suite, MetricSuite)
    suite.update(batch([0, 0, 0, 1, 1, 2]), guesses([0, 0, 1, 1, 2, 2], 3, 0.8))
    scores = suite.compute()
    assert set(scores) == {"top1", "mean_class_accuracy", "ece", "loss"}
    assert scores["top1"] == pytest.approx(100 * 4 / 6)
    assert scores["mean_class_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)
    assert scores["ece"] == pytest.approx(100 * (0.8 - 4 / 6))  # one bin: confidence 0.8, accuracy 4 / 6
    assert scores["loss"] == pytest.approx(-(4 * math.log(0.8) + 2 * math.log(0.1)) / 6)
    assert suite.count() == 6


def test_baseline_is_the_majority_of_training():
    suite = ClassificationMetrics(info((2, 5, 3)))  # the most frequent class of training is b
    suite.update(batch([0, 1, 1, 2]), guesses([0, 0, 0, 0], 3, 0.9))
    baseline = suite.baseline()
    assert baseline["top1"] == pytest.approx(50.0) and "ece" not in baseline
    assert baseline["mean_class_accuracy"] == pytest.approx(100 / 3)
    assert baseline["loss"] == pytest.approx(-(math.log(0.2) + 2 * math.log(0.5) + math.log(0.3)) / 4, rel=1e-6)


def test_top_five_by_hand():
    suite = ClassificationMetrics(info((1, 2, 3, 4, 5, 6, 7)))
    logits = torch.arange(7.0).flip(0).repeat(3, 1)  # the five best are 0 1 2 3 4
    suite.update(batch([0, 4, 5]), logits)
    assert suite.compute()["top1"] == pytest.approx(100 / 3)
    assert suite.compute()["top5"] == pytest.approx(200 / 3)
    assert suite.baseline()["top5"] == pytest.approx(200 / 3)  # the five most frequent are 6 5 4 3 2


def test_tables_by_hand():
    suite = ClassificationMetrics(info((5, 3, 2)))
    suite.update(batch([0, 0, 0, 1]), guesses([1, 1, 0, 2], 3, 0.8))
    tables = suite.tables()
    assert tables["accuracy by class"] == [
        {"class": "a", "images": 3, "top1 %": pytest.approx(100 / 3)},
        {"class": "b", "images": 1, "top1 %": 0.0},
        {"class": "c", "images": 0, "top1 %": None},
    ]
    assert tables["most confused"] == [
        {"class": "a", "taken for": "b", "images": 2},
        {"class": "b", "taken for": "c", "images": 1},
    ]
    assert suite.matrix().tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert suite.compute()["mean_class_accuracy"] == pytest.approx(100 / 6)  # of the classes that the split has


def test_many_classes_have_no_confusion_matrix():
    counts = (1,) * 2001
    many = ClassificationInfo(32, 3, tuple(map(str, range(2001))), counts, (0.0,) * 3, (1.0,) * 3)
    suite = ClassificationMetrics(many)
    suite.update(batch([7]), torch.randn(1, 2001))
    assert suite.matrix() is None and suite.tables()["most confused"] == []


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**31))
def test_scores_do_not_depend_on_batches(images, size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 6, generator=generator)
    labels = torch.randint(6, (images,), generator=generator)
    suites = [ClassificationMetrics(info((1, 2, 3, 4, 5, 6))) for _ in range(2)]
    suites[0].update({"label": labels}, logits)
    for start in range(0, images, size):
        suites[1].update({"label": labels[start : start + size]}, logits[start : start + size])
    assert suites[0].compute() == pytest.approx(suites[1].compute(), rel=1e-9)
    assert suites[0].tables() == suites[1].tables()
    suites[1].reset()
    assert suites[1].count() == 0


def test_calibration_error_by_hand():
    metric = CalibrationError(bins=4)
    metric.update(torch.tensor([0.3, 0.4, 0.9, 0.8, 1.0]), torch.tensor([True, False, True, True, False]))
    # bin (0.25, 0.5]: confidence 0.35, accuracy 0.5; bin (0.75, 1]: confidence 0.9, accuracy 2 / 3
    assert float(metric.compute()) == pytest.approx((2 * 0.15 + 3 * (0.9 - 2 / 3)) / 5)


def test_a_border_belongs_to_the_bin_below_it():
    metric = CalibrationError(bins=4)
    metric.update(torch.tensor([0.25, 0.5, 0.0]), torch.tensor([True, True, False]))
    assert metric.counts.tolist() == [2, 1, 0, 0]


def test_calibration_agrees_with_torchmetrics():
    from torchmetrics.classification import MulticlassCalibrationError

    logits, labels = torch.randn(500, 4).double(), torch.randint(4, (500,))
    reference = MulticlassCalibrationError(4, n_bins=15)(logits.softmax(1), labels)
    metric = CalibrationError()
    confidence, guess = logits.softmax(1).max(1)
    metric.update(confidence, guess == labels)
    assert float(metric.compute()) == pytest.approx(float(reference), abs=1e-6)


def test_empty_splits_and_directions():
    suite = ClassificationMetrics(info((1, 1)))
    assert all(math.isnan(value) for value in suite.compute().values())
    assert [higher_is_better(name) for name in ("top1", "top5", "mean_class_accuracy", "position_accuracy")] == [
        True
    ] * 4
    assert not higher_is_better("ece") and not higher_is_better("loss")


def test_positions_by_hand():
    suite = PositionMetrics(4)
    assert isinstance(suite, MetricSuite)
    order = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    guess = torch.tensor([[3, 1, 2, 0], [0, 1, 2, 3]])  # of the first image two patches are right
    logits = torch.nn.functional.one_hot(guess, 4).double() * 50
    suite.update({}, (logits, order))
    scores = suite.compute()
    assert scores["position_accuracy"] == pytest.approx(75.0)
    assert scores["loss"] == pytest.approx(2 * 50 / 8, rel=1e-6)
    assert suite.baseline() == {"position_accuracy": 25.0, "loss": pytest.approx(math.log(4))}
    rows = suite.tables()["accuracy by position"]
    assert [(row["row"], row["column"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [row["accuracy %"] for row in rows] == [50.0, 100.0, 50.0, 100.0] and suite.count() == 2
