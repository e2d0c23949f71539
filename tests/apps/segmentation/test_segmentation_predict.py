"""New images: files, folders, arrays, and images that are seen in tiles."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.segmentation.module import SegmentationModule
from apps.segmentation.predict import SegmentationPredictor
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import DataError, UserError
from tests.apps.segmentation.runs import small

RNG = np.random.default_rng(0)
INFO = SegmentationInfo(
    classes=("road", "sky", "car"), palette=((90, 90, 90), (90, 150, 230), (220, 40, 40)), crop=(32, 32)
)


def predictor(panoptic: bool = False, **changes: object) -> SegmentationPredictor:
    torch.manual_seed(0)
    info = SegmentationInfo(**{**vars(INFO), "things": (2,), "panoptic": True}) if panoptic else INFO
    words = {"model.head": "mask2former", "model.head.channels": None} if panoptic else {}
    return SegmentationPredictor(SegmentationModule(small(Path("unused"), **words, **changes), info))


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("sides", [(1, 1), (5, 40), (33, 47)])
def test_every_pixel_gets_a_class(sides):
    found = predictor()(pixels(*sides, 3))
    assert found.labels.shape == sides and found.labels.max() < 3
    assert sum(found.areas.values()) == sides[0] * sides[1]
    assert (found.certainty >= 1 / 3 - 1e-6).all() and (found.certainty <= 1 + 1e-6).all()
    assert found.overlay().shape == (*sides, 3)


def test_arrays_of_every_kind_agree():
    ours, image = predictor(), pixels(20, 24, 3)
    wanted = ours(image).certainty
    for same in (image.astype(np.uint16) * 257, image / 255, Image.fromarray(image)):
        np.testing.assert_allclose(ours(same).certainty, wanted, atol=1e-4)
    assert [found.labels.shape for found in ours([image, image[:8]])] == [(20, 24), (8, 24)]
    with pytest.raises(DataError):
        ours(np.full((4, 4, 3), np.nan))


def test_a_file_gives_masks_areas_and_annotations(tmp_path):
    ours = predictor()
    image = save(tmp_path / "street.png", pixels(21, 30, 3))
    written = ours.predict_file(image)
    folder = tmp_path / "street_segmentation"
    assert sorted(path.name for path in written) == [
        "annotations.json", "areas.csv", "street_mask.png", "street_overlay.png",
    ]  # fmt: skip
    labels = ours(np.asarray(Image.open(image))).labels
    with Image.open(folder / "street_mask.png") as mask:
        assert mask.mode == "P" and tuple(mask.getpalette()[:3]) == (90, 90, 90)
        np.testing.assert_array_equal(np.asarray(mask), labels)
    (row,) = rows(folder / "areas.csv")
    assert row["file"] == "street.png" and int(row["pixels"]) == 630
    assert sum(float(row[name]) for name in INFO.classes) == pytest.approx(1, abs=1e-5)
    story = json.loads((folder / "annotations.json").read_text())
    assert story["images"] == [{"id": 0, "file_name": "street.png", "height": 21, "width": 30}]
    assert sum(part["area"] for part in story["annotations"]) == 630
    assert [kind["name"] for kind in story["categories"]] == list(INFO.classes)


def test_a_folder_keeps_its_tree(tmp_path):
    save(tmp_path / "in/a.png", pixels(8, 9, 3))
    save(tmp_path / "in/more/b.jpg", pixels(9, 8, 3))
    predictor().predict_file(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/a_mask.png").is_file() and (tmp_path / "out/more/b_mask.png").is_file()
    assert [row["file"] for row in rows(tmp_path / "out/areas.csv")] == ["a.png", "more/b.jpg"]


def test_segments_are_written_as_coco_reads_them(tmp_path):
    ours = predictor(panoptic=True, **{"panoptic.thing_threshold": 0.0, "panoptic.stuff_threshold": 0.0})
    ours.module.config.panoptic.overlap = 0.0
    image = save(tmp_path / "street.png", pixels(40, 48, 3))
    ours.predict_file(image, tmp_path / "out")
    story = json.loads((tmp_path / "out/panoptic.json").read_text())
    (about,) = story["annotations"]
    with Image.open(tmp_path / "out/panoptic" / about["file_name"]) as picture:
        colours = np.asarray(picture).astype(int)
    numbers = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    assert {row["id"] for row in about["segments_info"]} == set(np.unique(numbers)) - {0}
    for row in about["segments_info"]:
        assert row["area"] == (numbers == row["id"]).sum() and 0 <= row["category_id"] < 3


def test_large_images_are_seen_in_tiles_and_give_labels_and_areas(tmp_path):
    ours = predictor(**{"inference.max_pixels": 4096})
    image = save(tmp_path / "large.png", pixels(90, 200, 3))
    written = ours.predict_file(image, tmp_path / "out")
    assert tmp_path / "out/large_mask.tif" in written
    with Image.open(tmp_path / "out/large_mask.tif") as mask:
        labels = np.asarray(mask)
    assert labels.shape == (90, 200) and labels.max() < 3
    (row,) = rows(tmp_path / "out/areas.csv")
    assert float(row["road"]) == pytest.approx((labels == 0).mean(), abs=1e-5)
    whole = ours(np.asarray(Image.open(image))).labels
    np.testing.assert_array_equal(labels, whole)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("text.png", lambda path: path.write_text("no image"), r"text\.png: cannot be decoded"),
        ("empty.png", lambda path: path.write_bytes(b""), r"empty\.png"),
        ("folder", lambda path: path.mkdir(), "folder: no images"),
        ("gone.png", lambda path: None, "no such file or folder"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        predictor().predict_file(tmp_path / name, tmp_path / "out")


def test_corrupt_files_are_skipped_where_asked(tmp_path):
    save(tmp_path / "in/a.png", pixels(8, 9, 3))
    (tmp_path / "in/b.png").write_text("no image")
    with pytest.raises(DataError, match=r"b\.png"):
        predictor().predict_file(tmp_path / "in", tmp_path / "out")
    predictor(**{"data.on_corrupt": "skip"}).predict_file(tmp_path / "in", tmp_path / "out")
    assert [row["file"] for row in rows(tmp_path / "out/areas.csv")] == ["a.png", "b.png"]


def test_a_file_as_output_is_refused(tmp_path):
    image = save(tmp_path / "a.png", pixels(8, 9, 3))
    with pytest.raises(UserError, match="Name a folder"):
        predictor().predict_file(image, tmp_path / "mask.png")


def test_weights_that_give_no_numbers_are_told():
    ours = predictor()
    with torch.no_grad():
        for parameter in ours.module.model.head.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        ours(pixels(8, 9, 3))
