"""Public datasets of which files are missing, and the extended training set of Pascal VOC."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from datamodules.segmentation.config import Ade20kConfig, CocoPanopticConfig, VocConfig
from graftwork.errors import DataError
from tests.datamodules.segmentation.pictures import striped, write_array, write_image, write_json

INFOS = [{"id": 5, "category_id": 1}, {"id": 6, "category_id": 2}]
CATEGORIES = [{"id": 1, "name": "wall", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]


def listed(listing: Path, images: Path, count: int = 3) -> None:
    """A file of panoptic annotations, its masks in a folder of its name, and its images."""
    ids = np.array([5, 6])[striped(labels=(0, 1))]
    for number in range(count):
        write_image(images / f"{number}.jpg")
        write_array(listing.with_suffix("") / f"{number}.png", np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8))
    annotations = [{"image_id": n, "file_name": f"{n}.png", "segments_info": INFOS} for n in range(count)]
    files = [{"id": n, "file_name": f"{n}.jpg"} for n in range(count)]
    write_json(listing, {"images": files, "annotations": annotations, "categories": CATEGORIES})


def ade20k(root: Path) -> Ade20kConfig:
    for split, short in (("training", "train"), ("validation", "val")):
        listed(root / f"ade20k_panoptic_{short}.json", root / "images" / split)
    return Ade20kConfig(root=str(root))


def coco(root: Path) -> CocoPanopticConfig:
    for split in ("train", "val"):
        listed(root / "annotations" / f"panoptic_{split}2017.json", root / f"{split}2017")
    return CocoPanopticConfig(root=str(root))


@pytest.mark.parametrize(
    ("make", "image", "mask"),
    [
        (ade20k, "images/validation/{}.jpg", "ade20k_panoptic_val/{}.png"),
        (coco, "val2017/{}.jpg", "annotations/panoptic_val2017/{}.png"),
    ],
)
def test_missing_files_are_counted_and_the_first_is_named(tmp_path, make, image, mask):
    config = make(tmp_path)
    assert [item.name for item in config.find().splits["val"].items] == ["0", "1", "2"]
    (tmp_path / mask.format(2)).unlink()
    with pytest.raises(DataError, match=rf"_val.*\.json: 1 of 3 listed masks are missing, first .*{mask.format(2)}"):
        config.find()
    for number in (1, 2):
        (tmp_path / image.format(number)).unlink()
    with pytest.raises(DataError, match=rf"2 of 3 listed images are missing, first .*{image.format(1)}"):
        config.find()


def voc(root: Path, names: str = "ab") -> Path:
    """Pascal VOC with the training image a and the validation image b."""
    for name in names:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_array(root / "SegmentationClass" / f"{name}.png", striped(labels=(0, 15, 15, 255)))
        write_array(root / "SegmentationObject" / f"{name}.png", striped(labels=(0, 1, 2, 255)))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    return root


def extended(root: Path) -> Path:
    """The same with the image c of the extended training set, whose mask lies in a folder of its own."""
    write_image(voc(root) / "JPEGImages" / "c.jpg", 3)
    for name in "ac":
        write_array(root / "SegmentationClassAug" / f"{name}.png", striped(labels=(0, 7)))
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("a\nc\n")
    return root


def test_masks_of_the_extended_training_set_of_voc(tmp_path, caplog):
    root = extended(tmp_path)
    with caplog.at_level(logging.WARNING):
        layout = VocConfig(root=str(root), train_list="trainaug").find()
    first, second = layout.splits["train"].items
    assert first.label.parent.name == "SegmentationClass" and second.label.parent.name == "SegmentationClassAug"
    reader = layout.splits["train"].labels
    assert np.unique(reader.read(second, (40, 48)).mask).tolist() == [0, 7] and not reader.tells_segments
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "trainaug: 1 of 2 images have no file in SegmentationObject, so that objects are not told apart"
    assert VocConfig(root=str(root)).find().splits["train"].labels.tells_segments
    (root / "SegmentationClassAug" / "c.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClass/c\.png: no such file, .*SegmentationClassAug"):
        VocConfig(root=str(root), train_list="trainaug").find()


def test_files_of_objects_that_voc_lacks(tmp_path, caplog):
    root = voc(tmp_path)
    (root / "SegmentationObject" / "b.png").unlink()
    with pytest.raises(DataError, match=r"Object/b\.png: no such file; 1 of 2 images .* --data.panoptic false"):
        VocConfig(root=str(root)).find()
    assert not VocConfig(root=str(root), panoptic=False).find().splits["val"].labels.tells_segments
    (root / "SegmentationObject" / "a.png").unlink()
    assert not VocConfig(root=str(root)).find().splits["val"].labels.tells_segments
    assert not caplog.records
