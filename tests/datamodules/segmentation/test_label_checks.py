"""What is found out about labels before a run: in all splits, once, and what on_corrupt leaves out of evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.segmentation import counts as counting
from datamodules.segmentation import readable as reading
from datamodules.segmentation.config import FolderConfig
from datamodules.segmentation.datamodule import SegmentationData
from graftwork.errors import ConfigError, DataError
from tests.datamodules.segmentation.pictures import striped, write_array, write_image, write_pairs

ALL = ("train", "val", "test")


def built(root: Path, **options: Any) -> SegmentationData:
    data = FolderConfig(root=str(root), crop=(32, 32), **options).build(0)
    data.setup()
    return data


def names(loader: Any) -> list[str]:
    return [name for batch in loader for name in batch["name"]]


@pytest.mark.parametrize("split", ALL)
@pytest.mark.parametrize(
    ("mask", "message"),
    [(striped(labels=(0, 9)), r"1\.png: has number 9 in 960 pixels"), (striped(30, 48), r"1\.png: has 30 x 48 pixels")],
)
def test_a_mask_that_does_not_fit_stops_before_training(tmp_path, split, mask, message):
    root = write_pairs(tmp_path, ALL)
    write_array(root / "masks" / split / "1.png", mask)
    with pytest.raises(DataError, match=f"{split}/{message}"):
        built(root)
    built(root, count=False)


def test_masks_of_all_splits_are_read_once(tmp_path, monkeypatch):
    root = write_pairs(tmp_path, ALL)
    built(root)
    with monkeypatch.context() as patched:
        patched.setattr(counting, "count", lambda *_, **__: pytest.fail("read again"))
        built(root)
    write_array(root / "masks" / "test" / "1.png", striped(labels=(0, 9)))
    with pytest.raises(DataError, match="has number 9"):
        built(root)


def test_classes_without_a_training_pixel_are_named_once(tmp_path, caplog):
    root = write_pairs(tmp_path, names="background\nobject\nthing\n")
    for split in ("train", "val"):
        for number in range(2):
            mask = np.full((40, 48), 255, dtype=np.uint8)
            mask[:20] = 0
            write_array(root / "masks" / split / f"{number}.png", mask)
    with caplog.at_level(logging.WARNING):
        assert built(root).info.pixels == (1920, 0, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("no training pixel is of object, thing:") and "255 in masks is ignored" in said


def test_sound_labels_need_no_word(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        built(write_pairs(tmp_path))
    assert not caplog.records


@pytest.mark.parametrize("count", [True, False])
def test_corrupt_images_are_left_out_of_evaluation_and_listed(tmp_path, count):
    root = write_pairs(tmp_path, ALL, count=3)
    image, mask = root / "images" / "val" / "1.png", root / "masks" / "test" / "0.png"
    image.write_bytes(image.read_bytes()[:-400])  # its head is sound
    mask.write_bytes(b"no image")
    data = built(root, on_corrupt="skip", count=count)
    assert names(data.val_dataloader()) == ["0", "2"] and names(data.test_dataloader()) == ["1", "2"]
    assert len(names(data.train_dataloader())) == 3
    assert data.skipped == {str(image): 1, str(mask): 1}
    assert [sample["index"] for sample in (data.split("val")[0], data.split("val")[1])] == [0, 1]


def test_masks_that_do_not_fit_stop_although_corrupt_files_are_skipped(tmp_path):
    root = write_pairs(tmp_path, ALL)
    write_array(root / "masks" / "val" / "1.png", striped(labels=(0, 9)))
    with pytest.raises(DataError, match="has number 9"):
        built(root, on_corrupt="skip", count=False)


def test_a_split_of_corrupt_images_alone_is_an_error(tmp_path):
    root = write_pairs(tmp_path, ALL)
    for number in range(2):
        (root / "images" / "test" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test/0\.png: every image of test is corrupt"):
        built(root, on_corrupt="skip")


def test_sound_images_are_read_once_until_one_changes(tmp_path, monkeypatch):
    root = write_pairs(tmp_path, ALL)
    built(root, on_corrupt="skip")
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read_image", lambda *_: pytest.fail("read again"))
        built(root, on_corrupt="skip")
    (root / "images" / "val" / "0.png").write_bytes(b"no image")
    for _ in range(2):
        assert names(built(root, on_corrupt="skip").val_dataloader()) == ["1"]
    write_image(root / "images" / "val" / "0.png")
    assert names(built(root, on_corrupt="skip").val_dataloader()) == ["0", "1"]


def test_without_counts_there_is_no_most_frequent_class(tmp_path):
    root = write_pairs(tmp_path)
    assert built(root, count=False).info.majority is None and built(root).info.majority == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, r"mean=\[123.675, .* must be from 0 to 1.* divide values of 0 to 255"),
        ({"mean": (float("nan"), 0.5, 0.5)}, r"mean=\[nan"),
        ({"mean": (0.5, 0.5, -0.1)}, r"mean=.*-0.1\] must be from 0 to 1"),
        ({"std": (58.395, 57.12, 57.375)}, r"std=\[58.395, .* must be above 0 and up to 1.* divide values of 0 to 255"),
        ({"std": (float("inf"), 0.5, 0.5)}, r"std=\[inf"),
        ({"std": (float("nan"), 0.5, 0.5)}, r"std=\[nan"),
        ({"std": (0.5, 0.5, 0.0)}, "must be above 0"),
    ],
)
def test_mean_and_deviation_are_on_the_scale_from_0_to_1(options, message):
    with pytest.raises(ConfigError, match=message):
        FolderConfig(root="x", **options).check()
    FolderConfig(root="x", mean=(0.0, 0.5, 1.0), std=(1 / 255, 0.5, 1.0)).check()
