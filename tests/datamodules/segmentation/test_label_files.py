"""Masks of every kind to labels, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datamodules.guard import CorruptSample
from datamodules.segmentation.classes import ClassTable, colour_map, read_names, read_palette
from datamodules.segmentation.labels import (
    ColourMasks,
    IndexMasks,
    from_segments,
    index_table,
    read_ids,
    with_segments,
)
from datamodules.segmentation.layout import Item
from datamodules.segmentation.polygons import Patch, disc_patch, patch_at, patch_of, polygon_patch, run_length_mask
from graftwork.errors import DataError
from tests.datamodules.segmentation.pictures import striped, write_array

KNOWN = "0 to 2, or 255 (ignored)"


def item(label: Path) -> Item:
    return Item("a", label.with_name("image.png"), label)


def index_masks(ignored: int = 255, names: int = 3) -> IndexMasks:
    table, _, known = index_table(ClassTable.named([f"c{n}" for n in range(names)]), ignored)
    return IndexMasks(table, known)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_of_8_and_16_bits(tmp_path, dtype):
    ids = np.array([[0, 1], [2, 255]], dtype=dtype)
    path = write_array(tmp_path / "m.png", ids)
    assert read_ids(path).tolist() == ids.tolist()
    assert index_masks().read(item(path), (2, 2)).mask.tolist() == ids.tolist()


def test_black_and_white_palettes_and_grey_saved_as_colour_are_numbers(tmp_path):
    from PIL import Image

    ids = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    indexed = Image.fromarray(ids)
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    indexed.save(tmp_path / "p.png")
    write_array(tmp_path / "bw.png", ids.astype(bool))
    write_array(tmp_path / "rgb.png", np.repeat(ids[..., None], 3, axis=2))
    for name in ("p", "bw", "rgb"):
        assert read_ids(tmp_path / f"{name}.png").tolist() == ids.tolist(), name


def test_an_ignored_number_and_255_are_both_255(tmp_path):
    path = write_array(tmp_path / "m.png", np.array([[10, 11, 255]], dtype=np.uint8))
    table, classes, known = index_table(ClassTable.named([f"c{n}" for n in range(11)]), 11)
    assert IndexMasks(table, known).read(item(path), (1, 3)).mask.tolist() == [[10, 255, 255]]
    assert len(classes.names) == 11


def test_an_ignored_class_moves_those_after_it_up(tmp_path):
    path = write_array(tmp_path / "m.png", np.array([[0, 1, 2, 255]], dtype=np.uint8))
    table, classes, known = index_table(ClassTable(("other", "a", "b"), colour_map(3), (0, 2)), 0)
    assert IndexMasks(table, known).read(item(path), (1, 4)).mask.tolist() == [[255, 0, 1, 255]]
    assert classes.names == ("a", "b") and classes.palette == colour_map(3)[1:] and classes.things == (1,)


def test_the_only_class_cannot_be_ignored():
    with pytest.raises(DataError, match=r"data\.ignore_id=0: ignores the number of 'bg', which is the only class"):
        index_table(ClassTable.named(["bg"]), 0)


def test_a_number_without_a_class_is_named_with_its_file(tmp_path):
    path = write_array(tmp_path / "m.png", np.array([[0, 7, 7, 9]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"m\.png: has numbers 7, 9 in 3 pixels, expected 0 to 2, or 255 \(ignored\)"):
        index_masks().read(item(path), (1, 4))


def test_another_size_than_the_image(tmp_path):
    path = write_array(tmp_path / "m.png", striped(4, 6))
    with pytest.raises(DataError, match=r"has 4 x 6 pixels .*image\.png has 6 x 4"):
        index_masks().read(item(path), (6, 4))


def test_a_file_cut_short_an_empty_and_a_missing_one(tmp_path):
    path = write_array(tmp_path / "m.png", np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-300])
    (tmp_path / "empty.png").touch()
    for name, text in (("m.png", "cannot be decoded"), ("empty.png", "empty"), ("none.png", "cannot be read")):
        with pytest.raises(CorruptSample, match=text) as caught:
            read_ids(tmp_path / name)
        assert caught.value.where.endswith(name)


def test_colours_without_a_palette(tmp_path):
    path = write_array(tmp_path / "m.png", np.array([[[1, 2, 3]]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"colour image.*palette\.txt"):
        read_ids(path)


def test_masks_that_lose_their_numbers(tmp_path):
    lossy = write_array(tmp_path / "m.jpg", striped())
    real = write_array(tmp_path / "m.tif", striped().astype(np.float32))
    negative = write_array(tmp_path / "n.tif", striped().astype(np.int32) - 1)
    for path, text in ((lossy, "JPEG"), (real, "floating-point"), (negative, "numbers from -1 to 1")):
        with pytest.raises(DataError, match=text):
            read_ids(path)


def test_colours_become_labels_and_strange_ones_are_named(tmp_path):
    pixels = np.array([[[0, 0, 0], [128, 64, 128], [0, 0, 1]]], dtype=np.uint8)
    path = write_array(tmp_path / "m.png", pixels)
    reader = ColourMasks({(128, 64, 128): 1, (0, 0, 0): 0, (0, 0, 1): 255}, "palette.txt")
    assert reader.read(item(path), (1, 3)).mask.tolist() == [[0, 1, 255]]
    fewer = ColourMasks({(0, 0, 0): 0, (0, 0, 1): 1}, "palette.txt")
    with pytest.raises(DataError, match=r"1 pixels have colours that palette\.txt does not name, such as 128 64 128"):
        fewer.read(item(path), (1, 3))


def test_palettes_and_names(tmp_path):
    file = tmp_path / "palette.txt"
    file.write_text("0 0 0 background\n\n128 64 128 paved road\n", encoding="utf-8")
    assert read_palette(file) == [((0, 0, 0), "background"), ((128, 64, 128), "paved road")]
    file.write_text("0 0 0 a\n1 1 1 b\n0 0 0 c\n", encoding="utf-8")
    with pytest.raises(DataError, match="lines 1 and 3 have the same colour 0 0 0"):
        read_palette(file)
    for line in ("300 0 0 a", "0 0 a", "road 1 2 3"):
        file.write_text(line, encoding="utf-8")
        with pytest.raises(DataError, match="line 1 is"):
            read_palette(file)
    names = tmp_path / "classes.txt"
    for text, message in (("a\nb\na\n", "2 classes have the name 'a'"), ("a\n\nb\n", "line 2 is empty"), ("", "no cl")):
        names.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_names(names)
    names.write_text("\n".join(map(str, range(256))), encoding="utf-8")
    with pytest.raises(DataError, match="256 classes, at most 255"):
        read_names(names)


def test_colours_differ_and_are_those_of_voc():
    colours = colour_map(255)
    assert len(set(colours)) == 255 and (0, 0, 0) not in colours
    assert colours[0] == (128, 0, 0) and colours[14] == (192, 128, 128)  # aeroplane and person


def test_segments_of_labels_and_objects():
    mask = np.array([[0, 0, 1], [1, 1, 255]], dtype=np.uint8)
    objects = np.array([[5, 6, 1], [1, 2, 9]])
    labels = with_segments(mask, objects, things=(1,))
    assert labels.classes == (0, 1, 1) and labels.crowd == (False, False, False)
    assert labels.segments is not None and labels.segments.tolist() == [[0, 0, 1], [1, 2, -1]]
    crowd = with_segments(mask, objects - 1, things=(1,), void=0)
    assert crowd.crowd == (False, True, False)


def test_a_mask_of_segments_and_those_out_of_view():
    segments = np.array([[0, 2, -1], [3, 3, 2]], dtype=np.int32)
    labels = from_segments(segments, (4, 7, 1, 255), (False, True, True, False))
    assert labels.mask.tolist() == [[4, 1, 255], [255, 255, 1]]
    assert labels.segments is not None and labels.segments.tolist() == [[0, 1, -1], [-1, -1, 1]]
    assert labels.classes == (4, 1) and labels.crowd == (False, True)


@settings(max_examples=20)
@given(
    top=st.integers(-3, 8),
    left=st.integers(-3, 8),
    height=st.integers(0, 9),
    width=st.integers(0, 9),
    turn=st.booleans(),
)
def test_a_rectangle_fills_its_pixels_and_no_more(top, left, height, width, turn):
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    expected = np.zeros((10, 12), dtype=bool)
    expected[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
    found = polygon_patch([corners[::-1] if turn else corners], 10, 12)
    assert (whole(found, 10, 12) == expected).all()


def whole(patch: Patch, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    mask[patch.box][patch.inside] = True
    return mask


def filled_by_rule(corners: list[tuple[float, float]], height: int, width: int) -> NDArray[np.bool_]:
    """The rule itself, over the whole image: an odd number of edges lies to the left of the centre of the pixel."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x, y), (to_x, to_y) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y != to_y:
            crosses = (min(y, to_y) <= rows) & (rows < max(y, to_y))
            with np.errstate(over="ignore", invalid="ignore"):  # far from edges that are almost level
                inside ^= crosses & (x + (rows - y) * (to_x - x) / (to_y - y) <= columns)
    return inside


