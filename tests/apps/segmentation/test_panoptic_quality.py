"""Panoptic quality worked out by hand: void, crowds, one half exactly, absent classes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.segmentation.panoptic_quality import PanopticQuality, overlaps
from graftwork.errors import ShapeError

CLASSES = 3


def line(*runs: tuple[int, int]) -> Tensor:
    """A map [1, pixels] from (segment, pixels)."""
    return torch.tensor([segment for segment, pixels in runs for _ in range(pixels)])[None]


def quality(
    found: Tensor, found_classes: list[int], true: Tensor, true_classes: list[int], crowd: tuple[int, ...] = ()
) -> PanopticQuality:
    metric = PanopticQuality(CLASSES)
    flags = torch.tensor([place in crowd for place in range(len(true_classes))])
    shared = overlaps(found, true, len(found_classes), len(true_classes))
    classes = [torch.tensor(labels, dtype=torch.int64) for labels in (found_classes, true_classes)]
    metric.update(shared, *classes, flags.bool())
    return metric


def test_pairs_by_hand():
    # class 0: IoU 8 / 12; class 1: a segment in two parts, the larger one has IoU 6 / 10
    true = line((0, 10), (1, 10))
    found = line((1, 8), (0, 2), (1, 2), (2, 6), (3, 2))
    metric = quality(found, [0, 1, 1], true, [0, 1])
    scores = metric.compute()
    assert metric.counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert scores.pq[0] == pytest.approx(8 / 12)
    assert scores.sq[1] == pytest.approx(0.6) and scores.rq[1] == pytest.approx(1 / 1.5)
    assert scores.pq[1] == pytest.approx(0.6 / 1.5)
    assert math.isnan(scores.pq[2])
    assert scores.mean()[0] == pytest.approx((8 / 12 + 0.4) / 2)
    assert scores.mean(torch.tensor([False, True, True]))[0] == pytest.approx(0.4)
    assert math.isnan(scores.mean(torch.tensor([False, False, True]))[0])


def test_sums_do_not_depend_on_the_order_of_images():
    lines = [line((1, right), (0, 12 - right)) for right in (7, 8, 9, 10, 11)]
    sums = []
    for order in (lines, lines[::-1]):
        metric = PanopticQuality(CLASSES)
        for found in order:
            metric.update(overlaps(found, line((0, 12)), 1, 1), *torch.zeros(2, 1).long(), torch.zeros(1).bool())
        sums.append(metric.compute().pq[0])
    assert sums[0] == sums[1] == pytest.approx((7 + 8 + 9 + 10 + 11) / 12 / 5, abs=1e-11)


def test_an_overlap_of_one_half_is_no_pair():
    metric = quality(line((1, 5), (0, 5)), [0], line((0, 10)), [0])
    assert metric.counts[:, 0].tolist() == [0, 1, 1]
    assert quality(line((1, 6), (0, 5)), [0], line((0, 11)), [0]).counts[:, 0].tolist() == [1, 0, 0]


def test_other_classes_are_no_pair():
    metric = quality(line((1, 10)), [1], line((0, 10)), [0])
    assert metric.counts.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert metric.compute().mean()[0] == 0


def test_void_is_left_out_of_the_union():
    # 6 pixels right, 4 on void: without them IoU is 6 / 10
    metric = quality(line((1, 6), (0, 4), (1, 4)), [0], line((0, 10), (-1, 4)), [0])
    assert metric.compute().sq[0] == pytest.approx(0.6) and metric.counts[:, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("on_void", "wrong"), [(5, 1), (6, 0)])
def test_segments_mostly_on_void_are_left_out(on_void, wrong):
    true = line((0, 10 - on_void), (-1, on_void))
    assert quality(line((1, 10)), [1], true, [0]).counts[1].tolist() == [0, wrong, 0]


@pytest.mark.parametrize(("label", "wrong"), [(1, 0), (2, 1)])
def test_segments_on_crowds_of_their_class_are_left_out(label, wrong):
    true = line((0, 10), (1, 10))
    metric = quality(line((0, 10), (1, 10)), [label], true, [0, 1], crowd=(1,))
    assert metric.counts[1].sum() == wrong
    assert metric.counts[2].tolist() == [1, 0, 0]  # a crowd is not missed
    assert metric.counts[0].sum() == 0  # nor found


def test_void_and_crowd_add_up():
    true = line((0, 4), (1, 3), (-1, 3))
    assert quality(line((1, 10)), [1], true, [0, 1], crowd=(1,)).counts[1].sum() == 0


def test_segments_without_pixels_and_places_filled_up_count_for_nothing():
    metric = quality(line((1, 10)), [0, 1, -1], line((0, 10)), [0, 2, -1])
    assert metric.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_maps_must_fit():
    with pytest.raises(ShapeError, match=r"\[1, 10\] must have the shape of true ones \[1, 9\]"):
        quality(line((1, 10)), [0], line((0, 9)), [0])
    with pytest.raises(ShapeError, match="predicted segments are numbered up to 2, but 1 classes"):
        quality(line((2, 10)), [0], line((0, 10)), [0])


def literal(found: Tensor, found_classes: list[int], true: Tensor, true_classes: list[int], crowd: list[bool]) -> list:
    """The definition, pair by pair."""
    iou_sum, counts = [0.0] * CLASSES, [[0] * CLASSES for _ in range(3)]
    paired_true, paired_found = set(), set()
    for t, label in enumerate(true_classes):
        for s, guess in enumerate(found_classes):
            here, there = true == t, found == s + 1
            union = int((here | there).sum()) - int((there & (true == -1)).sum())
            if label == guess and not crowd[t] and here.any() and int((here & there).sum()) > 0.5 * union:
                iou_sum[label] += int((here & there).sum()) / union
                counts[0][label] += 1
                paired_true.add(t)
                paired_found.add(s)
    for s, guess in enumerate(found_classes):
        there = found == s + 1
        beside = (true == -1).clone()
        for t, label in enumerate(true_classes):
            beside |= (true == t) if crowd[t] and label == guess else torch.zeros_like(beside)
        if s not in paired_found and there.any() and int((there & beside).sum()) <= 0.5 * int(there.sum()):
            counts[1][guess] += 1
    for t, label in enumerate(true_classes):
        counts[2][label] += t not in paired_true and not crowd[t] and bool((true == t).any())
    return [iou_sum, counts]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 5))
def test_the_definition_gives_the_same(seed, found_count, true_count):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high, size: torch.randint(low, high, size, generator=generator)  # noqa: E731
    true, found_classes = draw(-1, true_count, (6, 7)), draw(0, CLASSES, (found_count,)).tolist()
    true_classes, crowd = draw(0, CLASSES, (true_count,)).tolist(), (draw(0, 4, (true_count,)) == 0).tolist()
    found = (true + 1).clamp(max=found_count)
    found = torch.where(draw(0, 3, (6, 7)) == 0, draw(0, found_count + 1, (6, 7)), found)
    numbers = tuple(place for place, flag in enumerate(crowd) if flag)
    metric = quality(found, found_classes, true, true_classes, numbers)
    iou_sum, counts = literal(found, found_classes, true, true_classes, crowd)
    assert (metric.iou / 2.0**40).tolist() == pytest.approx(iou_sum) and metric.counts.tolist() == counts
