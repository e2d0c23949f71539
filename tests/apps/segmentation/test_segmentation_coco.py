"""COCO's formats, by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apps.segmentation import coco

MASKS = arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7)))


def test_runs_go_down_the_columns_and_begin_outside():
    mask = np.array([[0, 1], [1, 1], [0, 0]], dtype=bool)
    assert coco.run_lengths(mask) == [1, 1, 1, 2, 1]
    assert coco.run_lengths(~mask) == [0, 1, 1, 1, 2, 1]
    assert coco.run_lengths(np.ones((2, 2), dtype=bool)) == [0, 4]
    assert coco.run_lengths(np.zeros((2, 2), dtype=bool)) == [4]
    assert coco.run_lengths(np.zeros((0, 2), dtype=bool)) == []


@given(MASKS)
def test_runs_make_the_mask_again(mask):
    lengths = coco.run_lengths(mask)
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(bool)
    np.testing.assert_array_equal(flat.reshape(mask.shape, order="F"), mask)


@given(MASKS)
def test_boxes_hold_all_of_a_mask_and_no_more(mask):
    left, top, width, height = coco.bounding_box(mask)
    inside = np.zeros_like(mask)
    inside[top : top + height, left : left + width] = True
    assert not (mask & ~inside).any()
    part = mask[top : top + height, left : left + width]
    if mask.any():
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
    else:
        assert (width, height) == (0, 0)


def test_numbers_of_segments_are_colours():
    numbers = np.array([[0, 1], [255, 256 + 2], [65536 * 3 + 256 * 4 + 5, 7]])
    colours = coco.as_colours(numbers).astype(int)
    np.testing.assert_array_equal(colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2], numbers)


def test_segments_without_a_pixel_are_left_out():
    segments = np.array([[1, 1, 3], [0, 3, 3]])
    found = coco.segments_info(segments, [4, 5, 6], [0.5, 0.6, 0.75])
    assert [(row["id"], row["category_id"], row["area"], row["bbox"]) for row in found] == [
        (1, 4, 2, [0, 0, 2, 1]),
        (3, 6, 3, [1, 0, 2, 2]),
    ]
    assert found[1]["score"] == 0.75


def test_an_annotation_has_what_readers_expect():
    mask = np.array([[0, 1], [0, 1]], dtype=bool)
    found = coco.annotation(mask, image=3, category=2, number=9)
    assert found == {
        "id": 9, "image_id": 3, "category_id": 2, "area": 2, "bbox": [1, 0, 1, 2], "iscrowd": 0,
        "segmentation": {"size": [2, 2], "counts": [2, 2]},
    }  # fmt: skip
    assert coco.annotation(mask, 0, 0, 1, score=0.5)["score"] == 0.5


def test_categories_tell_things():
    rows = coco.categories(["road", "car"], [(1, 2, 3), (4, 5, 6)], things=(1,))
    assert [(row["id"], row["name"], row["color"], row["isthing"]) for row in rows] == [
        (0, "road", [1, 2, 3], 0),
        (1, "car", [4, 5, 6], 1),
    ]