PLACES = st.floats(-20, 40, width=32) | st.integers(-20, 40).map(float)


@settings(max_examples=50)
@given(shapes=st.lists(st.lists(st.tuples(PLACES, PLACES), min_size=3, max_size=7), max_size=3))
def test_polygons_fill_what_the_rule_fills_in_the_whole_image(shapes):
    expected = np.zeros((17, 23), dtype=bool)
    for corners in shapes:
        expected |= filled_by_rule(corners, 17, 23)
    assert (whole(polygon_patch(shapes, 17, 23), 17, 23) == expected).all()


def test_a_small_polygon_takes_little_of_a_large_image():
    patch = polygon_patch([[(100.0, 200.0), (150.0, 200.0), (150.0, 250.0), (100.0, 250.0)]], 30_000, 40_000)
    assert patch.inside.sum() == 2500 and patch.inside.size <= 53 * 53


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_corners_without_a_place_are_refused(wrong):
    with pytest.raises(ValueError, match="not finite"):
        polygon_patch([[(1.0, 2.0), (wrong, 3.0), (5.0, 6.0)]], 9, 9)
    with pytest.raises(ValueError, match="not finite"):
        disc_patch((1.0, 2.0), (3.0, wrong), 9, 9)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), top=st.integers(-12, 12), left=st.integers(-12, 12))
