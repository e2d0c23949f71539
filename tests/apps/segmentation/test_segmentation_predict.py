"""New images: files, folders, arrays, and images that are seen in tiles."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.segmentation import predict
from apps.segmentation.module import SegmentationModule
from apps.segmentation.predict import SegmentationPredictor
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, DataError, UserError
from tests.apps.segmentation.runs import small

RNG = np.random.default_rng(0)
INFO = SegmentationInfo(
    classes=("road", "sky", "car"), palette=((90, 90, 90), (90, 150, 230), (220, 40, 40)), crop=(32, 32)
)
EVERY_MASK = {f"panoptic.{name}": 0.0 for name in ("thing_threshold", "stuff_threshold", "overlap", "pixel_threshold")}


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


def seen_sizes(ours: SegmentationPredictor) -> list[tuple[int, int]]:
    """Height and width of all that the model is given from now on."""
    sizes: list[tuple[int, int]] = []
    ours.module.model.backbone.register_forward_pre_hook(lambda _, words: sizes.append(tuple(words[0].shape[-2:])))
    return sizes


def segment_numbers(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        colours = np.asarray(picture).astype(int)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def test_files_of_different_images_differ(tmp_path):
    sizes = {"a/1.png": (40, 48), "b/1.png": (44, 40), "x.jpg": (36, 40), "x.png": (40, 36)}
    for name, size in sizes.items():
        save(tmp_path / "in" / name, pixels(*size, 3))
    written = predictor(panoptic=True, **EVERY_MASK).predict_file(tmp_path / "in", tmp_path / "out")
    assert len(written) == len(set(written)) == 4 * 3 + 3
    for name in ("a/1_mask.png", "b/1_mask.png", "x.jpg_mask.png", "x.png_mask.png"):
        assert tmp_path / "out" / name in written
    story = json.loads((tmp_path / "out/panoptic.json").read_text())
    names = {image["id"]: image["file_name"] for image in story["images"]}
    assert [about["file_name"] for about in story["annotations"]] == ["a/1.png", "b/1.png", "x.jpg.png", "x.png.png"]
    for about in story["annotations"]:
        numbers = segment_numbers(tmp_path / "out/panoptic" / about["file_name"])
        assert numbers.shape == sizes[names[about["image_id"]]]
        assert {row["id"]: row["area"] for row in about["segments_info"]} == {
            number: (numbers == number).sum() for number in np.unique(numbers) if number
        }


def test_names_of_files_are_short_where_they_can_be():
    assert predict._stems(["a.png", "b/a.png", "b/c.d.tif"]) == {"a.png": "a", "b/a.png": "b/a", "b/c.d.tif": "b/c.d"}
    found = predict._stems(["x.jpg", "x.png", "x.png.png"])
    assert found["x.jpg"] == "x.jpg" and len(set(found.values())) == 3


def test_images_above_the_limit_of_pillow_are_seen(tmp_path, monkeypatch):
    image = save(tmp_path / "large.png", pixels(90, 200, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # refused from twice as many on
    tiled = predictor(**{"inference.max_pixels": 4096, "data.on_corrupt": "skip"})
    assert tmp_path / "tiled/large_mask.tif" in tiled.predict_file(image, tmp_path / "tiled")
    whole = predictor()
    assert tmp_path / "whole/large_mask.png" in whole.predict_file(image, tmp_path / "whole")
    assert whole(image).labels.shape == (90, 200)
    assert Image.MAX_IMAGE_PIXELS == 4000


def test_objects_of_large_images_are_found_in_smaller_ones(tmp_path):
    ours = predictor(panoptic=True, **EVERY_MASK, **{"inference.max_pixels": 4096})
    image, sizes = save(tmp_path / "large.png", pixels(90, 200, 3)), seen_sizes(ours)
    written = ours.predict_file(image, tmp_path / "out")
    assert {path.name for path in written} == {
        "large_mask.tif", "large_overlay.png", "large.png", "areas.csv", "annotations.json", "panoptic.json",
    }  # fmt: skip
    assert (42, 95) in sizes and all(height * width <= 4096 for height, width in sizes)
    (about,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    numbers = segment_numbers(tmp_path / "out/panoptic" / about["file_name"])
    assert numbers.shape == (90, 200) and numbers.any()
    rows = json.loads((tmp_path / "out/annotations.json").read_text())["annotations"]
    assert [row["area"] for row in rows] == [row["area"] for row in about["segments_info"]]
    # Python sees the image in the same way
    sizes.clear()
    found = ours(image)
    assert (42, 95) in sizes and all(height * width <= 4096 for height, width in sizes)
    assert (found.segments == numbers).mean() > 0.99
    with Image.open(tmp_path / "out/large_mask.tif") as mask:
        assert (np.asarray(mask) == found.labels).mean() > 0.999


def test_objects_that_are_not_told_apart_are_told_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(predict, "MOST_DESCRIBED", 10_000)
    ours = predictor(panoptic=True, **EVERY_MASK, **{"inference.max_pixels": 4096})
    save(tmp_path / "in/large.png", pixels(90, 200, 3))
    save(tmp_path / "in/small.png", pixels(90, 90, 3))
    ours.predict_file(tmp_path / "in", tmp_path / "out")
    (warning,) = (record.getMessage() for record in caplog.records if record.name == "apps.segmentation.predict")
    assert warning.startswith("large.png: objects are not told apart in 90 x 200 pixels, above 10000")
    (about,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert about["file_name"] == "small.png"
    assert len(rows(tmp_path / "out/areas.csv")) == 2


def test_large_images_that_are_made_small_first_are_seen_whole(tmp_path):
    ours = predictor(**{"inference.max_pixels": 4096, "inference.shorter_side": 32})
    save(tmp_path / "in/a.png", pixels(20, 30, 3))
    large, sizes = save(tmp_path / "in/b.png", pixels(90, 200, 3)), seen_sizes(ours)
    ours.predict_file(tmp_path / "in", tmp_path / "out")
    assert sizes == [(32, 48), (32, 71)]
    labels = np.asarray(Image.open(tmp_path / "out/b_mask.png"))
    assert labels.shape == (90, 200) and (labels == ours(large).labels).mean() > 0.999
    story = json.loads((tmp_path / "out/annotations.json").read_text())["annotations"]
    assert sum(row["area"] for row in story if row["image_id"] == 1) == 90 * 200


def test_images_that_are_too_large_all_the_same_are_refused_before_anything_is_written(tmp_path):
    ours = predictor(**{"inference.max_pixels": 4096, "inference.shorter_side": 64, "data.on_corrupt": "skip"})
    save(tmp_path / "in/a.png", pixels(20, 30, 3))
    save(tmp_path / "in/c.png", pixels(90, 200, 3))
    (tmp_path / "in/b.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"c\.png: shorter_side=64 makes 64 x 142 pixels of this image of 90 x 200"):
        ours.predict_file(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize(
    "words", [{}, {"inference.max_pixels": 4096}, {"inference.max_pixels": 4096, "inference.shorter_side": 32}]
)
def test_weights_that_give_no_numbers_are_told(tmp_path, words):
    ours = predictor(**words)
    with torch.no_grad():
        for parameter in ours.module.model.head.parameters():
            parameter.fill_(float("nan"))
    image = save(tmp_path / "large.png", pixels(90, 200, 3))
    with pytest.raises(DataError, match="not finite"):
        ours(image)
    with pytest.raises(DataError, match="not finite"):
        ours.predict_file(image, tmp_path / "out")
    assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())
