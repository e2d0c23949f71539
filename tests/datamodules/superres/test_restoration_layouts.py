"""Which images belong to which split, and which degraded file to which original; what is missing or doubled."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from datamodules.image_files import images_below
from datamodules.superres.config import BenchmarkConfig, Div2kConfig, FolderConfig, ImagesConfig
from datamodules.superres.datamodule import find_images
from datamodules.superres.degradations.config import BicubicConfig, GaussianNoiseConfig, StoredConfig
from datamodules.superres.layout import cut
from datamodules.superres.pairs import Pair, degraded_names, matched
from graftwork.errors import ConfigError, DataError
from tests.datamodules.superres.images import write


def tree(root: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        write(root / file, number)
    return root


def found(config: ImagesConfig) -> dict[str, list[tuple[str, str | None]]]:
    """Split to (path of the original, path of the degraded file), relative to the root."""
    layout = find_images(config)
    return {
        split: [
            (str(pair.original.relative_to(layout.root)),
             None if pair.degraded is None else str(pair.degraded.relative_to(layout.root)))
            for pair in pairs
        ]
        for split, pairs in layout.splits.items()
    }  # fmt: skip


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "degraded"),
    [("a", "a"), ("0001", "0001x4"), ("a", "a_x4"), ("a", "a-x4"), ("0001", "0001x4m"), ("0001", "0001x4d"),
     ("0001", "0001x4w3"), ("a_HR", "a"), ("a_HR", "a_LR"), ("a_HR", "ax4"), ("img_001_SRF_4_HR", "img_001_SRF_4_LR"),
     ("s/1", "s/1x4"), ("s/1_GT", "s/1_LQ"), ("matrix4", "matrix4x4")],
)  # fmt: skip
def test_names_that_belong_together(original, degraded):
    assert degraded in list(degraded_names(original, 4))


@pytest.mark.parametrize(("original", "degraded"), [("0001", "0001x2"), ("ax4", "a"), ("a", "ab"), ("s/1", "1")])
def test_names_that_do_not(original, degraded):
    assert degraded not in list(degraded_names(original, 4))


def test_the_likeliest_name_wins(tmp_path):
    tree(tmp_path, "HR/a.png", "LR/ax4.png", "LR/a.png")
    (pair,) = matched(tmp_path / "HR", ["a.png"], tmp_path / "LR", ["ax4.png", "a.png"], 4)
    assert pair.degraded == tmp_path / "LR/a.png" and pair.name == "a"


def test_images_are_found_below_links_and_hidden_files_are_not(tmp_path):
    tree(tmp_path, "b/x.png", "a.JPG", ".hidden.png", "__MACOSX/a.png", "skip/a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b/back").symlink_to(tmp_path)
    assert images_below(tmp_path, without=("skip",)) == ["a.JPG", "b/x.png"]


# -- folder -----------------------------------------------------------------------------------------------------------


def test_images_alone_are_cut_by_their_names(tmp_path):
    root = tree(tmp_path / "data", *(f"{number}.png" for number in range(10)))
    splits = found(FolderConfig(root=str(root), val_share=0.2, test_share=0.1))
    assert [len(splits[split]) for split in ("train", "val", "test")] == [7, 2, 1]
    assert not any(degraded for pairs in splits.values() for _, degraded in pairs)
    write(root / "another.png")
    again = found(FolderConfig(root=str(root), val_share=0.2, test_share=0.0))
    assert set(splits["val"]) & set(again["val"]) and "test" not in again
    assert find_images(FolderConfig(root=str(root))).cut == ("val", "test")


def test_splits_with_originals_and_files_of_the_scale(tmp_path):
    files = ["train/HR/a.png", "train/LR/X2/a.png", "train/LR/X4/ax4.png", "val/HR/b.png", "val/LR/b.png", "test/c.png"]
    root = str(tree(tmp_path, *files))
    assert found(FolderConfig(root=root)) == {
        "train": [("train/HR/a.png", "train/LR/X4/ax4.png")],
        "val": [("val/HR/b.png", "val/LR/b.png")],
        "test": [("test/c.png", None)],
    }
    by_two = found(FolderConfig(root=root, degradation=BicubicConfig(scale=2)))
    assert by_two["train"] == [("train/HR/a.png", "train/LR/X2/a.png")]
    by_three = found(FolderConfig(root=root, degradation=BicubicConfig(scale=3)))
    assert by_three["train"] == [("train/HR/a.png", None)]  # files of other scales are left alone
    computed = found(FolderConfig(root=root, degradation=BicubicConfig(stored=False)))
    assert not any(degraded for pairs in computed.values() for _, degraded in pairs)


def test_other_degradations_are_computed_even_where_there_are_files(tmp_path):
    root = tree(tmp_path, "train/HR/a.png", "train/LR/a.png", "val/HR/a.png")
    splits = found(FolderConfig(root=str(root), degradation=GaussianNoiseConfig()))
    assert splits == {"train": [("train/HR/a.png", None)], "val": [("val/HR/a.png", None)]}


def test_sequences_with_a_folder_of_pairs_each(tmp_path):
    root = tree(tmp_path, "train/s1/sharp/1.png", "train/s1/blur/1.png", "train/s2/sharp/1.png", "train/s2/blur/1.png")
    config = FolderConfig(
        root=str(root), hr_folder="sharp", lr_folder="blur", degradation=StoredConfig(), val_share=0.0
    )
    assert found(config)["train"] == [
        ("train/s1/sharp/1.png", "train/s1/blur/1.png"),
        ("train/s2/sharp/1.png", "train/s2/blur/1.png"),
    ]
    assert [pair.name for pair in find_images(config).splits["train"]] == ["s1/1", "s2/1"]


def test_a_folder_for_testing_alone(tmp_path):
    root = tree(tmp_path, "test/HR/a.png", "test/LR/a.png")
    assert list(found(FolderConfig(root=str(root)))) == ["test"]


def test_degraded_files_without_an_original_are_told(tmp_path):
    root = tree(tmp_path, "train/HR/a.png", "train/LR/a.png", "train/LR/b.png")
    assert find_images(FolderConfig(root=str(root))).unused == (root / "train/LR/b.png",)


def test_missing_pairs(tmp_path):
    root = tree(tmp_path, "train/HR/a.png", "train/HR/b.png", "train/HR/c.png", "train/LR/a.png")
    with pytest.raises(DataError) as caught:
        find_images(FolderConfig(root=str(root)))
    text = str(caught.value)
    assert text.startswith(f"{root / 'train/LR'}: 2 of 3 images have no degraded file here, first ")
    assert "Expected one of b.png, bx4.png, b_x4.png; or compute them: --data.degradation.stored false" in text


def test_stored_pairs_that_are_not_there(tmp_path):
    root = tree(tmp_path, "train/HR/a.png", "train/noisy/a.png")
    with pytest.raises(DataError, match=r"no degraded files .*--data.lr_folder NAME; .*train has 'HR', 'noisy'"):
        find_images(FolderConfig(root=str(root), degradation=StoredConfig()))


def test_doubled_names(tmp_path):
    root = tree(tmp_path, "train/HR/a.png", "train/HR/a.jpg", "train/LR/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png are both named 'a'\. Pairs are found by name"):
        find_images(FolderConfig(root=str(root)))
    alone = FolderConfig(root=str(root), degradation=BicubicConfig(stored=False), val_share=0.0)
    assert [pair.name for pair in find_images(alone).splits["train"]] == ["a.jpg", "a.png"]


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(
        DataError, match=r"data.root: no folder of images given. Expected root/train/HR.*--data.name sample"
    ):
        find_images(FolderConfig())
    with pytest.raises(DataError, match=r"no such folder. Expected root/train/HR"):
        find_images(FolderConfig(root=str(tmp_path / "none")))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"is a file, expected a folder"):
        find_images(FolderConfig(root=str(tmp_path / "file")))
    (tmp_path / "empty/train/HR").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty/train/HR: no images. Expected"):
        find_images(FolderConfig(root=str(tmp_path / "empty")))
    tree(tmp_path / "data", "training/a.png")
    with pytest.raises(DataError, match=r"data.val_folder: no such folder: .*/data/eval. .*/data has 'training'"):
        find_images(FolderConfig(root=str(tmp_path / "data"), train_folder="training", val_folder="eval"))


def test_a_benchmark_in_place_of_the_own_images(tmp_path):
    root = tree(tmp_path / "own", "train/a.png", "train/b.png", "val/c.png")
    tree(tmp_path / "Set2", "HR/x.png", "LR_bicubic/X4/xx4.png")
    layout = find_images(
        FolderConfig(root=str(root), val_root=str(tmp_path / "Set2"), test_root=str(tmp_path / "Set2"))
    )
    assert [pair.name for pair in layout.splits["val"]] == ["x"] == [pair.name for pair in layout.splits["test"]]
    assert len(layout.splits["train"]) == 2


def test_options_that_contradict_each_other(tmp_path):
    wrong = FolderConfig(
        root=str(tmp_path), patch=0, channels=2, val_share=0.6, test_share=0.5, hr_folder="A", lr_folder="A",
        num_workers=-1, metric_border=-3, degradation=BicubicConfig(scale=0),
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        find_images(wrong)
    for text in ("patch=0", "channels=2", "leave nothing to train on", "both 'A'", "num_workers=-1", "metric_border=-3",
                 "degradation.scale=0", "7 problems"):  # fmt: skip
        assert text in str(caught.value)


def test_cutting_leaves_something_to_train_on():
    pairs = [Pair(str(number), Path(str(number))) for number in range(3)]
    splits = cut(pairs, {"val": 0.1, "test": 0.1})
    assert {split: len(part) for split, part in splits.items()} == {"train": 1, "val": 1, "test": 1}
    assert list(cut(pairs[:1], {"val": 0.1, "test": 0.1})) == ["train"]


# -- benchmarks -------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "EDSR": ["HR/a.png", "LR_bicubic/X2/ax2.png", "LR_bicubic/X4/ax4.png"],
    "BasicSR": ["GTmod12/a.png", "LRbicx4/a.png"],
    "SelfExSR": ["image_SRF_2/a_SRF_2_HR.png", "image_SRF_2/a_SRF_2_LR.png", "image_SRF_4/a_SRF_4_HR.png",
                 "image_SRF_4/a_SRF_4_LR.png"],
    "alone": ["a.png"],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_benchmarks_as_they_are_distributed(tmp_path, name):
    root = tree(tmp_path, *LAYOUTS[name])
    ((original, degraded),) = found(BenchmarkConfig(root=str(root)))["test"]
    expected = {
        "EDSR": ("HR/a.png", "LR_bicubic/X4/ax4.png"),
        "BasicSR": ("GTmod12/a.png", "LRbicx4/a.png"),
        "SelfExSR": ("image_SRF_4/a_SRF_4_HR.png", "image_SRF_4/a_SRF_4_LR.png"),
        "alone": ("a.png", None),
    }
    assert (original, degraded) == expected[name]
    assert found(BenchmarkConfig(root=str(root), degradation=GaussianNoiseConfig()))["test"][0][1] is None


def test_a_scale_that_a_benchmark_has_no_files_of_is_computed(tmp_path):
    root = str(tree(tmp_path / "a", *LAYOUTS["EDSR"]))
    assert found(BenchmarkConfig(root=root, degradation=BicubicConfig(scale=3)))["test"] == [("HR/a.png", None)]
    other = str(tree(tmp_path / "b", *LAYOUTS["SelfExSR"]))
    with pytest.raises(
        DataError, match=r"no folder image_SRF_3, only image_SRF_2, image_SRF_4. Set --data.degradation.scale"
    ):
        find_images(BenchmarkConfig(root=other, degradation=BicubicConfig(scale=3)))
    computed = BenchmarkConfig(root=other, degradation=BicubicConfig(scale=3, stored=False))
    assert found(computed)["test"] == [("image_SRF_2/a_SRF_2_HR.png", None)]


def test_a_benchmark_that_is_missing_or_empty(tmp_path):
    with pytest.raises(DataError) as caught:
        find_images(BenchmarkConfig(root=str(tmp_path / "Set5")))
    text = str(caught.value)
    assert "Set5: no such folder. Expected root/HR/*.png" in text and "SelfExSR" in text and "research" in text
    (tmp_path / "HR").mkdir()
    with pytest.raises(DataError, match=r"HR: no images. Expected root/HR/\*.png"):
        find_images(BenchmarkConfig(root=str(tmp_path)))
    (tmp_path / "image_SRF_4").mkdir()
    with pytest.raises(DataError, match=r"no images that end in _HR"):
        find_images(BenchmarkConfig(root=str(tmp_path)))


def test_real_set5(shared):
    if not (shared / "data/Set5").is_dir():
        pytest.skip("needs ../shared/data/Set5")
    pairs = find_images(BenchmarkConfig(root=str(shared / "data/Set5"))).splits["test"]
    assert [pair.name for pair in pairs] == ["baby", "bird", "butterfly", "head", "woman"]
    assert all(pair.degraded is not None for pair in pairs)


# -- DIV2K ------------------------------------------------------------------------------------------------------------

DIV2K = ["DIV2K_train_HR/0001.png", "DIV2K_train_HR/0002.png", "DIV2K_train_LR_bicubic/X4/0001x4.png",
         "DIV2K_train_LR_bicubic/X4/0002x4.png", "DIV2K_valid_HR/0801.png"]  # fmt: skip
FLICKR = ["Flickr2K/Flickr2K_HR/0001.png", "Flickr2K/Flickr2K_LR_bicubic/X4/0001x4.png"]


@pytest.mark.parametrize("below", ["", "DIV2K/"])
def test_div2k_as_it_is_distributed(tmp_path, below):
    root = tree(tmp_path, *(below + file for file in DIV2K))
    splits = found(Div2kConfig(root=str(root)))
    assert splits["train"][0] == (f"{below}DIV2K_train_HR/0001.png", f"{below}DIV2K_train_LR_bicubic/X4/0001x4.png")
    assert splits["val"] == splits["test"] == [(f"{below}DIV2K_valid_HR/0801.png", None)]


def test_both_sets_together_have_names_of_their_own(tmp_path):
    root = tree(tmp_path, *DIV2K, *FLICKR)
    layout = find_images(Div2kConfig(root=str(root), variant="DF2K"))
    assert [pair.name for pair in layout.splits["train"]] == ["DIV2K/0001", "0002", "Flickr2K/0001"]
    assert all(pair.degraded for pair in layout.splits["train"])


def test_sub_images_and_other_tracks(tmp_path):
    tree(tmp_path, "DIV2K_train_HR_sub/0001_s001.png", "DIV2K_train_LR_bicubic/X4_sub/0001_s001.png",
         "DIV2K_train_HR/0001.png", "DIV2K_train_LR_mild/0001x4m.png", "DIV2K_valid_HR/0801.png")  # fmt: skip
    sub = found(Div2kConfig(root=str(tmp_path), sub_images=True))
    assert sub["train"] == [("DIV2K_train_HR_sub/0001_s001.png", "DIV2K_train_LR_bicubic/X4_sub/0001_s001.png")]
    mild = found(Div2kConfig(root=str(tmp_path), track="mild"))
    assert mild["train"] == [("DIV2K_train_HR/0001.png", "DIV2K_train_LR_mild/0001x4m.png")]


def test_validation_images_are_cut_where_there_are_none(tmp_path):
    tree(tmp_path, *(f"Flickr2K_HR/{number:04d}.png" for number in range(20)))
    layout = find_images(Div2kConfig(root=str(tmp_path), variant="Flickr2K"))
    assert [len(layout.splits[split]) for split in ("train", "val")] == [18, 2] and layout.cut == ("val",)


def test_pieces_of_an_image_are_not_cut_apart(tmp_path):
    pieces = [f"{number:04d}_s{piece:03d}" for number in range(12) for piece in range(1, 1 + number % 3)]
    tree(tmp_path, *(f"DIV2K_train_HR_sub/{piece}.png" for piece in pieces),
         *(f"Flickr2K_HR_sub/{piece}.png" for piece in pieces if not piece.endswith("_s002")))  # fmt: skip
    layout = find_images(Div2kConfig(root=str(tmp_path), variant="DF2K", sub_images=True, val_share=0.25))
    images = {
        split: {(pair.original.parent.name, pair.original.stem.partition("_")[0]) for pair in pairs}
        for split, pairs in layout.splits.items()
    }
    assert not images["train"] & images["val"]
    assert len(images["val"]) == 4 and len(images["train"]) == 12  # 8 photographs in either set
    assert sum(map(len, layout.splits.values())) == 12 + 8
    cut_by_piece = cut(layout.splits["train"] + layout.splits["val"], {"val": 0.25})
    assert len(cut_by_piece["val"]) == 5  # names alone: a quarter of the files


def test_div2k_that_is_not_there(tmp_path):
    with pytest.raises(DataError) as caught:
        find_images(Div2kConfig(root=str(tmp_path)))
    text = str(caught.value)
    assert (
        "no folder DIV2K_train_HR. Expected root/DIV2K_train_HR/0001.png" in text and "data.vision.ee.ethz.ch" in text
    )
    with pytest.raises(DataError, match=r"no such folder.*DIV2K_train_HR"):
        find_images(Div2kConfig(root=str(tmp_path / "none")))


def test_what_was_cut_is_logged(tmp_path, caplog):
    root = tree(tmp_path, *(f"{number}.png" for number in range(10)))
    with caplog.at_level(logging.INFO):
        FolderConfig(root=str(root)).build(0).setup()
    assert "val: 1 images of the training images" in caplog.text
