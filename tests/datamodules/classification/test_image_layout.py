"""Classes and splits of a folder: what is found, what is cut, and what is refused with which words."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.classification.config import FolderConfig
from datamodules.classification.layout import SplitFiles, cut, find_layout
from graftwork.errors import ConfigError, DataError
from tests.datamodules.classification.images import write_image


def find(root, **options):
    return find_layout(FolderConfig(root=str(root), **options))


def paths(layout, split):
    return [layout.splits[split].path(index) for index in range(len(layout.splits[split]))]


def test_folders_of_splits_and_classes(tree):
    root = tree("train/cat", "train/dog", "val/cat", "val/dog", "test/dog")
    write_image(root / "train/dog/more/deep.JPG", 99)
    layout = find(root)
    assert layout.classes == ("cat", "dog") and layout.cut == ()
    assert layout.splits["train"].counts(2) == [3, 4]
    assert layout.splits["test"].counts(2) == [0, 3]
    assert paths(layout, "train")[-1] == root / "train/dog/more/deep.JPG"
    assert [int(label) for label in layout.splits["val"].labels] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_usual_names_of_validation(tree, name):
    layout = find(tree("train/a", "train/b", f"{name}/a", f"{name}/b"))
    assert layout.cut == () and len(layout.splits["val"]) == 6
    assert "test" not in layout.splits


def test_class_folders_in_the_root_are_split_by_hash(tree):
    root = tree("a", "b", "c", count=20)
    layout = find(root, val_share=0.1, test_share=0.2)
    assert layout.cut == ("val", "test")
    assert [layout.splits[split].counts(3) for split in ("train", "val", "test")] == [[14] * 3, [2] * 3, [4] * 3]
    together = [path for split in layout.splits for path in paths(layout, split)]
    assert len(set(together)) == len(together) == 60
    assert paths(find(root, val_share=0.1, test_share=0.2), "val") == paths(layout, "val")
    assert paths(find(root, val_share=0.3, test_share=0.2), "test") == paths(layout, "test")


def test_validation_alone_is_cut_where_only_training_has_a_folder(tree):
    layout = find(tree("train/a", "train/b", count=10))
    assert layout.cut == ("val",) and len(layout.splits["val"]) == 2 and "test" not in layout.splits
    assert set(find(layout.root, val_share=0).splits) == {"train"}


def test_the_cut_depends_on_file_names_alone(tree, tmp_path):
    root = tree("a", "b", count=20)
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/b")
    for path in sorted((tmp_path / "copy/a").iterdir())[:0:-1]:
        path.touch()
    write_image(tmp_path / "copy/z/0.png")
    write_image(tmp_path / "copy/z/1.png")
    before, after = find(root), find(tmp_path / "copy")
    ours = [path.name for path in paths(before, "val") if path.parent.name == "a"]
    assert ours == [path.name for path in paths(after, "val") if path.parent.name == "a"]


@settings(max_examples=40)
@given(st.integers(1, 40), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_every_class_keeps_an_image_and_gives_its_share(count, val, test):
    files = SplitFiles.of(None, [(f"a/{i}.png", 0) for i in range(count)] + [("b/x.png", 1)])
    found = cut(files, {"val": val, "test": test})
    sizes = {split: files.counts(2) for split, files in found.items()}
    assert sizes["train"][0] >= 1 and sizes["train"][1] == 1
    assert sum(size[0] for size in sizes.values()) == count
    if count >= 4:
        assert sizes["val"][0] == max(1, round(val * count))
    if count >= 3:
        assert sizes["val"][0] >= 1 and sizes["test"][0] >= min(1, count - 1 - sizes["val"][0])


def test_imagenet_tests_on_its_validation_folder(tree):
    layout = find(tree("train/a", "train/b", "val/a", "val/b"), test_folder="val")
    assert layout.splits["test"] is layout.splits["val"]


def test_without_labels_every_image_counts(tree):
    root = tree("a", "b/c", count=10)
    write_image(root / "loose.png", 50)
    layout = find(root, labels=False, val_share=0.2, test_share=0)
    assert layout.classes == ("image",) and len(layout.splits["train"]) + len(layout.splits["val"]) == 21


def test_hidden_and_foreign_files_are_left_out(tree):
    root = tree("a", "b")
    for name in (".hidden.png", "._a.png", "Thumbs.db", "notes.txt", "a.gz"):
        (root / "a" / name).write_text("x")
    (root / "__MACOSX").mkdir()
    (root / ".cache").mkdir()
    assert find(root, val_share=0, test_share=0).splits["train"].counts(2) == [3, 3]


def test_a_link_back_up_ends(tree):
    root = tree("a", "b")
    (root / "a/loop").symlink_to(root / "a", target_is_directory=True)
    assert len(find(root, val_share=0, test_share=0).splits["train"]) == 6


# -- classes.txt ------------------------------------------------------------------------------------------------------


def test_classes_file_orders_and_names(tree):
    root = tree("train/n01", "train/n02", "train/big dog", "val/n01", "val/n02", "val/big dog")
    (root / "classes.txt").write_text("n02 tench, Tinca\n\nbig dog\nn01\tgold fish\n", encoding="utf-8")
    layout = find(root)
    assert layout.classes == ("tench, Tinca", "big dog", "gold fish")
    assert paths(layout, "train")[0].parent.name == "n02"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\nx\n", r"line 3: there is no class folder 'x'"),
        ("a\nbb\n", r"line 2: .*'bb'.* Did you mean b\?"),
        ("a\na\nb\n", r"line 2: 'a' is named twice"),
        ("a\n", r"no line for the class folder 'b'"),
        ("a same\nb same\n", r"2 folders have the class name 'same'"),
        ("", r"no line for the class folder 'a'"),
    ],
)
def test_classes_files_that_do_not_fit(tree, text, message):
    root = tree("a", "b")
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        find(root)


def test_a_classes_file_that_is_no_text(tree):
    root = tree("a", "b")
    (root / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"classes.txt: cannot be read.*UTF-8"):
        find(root)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_no_root_names_the_tree_and_the_sample():
    with pytest.raises(DataError, match=r"data\.root: no folder.*train/<class>.*--data\.name sample"):
        find_layout(FolderConfig())


def test_missing_root_and_file_for_a_root(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is a file, expected a folder"):
        find(tmp_path / "file")


def test_a_class_without_images_is_named(tree):
    root = tree("train/a", "train/b")
    (root / "train/c").mkdir()
    with pytest.raises(DataError, match=r"train: no images of class 'c'.*Add some, or remove the folder"):
        find(root)


def test_an_unknown_class_in_validation_is_named(tree):
    with pytest.raises(DataError, match=r"val: class 'cats' is not among .* Did you mean 'cat'\?"):
        find(tree("train/cat", "train/dog", "val/cats"))


def test_a_class_missing_in_validation_is_no_error(tree):
    assert find(tree("train/a", "train/b", "val/a")).splits["val"].counts(2) == [3, 0]


def test_evaluation_folders_without_training_ones(tree):
    with pytest.raises(DataError, match=r"has a folder 'val' but none named 'train'"):
        find(tree("val/a", "val/b", "images"))


def test_a_folder_that_was_asked_for_is_missing(tree):
    with pytest.raises(DataError, match=r"data\.val_folder: no such folder: .*dev.* has 'train'"):
        find(tree("train/a", "train/b"), val_folder="dev")


def test_images_in_the_root_itself(tmp_path):
    write_image(tmp_path / "data/1.png")
    with pytest.raises(DataError, match=r"no class folders, 1 images lie in the folder itself.*labels false"):
        find(tmp_path / "data")


def test_an_empty_root(tmp_path):
    with pytest.raises(DataError, match="no class folders, no images"):
        find(tmp_path)
    with pytest.raises(DataError, match="no images"):
        find(tmp_path, labels=False)


def test_an_empty_evaluation_folder(tree):
    root = tree("train/a", "train/b")
    (root / "val/a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"val: no images\. Expected .*val/<class>"):
        find(root)


def test_one_class_alone(tree):
    with pytest.raises(DataError, match=r"one class alone, 'a'.*labels false"):
        find(tree("train/a"))


BAD = {
    "image_size": (0, "image_size=0 must be at least 1"),
    "channels": (2, "channels=2 must be 3"),
    "crop_pct": (1.5, "crop_pct=1.5 must be above 0 and up to 1"),
    "mean": ((0.5,), r"mean=\[0.5\] has 1 values for channels=3"),
    "std": ((0.5, 0.5, 0.0), r"std=\[0.5, 0.5, 0.0\] must be above 0 and up to 1"),
    "val_share": (1.0, "val_share=1.0 must be at least 0 and below 1"),
    "num_workers": (-1, "num_workers=-1 must be 0"),
    "val_folder": ("", "val_folder must be the name of a folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_values_out_of_range(name):
    value, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        FolderConfig(**{name: value}).check()
