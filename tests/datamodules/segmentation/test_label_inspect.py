"""What doctor finds in labelled images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.findings import Finding
from datamodules.segmentation import inspect as inspecting
from datamodules.segmentation.config import FolderConfig, GeneratedConfig
from tests.datamodules.segmentation.pictures import striped, write_array, write_image, write_pairs


def found(root: Any, **options: Any) -> list[Finding]:
    return FolderConfig(root=str(root), **options).build(0).inspect()


def texts(findings: list[Finding], level: str) -> str:
    return "\n".join(f"{finding.what} | {finding.mend}" for finding in findings if finding.level == level)


def test_sound_data_has_sizes_shares_and_things():
    findings = GeneratedConfig(images=4).build(0).inspect()
    fine = texts(findings, "ok")
    assert not texts(findings, "error")
    sheet = Path(fine.split("some training crops with their labels: ")[1].split(" | ")[0])
    assert Image.open(sheet).size[0] == 960
    for part in ("train: 4 images", "64 x 96 to 64 x 96 pixels", "things, told apart: car, person, sign", "road "):
        assert part in fine, part


def test_shares_by_hand(tmp_path):
    fine = texts(found(write_pairs(tmp_path, ("train", "val", "test"))), "ok")
    assert "train: share of labelled pixels, and images with the class: sky 33.33% in 2, road 33.33% in 2" in fine
    assert "0.00% of all pixels are ignored" in fine


def test_classes_per_image_by_hand(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), count=4)
    write_array(root / "masks" / "train" / "0.png", striped(labels=(0, 255)))
    write_array(root / "masks" / "train" / "1.png", striped(labels=(0, 1)))
    fine = texts(found(root), "ok")
    assert "train: 4 images with labels decoded: 40 x 48 to 40 x 48 pixels" in fine
    assert "(height x width); 2.2 classes per image (1 to 3) |" in fine  # 1, 2, 3 and 3


def test_of_many_images_some_are_decoded_and_all_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(inspecting, "MOST_DECODED", 3)
    root = write_pairs(tmp_path, ("train", "val"), count=7)
    images: list[Path] = []
    monkeypatch.setattr(
        inspecting, "read_image", lambda path, channels: images.append(path) or Image.new("RGB", (48, 40))
    )
    fine = texts(found(root), "ok")
    assert "train: 7 masks and 3 images, one of every 3, decoded: 40 x 48" in fine and "sky 33.33% in 7" in fine
    assert sorted(path.name for path in images if path.parent.name == "train") == ["0.png", "3.png", "6.png"]
    write_array(root / "masks" / "train" / "1.png", striped(labels=(0, 9)))
    write_array(root / "masks" / "train" / "2.png", striped(30, 48))
    errors = texts(found(root), "error")
    assert "1.png: has number 9" in errors and "2.png: has 30 x 48 pixels" in errors


def test_what_stops_the_sheet_would_stop_training(tmp_path, monkeypatch):
    root = write_pairs(tmp_path, count=3)
    monkeypatch.setattr(inspecting, "look", lambda split, info: inspecting.Seen(np.zeros(3), np.zeros(3)))
    write_array(root / "masks" / "train" / "1.png", striped(labels=(0, 9)))
    assert "1.png: has number 9" in texts(found(root, count=False), "error")


def test_the_sheet_goes_without_corrupt_images_where_they_are_skipped(tmp_path):
    root = write_pairs(tmp_path, count=3)
    (root / "images" / "train" / "1.png").write_bytes(b"no image")
    findings = found(root, on_corrupt="skip")
    assert not texts(findings, "error") and "some training crops with their labels" in texts(findings, "ok")


def test_files_that_do_not_fit_are_listed_one_by_one(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), count=6)
    write_array(root / "masks" / "train" / "0.png", striped(labels=(0, 9)))
    write_array(root / "masks" / "train" / "1.png", striped(30, 48))
    (root / "masks" / "train" / "2.png").write_bytes(b"no image")
    (root / "images" / "train" / "3.png").write_bytes(b"")
    errors = texts(found(root), "error")
    for part in ("0.png: has number 9", "1.png: has 30 x 48 pixels", "2.png: cannot be decoded", "3.png: is an empty"):
        assert part in errors, part
    skipping = found(root, on_corrupt="skip")
    assert "cannot be decoded" in texts(skipping, "warning") and "has number 9" in texts(skipping, "error")


def test_copies_absent_classes_unused_masks_and_missing_splits(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), count=3)
    shutil.copy(root / "images" / "train" / "1.png", root / "images" / "val" / "2.png")
    for number in range(3):
        write_array(root / "masks" / "val" / f"{number}.png", striped(labels=(0, 1)))
    write_array(root / "masks" / "train" / "left.png", striped())
    warnings = texts(found(root), "warning")
    for part in (
        "1 image of val is also in train, byte for byte",
        "val has no pixel of car",
        "1 mask belongs to no image",
        "there is no test split",
    ):
        assert part in warnings, part


def test_masks_of_0_and_255_and_blank_ones(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), names="background\nobject\n")
    for split in ("train", "val"):
        for number in range(2):
            mask = np.zeros((40, 48), dtype=np.uint8)
            mask[20:] = 255
            mask[:, 5] = 255
            write_array(root / "masks" / split / f"{number}.png", mask)
    write_array(root / "masks" / "train" / "1.png", np.full((40, 48), 255, dtype=np.uint8))
    warnings = texts(found(root), "warning")
    assert "train has nothing but 'background' and ignored pixels" in warnings
    assert "train: 1 image has no labelled pixel: 1" in warnings


def test_converted_images_and_sizes_at_odds_are_said(tmp_path):
    root = write_pairs(tmp_path)
    write_array(root / "images" / "train" / "0.png", np.full((40, 48), 40000, dtype=np.uint16))
    write_image(root / "images" / "val" / "1.png", 1, 50, 60)
    write_array(root / "masks" / "val" / "1.png", striped(50, 60))
    findings = found(root, eval_batch_size=2)
    assert "train: 1 image of 16 bits, cut to 8 |" in texts(findings, "ok")
    assert "train: 1 image in grey, given three equal channels |" in texts(findings, "ok")
    assert "val: images have 2 sizes" in texts(findings, "error")


def test_missing_data_is_a_finding(tmp_path):
    assert "no such folder" in texts(found(tmp_path / "none"), "error")
    assert "crop=[1, 1]" in texts(found(tmp_path, crop=(1, 1)), "error")
