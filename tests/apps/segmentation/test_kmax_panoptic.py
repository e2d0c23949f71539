"""Segments and objects of kMaX-DeepLab."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from apps.segmentation.models.kmax_panoptic import CHUNK, instances, panoptic, resize_masks
from backbones.timing import peak_memory

CLASSES = 3


def sure_of(*labels: int, certainty: float = 0.9) -> Tensor:
    """Logits of queries that are as certain of a class; -1 for no object."""
    rest = (1 - certainty) / CLASSES
    rows = torch.full((len(labels), CLASSES + 1), rest)
    for row, label in enumerate(labels):
        rows[row, label] = certainty
    return rows.log()


def shares(*rows: list[float]) -> Tensor:
    """Masks of one pixel row, [N, 1, W]."""
    return torch.tensor(rows)[:, None]


def merged(classes: Tensor, masks: Tensor, **rules: Any) -> tuple[list[int], list[int]]:
    found = panoptic(classes, masks, (0,), **rules)
    return found.segments.flatten().tolist(), found.classes.tolist()


def test_every_pixel_goes_to_the_query_that_has_it() -> None:
    pixels, classes = merged(sure_of(0, 1), shares([0.9, 0.8, 0.1, 0.3], [0.1, 0.2, 0.9, 0.3]))
    assert sorted(classes) == [0, 1]
    assert pixels[3] == 0 and pixels[0] == pixels[1] != pixels[2] != 0


def test_the_more_certain_claims_shared_pixels_and_too_covered_masks_are_dropped() -> None:
    masks = shares([0.5, 0.5, 0.0, 0.0], [0.45, 0.45, 0.45, 0.0])
    assert merged(torch.cat([sure_of(0), sure_of(1, certainty=0.8)]), masks, overlap=0.5) == ([1, 1, 0, 0], [0])
    assert merged(torch.cat([sure_of(0), sure_of(1, certainty=0.8)]), masks, overlap=0.3) == ([1, 1, 2, 0], [0, 1])


def test_overlap_must_be_exceeded() -> None:
    masks = shares([0.5, 0.0], [0.45, 0.45])
    classes = torch.cat([sure_of(0), sure_of(0, certainty=0.8)])
    assert merged(classes, masks, overlap=0.5)[1] == [0]
    assert merged(classes, masks, overlap=0.49)[1] == [0, 0]


def test_stuff_of_a_class_is_one_segment_and_things_are_many() -> None:
    masks = shares([0.9, 0.0], [0.0, 0.9])
    assert merged(sure_of(1, 1), masks) == ([1, 1], [1])
    assert merged(sure_of(0, 0), masks)[1] == [0, 0]


def test_thresholds_are_strict_and_differ_for_things_and_stuff() -> None:
    masks = shares([0.9, 0.0], [0.0, 0.9])
    classes = sure_of(0, 1, certainty=0.6)
    assert merged(classes, masks)[1] == [1]
    assert merged(classes, masks, thing_threshold=0.5)[1] == [0, 1]
    assert merged(classes, masks, stuff_threshold=0.61)[1] == []
    assert merged(sure_of(0), shares([0.4, 0.41]))[0] == [0, 1]


def test_empty_masks_and_no_object_are_left_out() -> None:
    assert merged(sure_of(0, -1), shares([0.3, 0.3], [0.7, 0.7])) == ([0, 0], [])
    assert merged(sure_of(0), shares([0.3, 0.3]), overlap=0.0) == ([0, 0], [])


def test_powers_set_the_order() -> None:
    classes = torch.cat([sure_of(0, certainty=0.9), sure_of(1, certainty=0.8)])
    masks = shares([0.45, 0.45, 0.0], [0.5, 0.5, 0.9])
    assert merged(classes, masks, overlap=0.3)[1] == [1]
    assert merged(classes, masks, overlap=0.3, mask_power=0.0)[1] == [0, 1]


def test_scores_are_class_times_mask() -> None:
    found = panoptic(sure_of(0), shares([0.8, 0.6, 0.1]), (0,))
    assert found.scores.tolist() == pytest.approx([0.9 * 0.7])
    assert found.segments.dtype == torch.int32


def test_images_without_pixels_or_queries() -> None:
    assert panoptic(sure_of(0), torch.zeros(1, 0, 3), (0,)).segments.shape == (0, 3)
    assert panoptic(torch.zeros(0, 4), torch.zeros(0, 2, 3), (0,)).classes.shape == (0,)


def test_instances_are_pairs_of_query_and_class() -> None:
    classes = torch.cat([sure_of(0, certainty=0.9), sure_of(2, certainty=0.8)])
    classes = torch.cat([classes, sure_of(-1)])
    masks = shares([0.8, 0.6, 0.1], [0.0, 0.3, 0.9], [0.2, 0.1, 0.0]).log()  # the softmax over queries gives them back
    found = instances(classes, masks, (1, 3), 1, top=2)
    assert found.classes.tolist() == [0, 2]
    assert found.scores.tolist() == pytest.approx([0.9 * 0.7, 0.8 * 0.9])
    assert found.masks[:, 0].tolist() == [[True, True, False], [False, False, True]]
    assert instances(classes, masks, (1, 3), 1, top=2, things=(2,)).classes.tolist() == [2]


def all_at_once(classes: Tensor, masks: Tensor, size: tuple[int, int], things: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The softmax over every enlarged mask, then the pairs."""
    probabilities = resize_masks(masks[None], size, 4)[0].softmax(0)
    scores = classes.softmax(-1)[:, :-1]
    best, pairs = scores.flatten().topk(min(100, scores.numel()))
    wanted = torch.isin(pairs % CLASSES, torch.tensor(things, dtype=torch.long))
    best, pairs = best[wanted], pairs[wanted]
    chosen = probabilities[pairs // CLASSES]
    inside = chosen > 0.4
    means = (chosen * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
    return pairs % CLASSES, best * means, inside


@pytest.mark.parametrize(("queries", "size"), [(50, (48, 64)), (3, (45, 61)), (20, (30, 32))])
@pytest.mark.parametrize("things", [(0, 2), (1,), ()])
def test_instances_are_those_of_a_softmax_over_all_masks_at_once(
    queries: int, size: tuple[int, int], things: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(queries)
    classes = torch.randn(queries, CLASSES + 1, generator=generator)
    masks = 5 * torch.randn(queries, 12, 16, generator=generator)
    found = instances(classes, masks, size, 4, things=things)
    labels, scores, inside = all_at_once(classes, masks, size, things)
    assert torch.equal(found.classes, labels) and torch.equal(found.masks, inside)
    torch.testing.assert_close(found.scores, scores)
    assert bool(len(labels)) == bool(things) and found.masks.shape[1:] == size


def test_instances_take_memory_for_themselves_and_a_few_masks() -> None:
    classes, masks, size = torch.randn(128, CLASSES + 1), torch.randn(128, 32, 64), (128, 256)
    pixels = size[0] * size[1]
    peak = peak_memory(lambda: instances(classes, masks, size, 4, things=(0, 1)))
    assert peak < 100 * pixels + 6 * CHUNK * 4 * pixels  # the enlarged masks alone are 512 bytes per pixel
    assert peak < peak_memory(lambda: all_at_once(classes, masks, size, (0, 1))) / 2


def test_odd_widths_align_corners_and_even_ones_cut_what_was_padded() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    aligned = resize_masks(ramp, (17, 17), 4)
    torch.testing.assert_close(aligned[0, 0, 0], torch.arange(17) / 4)
    cut = resize_masks(ramp, (18, 18), 4)
    whole = torch.nn.functional.interpolate(ramp, size=(20, 20), mode="bilinear", align_corners=False)
    assert torch.equal(cut, whole[..., :18, :18])
