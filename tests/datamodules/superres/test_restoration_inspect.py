"""What doctor says about images to restore."""

from __future__ import annotations

import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from datamodules.findings import Finding
from datamodules.superres import inspect
from datamodules.superres.config import BenchmarkConfig, FolderConfig, GeneratedConfig, ImagesConfig
from datamodules.superres.degradations.config import BicubicConfig, StoredConfig
from tests.datamodules.superres.images import pixels, write, write_array


def texts(config: ImagesConfig, level: str = "") -> list[str]:
    return [finding.what for finding in config.build(0).inspect() if not level or finding.level == level]


def has(found: list[str], *parts: str) -> bool:
    return any(all(part in text for part in parts) for text in found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pairs for training, one for validation and one for testing, all in order."""
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for number in range(count):
            write(tmp_path / f"{split}/HR/{number}.png", number + 10 * len(split), 32, 40)
            write(tmp_path / f"{split}/LR/X4/{number}x4.png", number, 8, 10)
    return tmp_path


def test_good_data(root):
    found = FolderConfig(root=str(root), patch=8).build(0).inspect()
    assert {finding.level for finding in found} == {"ok"}
    assert found[0] == Finding("ok", "train: 3 images, with degraded files")
    assert has([finding.what for finding in found], "train: 3 images decoded: 32 x 40 to 32 x 40", "3 colour of 8 bits")
    assert has([finding.what for finding in found], "decoded training images take about")


def test_bit_depths_grey_and_transparency(root):
    (root / "train/HR/0.png").write_bytes(imagecodecs.png_encode(pixels(0, 32, 40).astype(np.uint16) * 257))
    write_array(root / "train/HR/1.png", pixels(1, 32, 40)[..., 0])
    write_array(root / "train/HR/2.png", np.dstack([pixels(2, 32, 40), np.full((32, 40), 9, np.uint8)]))
    config = FolderConfig(root=str(root), patch=8)
    assert has(texts(config, "ok"), "1 colour of 16 bits", "1 grey of 8 bits", "1 colour of 8 bits")
    assert has(texts(config, "warning"), "transparent parts of 1 image are taken as white: 2")


def test_corrupt_files_are_errors_or_warnings(root):
    (root / "train/HR/0.png").write_bytes(b"no image")
    (root / "val/LR/X4/0x4.png").write_bytes(b"")
    config = FolderConfig(root=str(root), patch=8)
    assert has(texts(config, "error"), "train/HR/0.png: cannot be decoded")
    assert has(texts(config, "error"), "0x4.png: is an empty file")
    skipping = FolderConfig(root=str(root), patch=8, on_corrupt="skip")
    assert not texts(skipping, "error") and has(texts(skipping, "warning"), "train/HR/0.png: cannot be decoded")


def test_pairs_that_do_not_fit(root):
    write(root / "train/LR/X4/1x4.png", 1, 16, 20)
    found = texts(FolderConfig(root=str(root), patch=8), "error")
    assert has(found, "1x4.png: has 16 x 20 pixels, expected 8 x 10 for scale 4", "HR/1.png has 32 x 40")


def test_many_broken_files_are_named_in_part(root):
    for number in range(9):
        (root / f"train/HR/{number}.png").write_bytes(b"")
        write(root / f"train/LR/X4/{number}x4.png", number, 8, 10)
    found = texts(FolderConfig(root=str(root), patch=8), "error")
    assert sum("is an empty file" in text for text in found) == 5 and has(found, "and 4 more files")


def test_small_and_cropped_images(root):
    write(root / "train/HR/0.png", 0, 33, 42)
    found = FolderConfig(root=str(root), degradation=BicubicConfig(stored=False)).build(0).inspect()
    warnings = [finding for finding in found if finding.level == "warning"]
    assert has([w.what for w in warnings], "train: 3 images are smaller than a patch")
    assert any(w.mend == "Try a smaller --data.patch" for w in warnings)
    assert has([f.what for f in found], "train: 1 image is cropped at bottom and right", ": 0")
    write(root / "train/HR/0.png", 0, 3, 42)
    tiny = texts(FolderConfig(root=str(root), degradation=BicubicConfig(stored=False)), "error")
    assert has(tiny, "3 x 42 pixels are less than the scale, 4")


def test_copies_across_splits(root):
    shutil.copy(root / "train/HR/1.png", root / "test/HR/0.png")
    found = texts(FolderConfig(root=str(root), patch=8), "warning")
    assert has(found, "1 image of test is also in train, byte for byte", "train/HR/1.png", "test/HR/0.png")


def test_unused_files_and_missing_splits(root):
    write(root / "train/LR/X4/other.png", 0, 8, 10)
    shutil.rmtree(root / "test")
    found = texts(FolderConfig(root=str(root), patch=8), "warning")
    assert has(found, "1 degraded file belongs to no original", "other.png") and has(found, "there is no test split")


def test_files_in_some_splits_only(root):
    shutil.rmtree(root / "val/LR")
    assert has(texts(FolderConfig(root=str(root), patch=8)), "val", "computed, the other splits have files")


def test_no_room_for_decoded_images(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6, 10))
    found = FolderConfig(root=str(root), patch=8).build(0).inspect()
    (warning,) = [finding for finding in found if finding.level == "warning"]
    assert "decoded training images take about" in warning.what and "--data.cache" in warning.mend
    assert not has(texts(FolderConfig(root=str(root), patch=8, cache="off")), "decoded training images")


def test_errors_become_findings(tmp_path):
    (finding,) = FolderConfig(root=str(tmp_path / "none")).build(0).inspect()
    assert finding.level == "error" and "no such folder" in finding.what and "root/train/HR" in finding.mend
    (finding,) = GeneratedConfig(patch=0).build(0).inspect()
    assert finding.level == "error" and "patch=0" in finding.what
    write(tmp_path / "a.png")
    (finding,) = FolderConfig(root=str(tmp_path), degradation=StoredConfig()).build(0).inspect()
    assert finding.level == "error" and "no degraded files" in finding.what


def test_large_splits_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect, "MOST_DECODED", 4)
    for number in range(10):
        write(tmp_path / f"{number}.png", number)
    assert has(texts(BenchmarkConfig(root=str(tmp_path))), "test: 4 images decoded, one of every 3 of 10")


def test_palettes_count_as_colour(tmp_path):
    Image.fromarray(pixels()).convert("P").save(tmp_path / "a.png")
    assert has(texts(BenchmarkConfig(root=str(tmp_path))), "1 colour of 8 bits")
