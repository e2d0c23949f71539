"""Scores of pixels, boundaries and masks worked out by hand, and equal to the reference's on its golden case."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from apps.core.metrics.direction import higher_is_better
from apps.core.protocols import MetricSuite
from apps.core.report.numbers import number
from apps.core.run.atomic import json_text
from apps.segmentation.average_precision import MaskPrecision, Objects, PrecisionScores
from apps.segmentation.boundary import BoundaryAreas, boundary_width, near_boundary
from apps.segmentation.confusion import ConfusionCounts, class_areas, class_scores, pixel_accuracy
from apps.segmentation.instances import Detections, detections, objects_at
from apps.segmentation.metrics import SegmentationMetrics
from apps.segmentation.models.mask2former_panoptic import Instances
from apps.segmentation.prediction import Prediction
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import DataError, ShapeError
from tests.apps.segmentation.without_float64 import moved


def info(classes: int, things: tuple[int, ...] = (), majority: int = 0) -> SegmentationInfo:
    names = tuple(f"class {i}" for i in range(classes))
    pixels = tuple(10 if i == majority else 1 for i in range(classes))
    return SegmentationInfo(names, ((0, 0, 0),) * classes, things, bool(things), pixels=pixels)


def predicted(labels: Tensor, **segments: Tensor) -> Prediction:
    return Prediction(labels, torch.ones(labels.shape), torch.zeros(len(labels)), **segments)


def batch(labels: Tensor, **further: Tensor) -> dict[str, Tensor]:
    size = torch.tensor([list(labels.shape[1:])] * len(labels))
    return {"mask": labels, "size": size, "index": torch.arange(len(labels)), **further}


# labels 0 0 0 1 1 2 and one ignored, predictions 0 0 1 1 0 1 0; class 3 is absent
LABELS, FOUND = torch.tensor([[[0, 0, 0, 1, 1, 2, 255]]]), torch.tensor([[[0, 0, 1, 1, 0, 1, 0]]])


def test_scores_of_pixels_by_hand():
    suite = SegmentationMetrics(info(4))
    assert isinstance(suite, MetricSuite)
    suite.update(batch(LABELS), predicted(FOUND))
    scores = suite.compute()
    assert set(scores) == {"miou", "macc", "aacc", "fscore"}
    assert scores["miou"] == pytest.approx(100 * (2 / 4 + 1 / 4 + 0) / 3)  # class 3 is neither labelled nor predicted
    assert scores["macc"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    assert scores["aacc"] == pytest.approx(100 * 3 / 6)
    # precision 2 / 3 and 1 / 3; of class 2 it divides by nothing, and so does its F-score
    assert scores["fscore"] == pytest.approx(100 * (2 / 3 + 2 / 5) / 2)
    assert suite.count() == 1


def test_there_is_no_baseline_where_pixels_were_not_counted():
    suite = SegmentationMetrics(replace(info(2, things=(1,)), pixels=()), segments=True)
    labels = torch.tensor([[[0, 1]]])
    truth = {"segments": labels.int(), "segment_classes": torch.tensor([[0, 1]])}
    suite.update(
        batch(labels, **truth, segment_crowd=torch.zeros(1, 2, dtype=torch.bool)),
        predicted(labels, segments=labels.int(), segment_classes=torch.tensor([[0, 1]])),
    )
    assert suite.baseline() == {} and {"miou", "pq", "pq_things"} < set(suite.compute())


def test_tables_by_hand():
    suite = SegmentationMetrics(info(4))
    suite.update(batch(LABELS), predicted(FOUND))
    rows = suite.tables()["scores by class"]
    assert rows[0] == {
        "class": "class 0",
        "pixels %": 50.0,
        "IoU %": 50.0,
        "accuracy %": pytest.approx(200 / 3),
        "F-score %": pytest.approx(200 / 3),
        "precision %": pytest.approx(200 / 3),
    }
    assert rows[2]["IoU %"] == 0 and rows[2]["precision %"] is None
    assert rows[3]["IoU %"] is None and rows[3]["accuracy %"] is None
    confused = suite.tables()["most confused"]
    third = {"class": "class 0", "taken for": "class 1", "pixels": 1, "share of the class %": pytest.approx(100 / 3)}
    assert len(confused) == 3 and third in confused
    assert suite.confusion().tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_baseline_is_the_majority_of_training_everywhere():
    suite, same = SegmentationMetrics(info(4, majority=1)), SegmentationMetrics(info(4))
    suite.update(batch(LABELS), predicted(FOUND))
    same.update(batch(LABELS), predicted(torch.ones_like(LABELS)))
    assert suite.baseline() == pytest.approx(same.compute(), nan_ok=True)
    assert suite.baseline()["miou"] == pytest.approx(100 * (2 / 6) / 3)


def test_numbers_that_are_no_class():
    counts = ConfusionCounts(2)
    counts.update(torch.tensor([[[0, 7, 1, 1]]]), torch.tensor([[[0, 0, 1, 9]]]))
    areas = class_areas(counts.compute())
    assert areas.intersection.tolist() == [1, 1]
    assert areas.predicted.tolist() == [1, 2] and areas.labelled.tolist() == [2, 1]
    with pytest.raises(ShapeError, match=r"\[1, 1, 4\] must have the shape of labels \[1, 1, 5\]"):
        counts.update(torch.zeros(1, 1, 4), torch.zeros(1, 1, 5))


def test_nothing_but_ignored_pixels():
    suite = SegmentationMetrics(info(3), thorough=True)
    suite.update(batch(torch.full((1, 4, 4), 255)), predicted(torch.zeros(1, 4, 4, dtype=torch.int64)))
    assert all(math.isnan(value) for value in suite.compute().values())
    assert suite.tables()["most confused"] == []


def test_the_reference_gives_the_same(shared):
    golden = load_file(shared / "goldens/segmentation/segmentor_slide.safetensors")
    counts = ConfusionCounts(7)
    counts.update(golden["output.slide_pred"], golden["input.label"])
    areas = class_areas(counts.compute())
    for name, area in (("intersect", areas.intersection), ("pred", areas.predicted), ("label", areas.labelled)):
        assert area.tolist() == golden[f"output.area.{name}"].tolist()
    assert areas.union.tolist() == golden["output.area.union"].tolist()
    scores = class_scores(areas)
    expected = {"IoU": scores.iou, "Acc": scores.accuracy, "Fscore": scores.fscore}
    expected |= {"Precision": scores.precision, "Recall": scores.recall}
    for name, values in expected.items():
        torch.testing.assert_close(values.nan_to_num(-1).float(), golden[f"output.metric.{name}"])
    torch.testing.assert_close(pixel_accuracy(areas).float(), golden["output.metric.aAcc"])


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), images=st.integers(1, 5), step=st.integers(1, 3))
def test_scores_depend_neither_on_batches_nor_on_processes(seed, images, step):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (images, 12, 17), generator=generator)
    labels[labels == 4] = 255
    found = torch.randint(4, (images, 12, 17), generator=generator)
    whole, parts = SegmentationMetrics(info(4), thorough=True), SegmentationMetrics(info(4), thorough=True)
    other = SegmentationMetrics(info(4), thorough=True)  # of a second process
    whole.update(batch(labels), predicted(found))
    for place, start in enumerate(range(0, images, step)):
        suite = parts if place % 2 == 0 else other
        suite.update(batch(labels[start : start + step]), predicted(found[start : start + step]))
    parts.pixels.counts += other.pixels.counts  # as torchmetrics sums states
    parts.boundary.areas += other.boundary.areas
    assert parts.compute() == whole.compute()
    assert parts.tables() == whole.tables() and parts.baseline() == whole.baseline()
    whole.reset()
    assert whole.count() == 0 and whole.confusion().sum() == 0


def test_segments_that_are_missing_are_named():
    suite = SegmentationMetrics(info(4, things=(0,)), segments=True)
    with pytest.raises(DataError, match="has none"):
        suite.update(batch(LABELS), predicted(FOUND))


def test_every_score_is_known_to_be_better_high():
    suite = SegmentationMetrics(info(3, things=(0,)), segments=True, thorough=True)
    segments = {"segments": torch.zeros(1, 8, 8).int(), "segment_classes": torch.tensor([[0]])}
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    ours = {"segments": torch.ones(1, 8, 8).int(), "segment_classes": torch.tensor([[0]])}
    suite.update(
        batch(labels, **segments, segment_crowd=torch.tensor([[False]])),
        predicted(labels, **ours, detections=Detections(*map(torch.tensor, ([[0]], [[0.9]], [[64]], [[[64]]])))),
    )
    scores = suite.compute()
    expected = {"miou", "macc", "aacc", "fscore", "boundary_iou"}
    expected |= {"pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ap50", "ap75", "ar"}
    absent = {"pq_stuff", "ap_medium", "ap_large"}  # the only object is a thing of 64 pixels
    assert set(scores) == expected | {"ap_small"} | absent
    assert all(higher_is_better(f"val/{name}") for name in scores)
    assert all(value == pytest.approx(100) for name, value in scores.items() if name not in absent)
    assert all(number(scores[name]) == "NaN" for name in absent)
    assert json.loads(json_text(scores))["ap_large"] is None
    assert suite.baseline()["pq"] == pytest.approx(100)


# -- boundaries -------------------------------------------------------------------------------------------------------


def literal_boundary(mask: Tensor, width: int) -> Tensor:
    """A mask less itself eroded ``width`` times by a square of three pixels, with nothing around the image."""
    eroded = F.pad(mask[None, None].double(), (1, 1, 1, 1))
    for _ in range(width):
        eroded = -F.max_pool2d(F.pad(-eroded, (1, 1, 1, 1), value=-1.0), 3, stride=1)
    return mask & (eroded[0, 0, 1:-1, 1:-1] == 0)


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 4), st.integers(0, 2**31))
def test_boundaries_are_what_erosion_takes(height, width, reach, seed):
    coarse = torch.randint(3, (1, 1, 3, 4), generator=torch.Generator().manual_seed(seed)).double()
    labels = F.interpolate(coarse, size=(height, width), mode="nearest")[0].long()
    near = near_boundary(labels, reach)[0]
    for label in range(3):
        mask = labels[0] == label
        assert torch.equal(near & mask, literal_boundary(mask, reach))


def test_boundary_iou_by_hand():
    # halves of 20 x 20 pixels, one column off; the boundary reaches 1 pixel inwards
    labels = (torch.arange(20) >= 10).long().expand(1, 20, 20)
    found = (torch.arange(20) >= 11).long().expand(1, 20, 20)
    metric = BoundaryAreas(2)
    metric.update(found, labels)
    assert boundary_width(20, 20) == 1 and boundary_width(1024, 2048) == 46
    areas = metric.compute()
    # frames of 10 x 20 and 11 x 20 pixels: they share left side, and top and bottom of 10 pixels
    assert areas.labelled.tolist() == [56, 56] and areas.predicted.tolist() == [58, 54]
    assert areas.intersection.tolist() == [20 + 2 * 9, 20 + 2 * 8]


def test_ignored_pixels_make_no_boundary_and_padding_does_not_count():
    labels = torch.zeros(1, 30, 30, dtype=torch.int64)
    labels[:, :, 15:] = 255
    found = labels.clone()
    found[:, :, 20:] = 1  # on ignored pixels
    metric = BoundaryAreas(2)
    metric.update(found.where(labels != 255, found.new_tensor(1)), labels)
    areas = metric.compute()
    assert torch.equal(areas.intersection, areas.union) and areas.union.tolist() == [2 * 30 + 2 * 13, 0]
    padded = BoundaryAreas(2)
    fill = (0, 9, 0, 5)
    padded.update(F.pad(found, fill), F.pad(labels, fill, value=255), torch.tensor([[30, 30]]))
    assert torch.equal(padded.areas, metric.areas)


# -- average precision ------------------------------------------------------------------------------------------------


def row(*spans: tuple[int, int], length: int = 40) -> Tensor:
    """Masks [N, 1, length] of ranges of pixels."""
    return torch.stack([(torch.arange(length) >= first) & (torch.arange(length) < last) for first, last in spans])[
        :, None
    ]


def objects_of(masks: Tensor, classes: Tensor, scores: Tensor, true: Tensor, true_classes: Tensor) -> Objects:
    """Objects from masks, without crowds."""
    found, right = masks.flatten(1).double(), true.flatten(1).double()
    crowd = torch.zeros(len(true), dtype=torch.bool)
    return Objects(found @ right.T, found.sum(1), classes, scores, right.sum(1), true_classes, crowd)


def test_average_precision_by_hand():
    # two objects; the best detection is right at IoU 1, the second is wrong, the third has IoU 8 / 10
    metric = MaskPrecision(2)
    masks, scores = row((0, 10), (30, 40), (20, 28)), torch.tensor([0.9, 0.8, 0.7])
    metric.update(0, objects_of(masks, torch.zeros(3).long(), scores, row((0, 10), (20, 30)), torch.zeros(2).long()))
    found = metric.compute()
    half = 51 * 1.0  # recalls 0, 0.01, ..., 0.5
    assert found.ap50 == pytest.approx((half + 50 * 2 / 3) / 101)
    assert found.ap75 == pytest.approx((half + 50 * 2 / 3) / 101)
    assert found.ap == pytest.approx((7 * (half + 50 * 2 / 3) + 3 * half) / 1010)
    assert found.recall == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    assert found.small == found.ap and math.isnan(found.medium) and math.isnan(found.by_class[1])


def test_the_best_overlap_wins_and_is_taken_once():
    metric = MaskPrecision(1)
    masks = row((0, 10), (0, 9))  # both overlap the only object
    metric.update(
        0, objects_of(masks, torch.zeros(2).long(), torch.tensor([0.6, 0.9]), row((0, 10)), torch.zeros(1).long())
    )
    found = metric.compute()
    assert found.ap50 == pytest.approx(1.0)  # the surer one finds the object, the other comes after full recall
    assert found.ap == pytest.approx((9 * 1.0 + 1 * 0.5) / 10)  # at 0.95 only the second fits


def test_an_overlap_of_exactly_a_threshold_is_enough():
    # 17 of 20 pixels: right at 0.5, 0.55, ..., 0.85 alone; 0.5 + 7 * 0.05 would be a little more than 17 / 20
    metric = MaskPrecision(1)
    masks, true, zero = row((0, 17)), row((0, 20)), torch.zeros(1).long()
    metric.update(0, objects_of(masks, zero, torch.tensor([0.9]), true, zero))
    assert metric.compute().ap == pytest.approx(0.8)


def literal_precision(images: list[Objects], classes: int) -> PrecisionScores:
    """COCOeval in loops: a class, a range of areas and a threshold after the other, detection by detection."""
    ranges = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
    precision, recall = np.full((4, classes, 10), np.nan), np.full((4, classes, 10), np.nan)
    for place, (least, most) in enumerate(ranges):
        for label in range(classes):
            for step, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
                found = [literal_matches(image, label, least, most, threshold) for image in images]
                total = sum(objects for _, objects in found)
                if total:
                    judged = sorted((d for detections, _ in found for d in detections), key=lambda d: -d[0])
                    precision[place, label, step], recall[place, label, step] = literal_curve(judged, total)
    parts = (precision[0], precision[0, :, 0], precision[0, :, 5], *precision[1:], recall[0])
    means = [math.nan if np.isnan(part).all() else float(np.nanmean(part)) for part in parts]
    return PrecisionScores(*means, by_class=torch.from_numpy(precision[0].mean(1)))


def literal_matches(image: Objects, label: int, least: float, most: float, threshold: float) -> tuple[list, int]:
    """Of one image: (score, right or wrong or None where it does not count) of detections, and objects to find."""
    outside = lambda area: area < least or area > most  # noqa: E731
    true = [g for g in range(len(image.true_classes)) if image.true_classes[g] == label]
    skipped = {g: bool(image.crowd[g]) or outside(float(image.true_areas[g])) for g in true}
    true.sort(key=lambda g: skipped[g])  # those to be found first
    mine = [d for d in range(len(image.classes)) if image.classes[d] == label]
    mine.sort(key=lambda d: -float(image.scores[d]))
    taken, judged = set(), []
    for d in mine[:100]:
        best, partner = min(threshold, 1 - 1e-10), None
        for g in true:
            if g in taken and not image.crowd[g]:
                continue
            if partner is not None and not skipped[partner] and skipped[g]:
                break
            shared, area = int(image.shared[d, g]), int(image.areas[d])
            iou = shared / (area if image.crowd[g] else area + int(image.true_areas[g]) - shared)
            if iou >= best:
                best, partner = iou, g
        taken.add(partner)
        right = partner is not None
        counts = not skipped[partner] if right else not outside(float(image.areas[d]))
        judged.append((float(image.scores[d]), right if counts else None))
    return judged, sum(not skip for skip in skipped.values())


def literal_curve(judged: list[tuple[float, bool | None]], objects: int) -> tuple[float, float]:
    """Mean over 101 recalls of the best precision at that recall or above, and the highest recall."""
    points, hits, wrong = [], 0, 0
    for _, right in judged:
        hits, wrong = hits + (right is True), wrong + (right is False)
        points.append((hits / objects, hits / (hits + wrong) if hits else 0.0))
    wanted = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
    return float(np.mean(wanted)), points[-1][0] if points else 0.0


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_loops_of_the_reference_give_the_same(seed, count):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high, *size: torch.randint(low, high, size, generator=generator)  # noqa: E731
    images = []
    for _ in range(count):
        found, objects = int(draw(0, 7, 1)), int(draw(0, 5, 1))
        true_areas = torch.tensor([20, 40, 100, 1020, 1024, 1040, 9216, 9220])[draw(0, 8, objects)]
        partner = draw(0, max(1, objects), found)
        shared = torch.zeros(found, objects, dtype=torch.int64)
        areas = draw(10, 12000, found)  # of detections without partner
        if objects:
            areas = true_areas[partner] * draw(9, 21, found) // 20  # inside of it: overlaps of 0.45, 0.5, ..., 1
            shared[torch.arange(found), partner] = areas
        crowd, scores = draw(0, 5, objects) == 0, draw(1, 9, found) / 8
        images.append(Objects(shared, areas, draw(0, 2, found), scores, true_areas, draw(0, 2, objects), crowd))
    metric = MaskPrecision(2)
    for place, image in enumerate(images):
        metric.update(place, image)
    ours, wanted = metric.compute(), literal_precision(images, 2)
    assert ours[:-1] == pytest.approx(wanted[:-1], abs=1e-12, nan_ok=True)
    np.testing.assert_allclose(ours.by_class, wanted.by_class, atol=1e-12)


def test_crowds_take_any_number_and_count_for_nothing():
    objects = Objects(
        shared=torch.tensor([[10, 0], [0, 8], [0, 6]]),
        areas=torch.tensor([10, 8, 6]),
        classes=torch.zeros(3).long(),
        scores=torch.tensor([0.5, 0.9, 0.8]),
        true_areas=torch.tensor([10, 200]),
        true_classes=torch.zeros(2).long(),
        crowd=torch.tensor([False, True]),
    )
    metric = MaskPrecision(1)
    metric.update(0, objects)
    assert metric.compute().ap == pytest.approx(1.0)


def test_equal_scores_are_ordered_by_image_whatever_the_order_of_arrival():
    def image(right: bool) -> Objects:
        span = (0, 10) if right else (20, 30)
        return objects_of(row(span), torch.zeros(1).long(), torch.tensor([0.5]), row((0, 10)), torch.zeros(1).long())

    scores = []
    for order in ((0, 1), (1, 0)):
        metric = MaskPrecision(1)
        for place in order:
            metric.update(place, image(right=place == 0))
        scores.append(metric.compute().ap)
    assert scores[0] == scores[1] == pytest.approx(51 / 101)


def test_no_detections_score_nothing():
    metric = MaskPrecision(2)
    empty = torch.zeros(0, 1, 40, dtype=torch.bool)
    metric.update(0, objects_of(empty, torch.zeros(0).long(), torch.zeros(0), row((0, 10)), torch.ones(1).long()))
    found = metric.compute()
    assert found.ap == 0 and found.recall == 0 and math.isnan(found.by_class[0])


def test_instances_may_overlap_lie_on_void_and_beyond_the_image():
    numbers = torch.full((2, 1, 12), -1)
    numbers[0, 0, :4], numbers[0, 0, 4:8], numbers[0, 0, 8:10] = 0, 1, 2
    given = {
        "segments": numbers,
        "segment_classes": torch.tensor([[1, 1, 0], [-1, -1, -1]]),
        "segment_crowd": torch.tensor([[False, True, False], [False] * 3]),
        "size": torch.tensor([[1, 11], [1, 12]]),
    }
    one = Instances(torch.tensor([1, 1, 0]), torch.tensor([0.9, 0.8, 0.7]), row((0, 6), (2, 16), (8, 10), length=16))
    none = Instances(torch.zeros(0).long(), torch.zeros(0), torch.zeros(0, 1, 16, dtype=torch.bool))
    found = detections([one, none], given)
    assert found.areas.tolist() == [[6, 9, 2], [0, 0, 0]]  # pixel 10 is void and counts, what is beyond does not
    assert found.shared[0].tolist() == [[4, 2, 0], [2, 4, 2], [0, 0, 2]]
    assert found.classes.tolist() == [[1, 1, 0], [-1, -1, -1]]
    objects = objects_at(found, given, 0, things=(1,))
    assert objects.shared.tolist() == [[4, 2], [2, 4]] and objects.true_areas.tolist() == [4, 4]
    assert objects.classes.tolist() == [1, 1] and objects.crowd.tolist() == [False, True]
    assert objects.scores.tolist() == pytest.approx([0.9, 0.8])
    nothing = objects_at(found, given, 1, things=(1,))
    assert nothing.shared.shape == (0, 0) and not len(nothing.true_classes)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 4), st.integers(1, 40))
def test_shared_pixels_are_counted_mask_by_mask(seed, found, true, at_once):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-1, true, (1, 7, 5), generator=generator, dtype=torch.int32).sort(2).values
    masks = torch.rand(found, 9, 5, generator=generator) < 0.6
    one = Instances(torch.zeros(found).long(), torch.zeros(found), masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apps.segmentation.instances._AT_ONCE", at_once * 5)
        given = detections([one], {"segments": numbers, "segment_classes": torch.zeros(1, true).long()})
    for place, mask in enumerate(masks[:, :7]):
        assert given.areas[0, place] == mask.sum()
        assert given.shared[0, place].tolist() == [int((mask & (numbers[0] == t)).sum()) for t in range(true)]


def test_every_score_is_found_on_devices_without_float64():
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(-1, 4, (2, 1, 24, 1), generator=generator).repeat_interleave(20, 3).squeeze(1)
    labels = segments.clamp(min=0) % 3
    truth = {"segments": segments, "segment_classes": torch.tensor([[0, 1, 2, 0]] * 2)}
    truth["segment_crowd"] = torch.tensor([[False, False, False, True]] * 2)
    masks = torch.stack([segments == place for place in range(3)], 1)
    masks[:, :, 20:] = True

    def scores(place):
        suite = SegmentationMetrics(info(3, things=(0, 1)), segments=True, thorough=True)._apply(place)
        given = {name: place(values) for name, values in batch(labels, **truth).items()}
        certain = place(torch.tensor([0.9, 0.8, 0.7]))
        found = detections([Instances(place(torch.tensor([0, 1, 2])), certain, place(m)) for m in masks], given)
        ours = {"segments": place(segments.int() + 1), "segment_classes": place(truth["segment_classes"])}
        labelled = predicted(place(labels.roll(1, 1)), **ours, detections=found)
        for _ in range(2):  # states are kept where they are
            suite.reset()
            suite.update(given, labelled)
        return suite.compute(), suite.baseline(), suite.tables()

    here, there = scores(lambda tensor: tensor), scores(moved)
    assert there[0] == pytest.approx(here[0], nan_ok=True) and 0 < here[0]["ap"] < 100
    assert there[1] == pytest.approx(here[1], nan_ok=True) and there[2] == here[2]


def test_instances_that_are_missing_are_named():
    suite = SegmentationMetrics(info(3, things=(0,)), segments=True, thorough=True)
    labels, ones = torch.zeros(1, 4, 4).long(), torch.ones(1, 4, 4).int()
    truth = {"segments": ones - 1, "segment_classes": torch.tensor([[0]]), "segment_crowd": torch.tensor([[False]])}
    with pytest.raises(DataError, match="instances are to be scored"):
        suite.update(batch(labels, **truth), predicted(labels, segments=ones, segment_classes=torch.tensor([[0]])))