def test_masks_are_cut_out_and_laid_down(seed, top, left):
    canvas = np.zeros((40, 40), dtype=bool)
    part = np.random.default_rng(seed).random((5, 7)) < 0.3
    canvas[15 + top : 20 + top, 15 + left : 22 + left] = part
    image = canvas[15:25, 15:27]
    assert (whole(patch_at(part, top, left, 10, 12), 10, 12) == image).all()
    cut = patch_of(image)
    assert (whole(cut, 10, 12) == image).all() and cut.inside.size <= part.size


def test_neighbouring_polygons_share_no_pixel_and_leave_none():
    corner = (3.7, 5.2)
    edges = [(0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0)]
    parts = [whole(polygon_patch([[edges[k], edges[(k + 1) % 4], corner]], 9, 9), 9, 9) for k in range(4)]
    assert (np.sum(parts, axis=0) == 1).all()


def test_circles():
    found = whole(disc_patch((2.0, 2.0), (2.0, 3.0), 4, 4), 4, 4)
    assert found[1:3, 1:3].all() and found.sum() == 4


def coco_text(counts: list[int]) -> str:
    """COCO's packing, written from its description: differences to the count two before, 5 bits per character."""
    text = ""
    for place, count in enumerate(counts):
        value = count - (counts[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | (32 if more else 0)) + 48)
    return text


@settings(max_examples=20)
@given(seed=st.integers(0, 999), height=st.integers(1, 40), width=st.integers(1, 50), share=st.floats(0, 1))
def test_run_length_codes_plain_and_packed(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    for code in (counts, coco_text(counts)):
        assert (run_length_mask({"size": [height, width], "counts": code}) == mask).all()
    with pytest.raises(ValueError, match="runs cover"):
        run_length_mask({"size": [height + 1, width], "counts": counts})
