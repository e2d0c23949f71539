"""What doctor finds in a folder of images."""

from __future__ import annotations

import shutil

import pytest

from datamodules.classification import inspect
from datamodules.classification.config import FolderConfig, GeneratedConfig, SampleConfig
from datamodules.classification.inspect import copies, inspect_images
from datamodules.classification.layout import find_layout
from tests.datamodules.classification.images import write_image


def lines(root, level="", **options):
    options = {"image_size": 32, **options}
    found = FolderConfig(root=str(root), **options).build(seed=0).inspect()
    return [finding.what for finding in found if not level or finding.level == level]


@pytest.fixture
def sound(tree):
    return tree("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog", count=10, side=40)


def test_a_sound_folder_has_no_warning(sound):
    assert lines(sound, "warning") == lines(sound, "error") == []
    text = "\n".join(lines(sound))
    assert "train: 20 images" in text and "cat 10, dog 10" in text and "60 images decoded: 40 x 40" in text


def test_embedded_data_is_sound():
    for config in (SampleConfig(), GeneratedConfig()):
        assert {finding.level for finding in inspect_images(config)} == {"ok"}


def test_missing_data_is_one_finding(tmp_path):
    (text,) = lines(tmp_path / "nowhere", "error")
    assert "nowhere: no such folder" in text


def test_rare_classes_uneven_ones_and_classes_missing_in_a_split(tree):
    root = tree("train/cat", "val/cat", count=3, side=40)
    text = "\n".join(lines(tree("train/dog", count=60, side=40), "warning", test_folder="test"))
    assert "class 'cat' has 3 training images" in text and "val has no image of dog" in text
    assert "there is no test split" in text
    for number in range(20):
        write_image(root / f"train/cat/more{number}.png", 100 + number, 40)
    assert "class 'dog' has" not in "\n".join(lines(root, "warning"))
    for number in range(300):
        write_image(root / f"train/dog/more{number}.png", 200 + number, 40)
    assert "class 'dog' has 16 times the images of 'cat'" in "\n".join(lines(root, "warning"))


def test_corrupt_files_are_errors_unless_they_are_skipped(sound):
    for number in range(7):
        (sound / f"train/cat/{number}.png").write_bytes(b"" if number else b"no image")
    found = lines(sound, "error")
    assert len(found) == 6 and "0.png: cannot be decoded" in found[0] and "1.png: is an empty file" in found[1]
    assert found[-1] == "and 2 more files that cannot be decoded"
    assert lines(sound, "error", on_corrupt="skip") == []
    assert "0.png: cannot be decoded" in lines(sound, "warning", on_corrupt="skip")[0]


def test_tiny_files_among_larger_ones(sound):
    write_image(sound / "train/cat/tiny.png", 1, 8)
    (text,) = lines(sound, "warning")
    assert text.startswith("1 images have a side below 32 pixels") and "tiny.png" in text


def test_copies_across_splits_are_found_by_content(sound):
    shutil.copy(sound / "train/cat/3.png", sound / "val/dog/another_name.png")
    shutil.copy(sound / "train/cat/4.png", sound / "test/cat/9.png")
    found = [text for text in lines(sound, "warning") if "byte for byte" in text]
    assert len(found) == 2 and "1 images of val are also in train" in found[0] and "another_name.png" in found[0]
    assert "1 images of test are also in train" in found[1]


def test_files_that_begin_alike_are_no_copies(sound):
    head = bytes(5000)
    (sound / "train/cat/x.png").write_bytes(head + b"1")
    (sound / "val/cat/y.png").write_bytes(head + b"2")
    layout = find_layout(FolderConfig(root=str(sound)))
    assert copies(layout.splits["train"], layout.splits["val"]) == []


def test_a_test_folder_that_is_the_validation_folder_is_no_copy(tree):
    root = tree("train/a", "train/b", "val/a", "val/b", count=12, side=40)
    assert lines(root, "warning", test_folder="val") == []


def test_what_lies_around_is_named(sound):
    (sound / "train/cat/list.csv").write_text("x")
    (sound / "train/empty").mkdir()
    write_image(sound / "train/loose.png", 5)
    (sound / "spare").mkdir()
    (sound / "README.md").write_text("fine")
    (sound / ".DS_Store").write_text("fine")
    (sound / "table.xlsx").write_text("x")
    (sound / "classes.txt").write_text("cat\ndog\nempty\n")
    text = "\n".join(lines(sound, "error"))
    assert "no images of class 'empty'" in text
    (sound / "train/empty").rename(sound / "val/empty")
    (sound / "classes.txt").unlink()
    assert "class 'empty' is not among the classes of training" in "\n".join(lines(sound, "error"))
    shutil.rmtree(sound / "val/empty")
    text = "\n".join(lines(sound, "warning"))
    assert "2 files are no images and are not used" in text and "list.csv" in text and "table.xlsx" in text
    assert "1 images lie outside of class folders" in text and "loose.png" in text
    assert f"folders that belong to no split: {sound / 'spare'}" in text
    assert "README" not in text and "DS_Store" not in text


def test_large_data_is_decoded_in_part(sound, monkeypatch):
    monkeypatch.setattr(inspect, "MOST_DECODED", 20)
    assert "21 images decoded, one of every 3 of 60" in "\n".join(lines(sound))
