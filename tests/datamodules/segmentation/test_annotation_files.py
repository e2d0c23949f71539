"""Files of COCO and LabelMe that do not fit, are damaged, or have what other programs do not write."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datamodules.segmentation.config import FolderConfig
from datamodules.segmentation.labels import Labels
from graftwork.errors import DataError
from tests.datamodules.segmentation.pictures import write_image, write_json

NAN, INFINITY = float("nan"), float("inf")
SQUARE = [4, 4, 24, 4, 24, 24, 4, 24]


def labels(root: Path, **options: Any) -> Labels:
    split = FolderConfig(root=str(root), val_share=0, test_share=0, **options).find().splits["train"]
    return split.labels.read(split.items[0], (40, 48), split.labels.tells_segments)


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 1, "category_id": 3, "segmentation": [SQUARE], **changes}


def coco_root(root: Path, entries: Any = None, **changes: Any) -> Path:
    """An image with one cat."""
    write_image(root / "images" / "train" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [annotation()] if entries is None else entries,
        "categories": [{"id": 3, "name": "cat"}],
        **changes,
    }
    write_json(root / "masks" / "train" / "instances.json", content)
    return root


@pytest.mark.parametrize(
    ("number", "mend"), [("1", "There is an image with the id 1: write both as numbers"), (7, "Remove them")]
)
def test_annotations_that_belong_to_no_image_stop(tmp_path, number, mend):
    root = coco_root(tmp_path, [annotation(), annotation(image_id=number), annotation(image_id=number)])
    with pytest.raises(DataError, match=f"2 annotations belong to no image, first image_id {number!r}. {mend}"):
        labels(root)


def test_names_and_numbers_that_come_twice_stop(tmp_path):
    twins = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.jpg"}]
    with pytest.raises(DataError, match="2 images have, without its ending, the name 'a'"):
        labels(coco_root(tmp_path, images=twins))
    with pytest.raises(DataError, match="2 images have the id 1"):
        labels(coco_root(tmp_path, images=[{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]))
    with pytest.raises(DataError, match="2 categories have the id 3"):
        labels(coco_root(tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"annotations": None}, "'annotations' is missing or no list of objects"),
        ({"annotations": [3]}, "'annotations' is missing or no list of objects"),
        ({"annotations": [{"id": 5}]}, "'image_id' is missing"),
        ({"annotations": [annotation(category_id="x")]}, "category_id 'x' of annotation 5 is no whole number"),
        ({"annotations": [annotation(category_id=INFINITY)]}, "category_id inf of annotation 5"),
        ({"categories": [{"id": "x", "name": "cat"}]}, "id 'x' of category 'x' is no whole number"),
        ({"images": [{"id": 1, "file_name": ""}]}, "file_name '' of image 1 names no file"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, "is no file of COCO annotations"),
    ],
)
def test_damaged_annotations_are_named_with_their_file(tmp_path, changes, text):
    root = coco_root(tmp_path, **changes)
    for masks in ("auto", "instances"):
        with pytest.raises(DataError) as caught:
            labels(root, masks=masks)
        assert caught.value.where.endswith("instances.json") and text in caught.value.what


@pytest.mark.parametrize(
    "shape",
    [
        [[4, 4, INFINITY, 4, 24, 24]],
        [[4, 4, 24, NAN, 24, 24]],
        [[[4, 4], [24, 4], [24, 24]]],
        {"size": [40, 48], "counts": [INFINITY]},
        None,
    ],
)
def test_shapes_without_a_place_are_named(tmp_path, shape):
    with pytest.raises(DataError, match=r"instances\.json: annotation 5 of a has no readable segmentation"):
        labels(coco_root(tmp_path, [annotation(segmentation=shape)]))


def test_numbers_written_as_text_and_odd_colours_are_taken(tmp_path):
    categories = [{"id": "3", "name": "cat", "color": ["red", 0, 0]}]
    found = labels(coco_root(tmp_path, [annotation(category_id="3")], categories=categories))
    assert found.classes == (0, 1) and (found.mask == 1).sum() == 400


def test_annotations_are_parsed_once(tmp_path, monkeypatch):
    root, parsed, loads = coco_root(tmp_path), [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    labels(root)
    assert len(parsed) == 1


def test_images_that_annotations_do_not_list_are_reported(tmp_path):
    root = coco_root(tmp_path)
    write_image(root / "images" / "train" / "new.png", 3)
    config = FolderConfig(root=str(root), val_share=0, test_share=0)
    assert [path.name for path in config.find().unlisted] == ["new.png"]
    warnings = [finding for finding in config.build(0).inspect() if finding.level == "warning"]
    assert any("1 image is not listed in the annotations" in finding.what for finding in warnings)
    assert any("new.png" in finding.what for finding in warnings)


def test_panoptic_masks_among_the_images_are_not_reported(tmp_path):
    write_image(tmp_path / "images" / "train" / "a.jpg")
    write_image(tmp_path / "images" / "train" / "masks" / "a_numbers.png")
    entry = {"image_id": 1, "file_name": "masks/a_numbers.png", "segments_info": [{"id": 1, "category_id": 3}]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [entry],
        "categories": [{"id": 3, "name": "cat"}],
    }
    write_json(tmp_path / "images" / "train" / "panoptic.json", content)
    config = FolderConfig(root=str(tmp_path), masks_folder="images", val_share=0, test_share=0)
    assert config.find().unlisted == ()


def labelme_root(root: Path, *shapes: dict[str, Any]) -> Path:
    write_image(root / "images" / "train" / "a.png")
    triangle = {"label": "cat", "points": [[4, 4], [24, 4], [24, 24]], "shape_type": "polygon", "group_id": None}
    content = {"shapes": [{**triangle, **shape} for shape in shapes], "imageHeight": 40, "imageWidth": 48}
    write_json(root / "masks" / "train" / "a.json", content)
    return root


@pytest.mark.parametrize("group", ["a", -5, -2000, 10**30, 1.5, [1]])
def test_any_group_stands_for_one_object(tmp_path, group):
    far = [[30, 4], [40, 4], [40, 14]]
    shapes = ({"group_id": group}, {"group_id": group, "points": far}, {"points": [[30, 24], [40, 24], [40, 34]]})
    found = labels(labelme_root(tmp_path, *shapes), things=("cat",))
    assert found.classes == (0, 1, 1) and found.segments is not None
    assert found.segments[5, 20] == found.segments[5, 38] != found.segments[25, 38]


@pytest.mark.parametrize(
    "shape",
    [
        {"points": [[NAN, 1], [2, 3], [4, 5]]},
        {"points": [[INFINITY, 1], [2, 3], [4, 50]]},
        {"points": [[10**400, 1], [2, 3], [4, 50]]},
        {"points": [[1, 1], [INFINITY, 3]], "shape_type": "rectangle"},
        {"points": [[1, 1], [2, NAN]], "shape_type": "circle"},
        {"points": None},
    ],
)
def test_points_without_a_place_are_named_with_their_file(tmp_path, shape):
    with pytest.raises(DataError, match=r"a\.json: a (polygon|rectangle|circle) of 'cat' cannot be read"):
        labels(labelme_root(tmp_path, shape))


def png_code(mask: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@pytest.mark.parametrize("ends_behind", [False, True])
@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_masks_of_labelme_lie_on_their_box(tmp_path, ends_behind, kind):
    inside = np.random.default_rng(0).random((6, 9)) < 0.5
    end = [20 + 9 - 1 + ends_behind, 10 + 6 - 1 + ends_behind]
    shape = {"shape_type": "mask", "points": [[20, 10], end], "mask": png_code(inside.astype(kind))}
    expected = np.zeros((40, 48), dtype=bool)
    expected[10:16, 20:29] = inside
    found = labels(labelme_root(tmp_path, shape), things=("cat",))
    assert (found.mask == expected).all() and found.classes == (0, 1)


def test_masks_of_labelme_are_cut_at_the_edge_of_the_image(tmp_path):
    shape = {"shape_type": "mask", "points": [[-2, 35], [5, 44]], "mask": png_code(np.ones((10, 8), dtype=bool))}
    found = labels(labelme_root(tmp_path, shape)).mask
    assert found[35:, :6].all() and found.sum() == 30


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("xx", "no PNG file in base64"),
        ("#", "no PNG file in base64"),
        (None, "no PNG file in base64"),
        (png_code(np.ones((6, 9), dtype=bool))[:-40], "no PNG file in base64"),
        (png_code(np.ones((7, 9), dtype=bool)), r"has 7 x 9 pixels \(height x width\), its box 6 x 9"),
        (png_code(np.ones((6, 9, 3), dtype=np.uint8)), "has 6 x 9 x 3 pixels"),
    ],
)
def test_masks_of_labelme_that_cannot_be_used_are_named_with_their_file(tmp_path, code, text):
    shape = {"shape_type": "mask", "points": [[20, 10], [28, 15]], "mask": code}
    with pytest.raises(DataError, match=rf"a\.json: a mask of 'cat' cannot be read: its mask .*{text}"):
        labels(labelme_root(tmp_path, shape))
