"""Samples: functions of seed, epoch and index; pairs that stay aligned; evaluation that never changes; the store."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.superres import store
from datamodules.superres.bicubic import imresize
from datamodules.superres.config import (
    DATASETS,
    BenchmarkConfig,
    FolderConfig,
    GeneratedConfig,
    ImagesConfig,
    SampleConfig,
)
from datamodules.superres.dataset import EvaluationImages, TrainingPatches, fitting_sides
from datamodules.superres.degradations.config import (
    DEGRADATIONS,
    BicubicConfig,
    GaussianNoiseConfig,
    JpegConfig,
    MosaicConfig,
    ReflectionConfig,
    StoredConfig,
)
from datamodules.superres.degradations.mosaic import pattern_mask
from datamodules.superres.info import RestorationInfo
from datamodules.superres.pairs import Pair
from datamodules.superres.sample import PHOTOGRAPHS
from datamodules.superres.store import PixelStore, decoded_bytes, store_folder
from graftwork.errors import ConfigError, DataError
from tests.datamodules.superres.images import pixels, write, write_array

Batch = dict[str, Any]


def patches(config: ImagesConfig, pairs: list[Pair], seed: int = 0) -> TrainingPatches:
    return TrainingPatches(pairs, config, PixelStore(None, config.channels), seed)


def whole(config: ImagesConfig, pairs: list[Pair]) -> EvaluationImages:
    return EvaluationImages(pairs, config, PixelStore(None, config.channels))


def one(folder: Path, height: int = 61, width: int = 75, number: int = 0) -> list[Pair]:
    return [Pair("a", write(folder / "a.png", number, height, width))]


def same(first: Batch, second: Batch) -> bool:
    return (
        all(torch.equal(first[key], second[key]) for key in ("lq", "gt", "index")) and first["name"] == second["name"]
    )


def train_batches(config: ImagesConfig, seed: int = 3, epoch: int = 0) -> list[Batch]:
    data = config.build(seed=seed)
    data.setup()
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS.names() if name != "stored"])
def test_patches_depend_on_seed_epoch_and_index_alone(tmp_path, name):
    pairs = [Pair(str(number), write(tmp_path / f"{number}.png", number, 64, 80)) for number in range(3)]
    config = FolderConfig(degradation=DEGRADATIONS.get(name)(), patch=8, repeat=4)
    dataset = patches(config, pairs)
    first = dataset[(2, 5)]
    np.random.random(3)
    assert len(dataset) == 12 and first["name"] == "2" and int(first["index"]) == 5
    assert same(dataset[(2, 5)], first) and same(patches(config, pairs)[(2, 5)], first)
    others = [dataset[(3, 5)], dataset[(2, 8)], patches(config, pairs, seed=1)[(2, 5)]]
    assert not any(torch.equal(other["gt"], first["gt"]) for other in others)
    scale = config.degradation.scale
    assert first["lq"].shape[1:] == (8, 8) and first["gt"].shape == (3, 8 * scale, 8 * scale)
    assert first["lq"].dtype == first["gt"].dtype == torch.float32 and first["lq"].is_contiguous()


@settings(max_examples=25)
@given(index=st.integers(0, 10**6), scale=st.sampled_from([1, 2, 3, 4]), deep=st.booleans())
def test_stored_pairs_stay_aligned(tmp_path_factory, index, scale, deep):
    """The original is its degraded file with every pixel repeated: so must each pair of patches be."""
    folder = tmp_path_factory.mktemp("pairs")
    small = np.random.default_rng(index).integers(0, 65536 if deep else 256, (9, 14, 3)).astype("u2" if deep else "u1")
    for name, values in (("lq", small), ("gt", small.repeat(scale, 0).repeat(scale, 1))):
        (folder / f"{name}.png").write_bytes(imagecodecs.png_encode(values))
    config = FolderConfig(degradation=StoredConfig(scale=scale), patch=6)
    sample = patches(config, [Pair("a", folder / "gt.png", folder / "lq.png")])[(0, index)]
    expected = sample["lq"].repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    assert torch.equal(sample["gt"], expected) and sample["lq"].shape == (3, 6, 6)


@settings(max_examples=20)
@given(index=st.integers(0, 10**6), pattern=st.sampled_from(["rggb", "gbrg", "quad_events"]))
def test_flips_keep_the_phase_of_a_mosaic(tmp_path_factory, index, pattern):
    folder = tmp_path_factory.mktemp("mosaic")
    bright = np.random.default_rng(0).integers(1, 256, (31, 46, 3)).astype(np.uint8)  # nothing measured is zero
    config = FolderConfig(degradation=MosaicConfig(pattern=pattern), patch=8)
    sample = patches(config, [Pair("a", write_array(folder / "a.png", bright))])[(0, index)]
    mask = torch.from_numpy(np.tile(pattern_mask(pattern), (8 // len(pattern_mask(pattern)),) * 2 + (1,)))
    mask = mask.permute(2, 0, 1) > 0
    assert torch.equal(sample["lq"] > 0, mask) and torch.equal(sample["lq"][mask], sample["gt"][mask])


@settings(max_examples=15)
@given(index=st.integers(0, 10**6), name=st.sampled_from(["bicubic", "jpeg", "gaussian_blur"]))
def test_a_patch_shows_what_evaluation_shows(tmp_path_factory, index, name):
    config = FolderConfig(degradation=DEGRADATIONS.get(name)(), patch=8, flip=False, transpose=False)
    if name == "bicubic":
        config.degradation = BicubicConfig(scale=3, rounding="none")
    pairs = one(tmp_path_factory.mktemp("patch"))
    sample, full = patches(config, pairs)[(0, index)], whole(config, pairs)[0]
    scale = config.degradation.scale
    wanted, places = sample["gt"], full["gt"].unfold(1, 8 * scale, scale).unfold(2, 8 * scale, scale)
    (row, column) = np.argwhere((places == wanted[:, None, None]).all(0).flatten(-2).all(-1).numpy())[0]
    expected = full["lq"][:, row : row + 8, column : column + 8]
    torch.testing.assert_close(sample["lq"], expected, atol=2e-6, rtol=0)


def test_a_reflection_mixes_in_another_image(tmp_path):
    dark, bright = (write_array(tmp_path / f"{v}.png", np.full((32, 32, 3), v, np.uint8)) for v in (0, 200))
    config = FolderConfig(degradation=ReflectionConfig(strength=0.5, strength_max=None), patch=8)
    pairs = [Pair("dark", dark), Pair("bright", bright)]
    assert float(patches(config, pairs)[(0, 0)]["lq"].mean()) == pytest.approx(100 / 255, rel=1e-3)
    assert float(whole(config, pairs)[0]["lq"].mean()) == pytest.approx(100 / 255, rel=1e-3)
    assert whole(config, pairs[1:])[0]["lq"].max() == 1  # alone: its own reflection


@pytest.mark.parametrize("sides", [(1, 1), (5, 90), (90, 5), (40, 40)])
def test_images_smaller_than_a_patch_go_on_as_in_a_mirror(tmp_path, sides):
    config = FolderConfig(degradation=GaussianNoiseConfig(sigma=0), patch=48)
    sample = patches(config, one(tmp_path, *sides))[(0, 3)]
    assert sample["lq"].shape == (3, 48, 48) and torch.equal(sample["lq"], sample["gt"])
    with_scale = FolderConfig(degradation=BicubicConfig(scale=2), patch=24)
    if min(sides) > 1:
        assert patches(with_scale, one(tmp_path, *sides))[(0, 3)]["gt"].shape == (3, 48, 48)


def test_grey_images_and_grey_data(tmp_path):
    path = write_array(tmp_path / "a.png", pixels()[..., 0])
    config = FolderConfig(degradation=JpegConfig(), patch=8)
    sample = patches(config, [Pair("a", path)])[(0, 0)]
    assert torch.equal(sample["gt"][0], sample["gt"][2])
    grey = FolderConfig(degradation=JpegConfig(), patch=8, channels=1)
    assert patches(grey, [Pair("a", path)])[(0, 0)]["lq"].shape == (1, 8, 8)


def test_an_image_without_a_single_period(tmp_path):
    with pytest.raises(DataError, match="3 x 50 pixels are less than the scale or pattern, 4"):
        patches(FolderConfig(patch=4), one(tmp_path, 3, 50))[(0, 0)]


# -- sizes of stored pairs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "degraded", "scale", "fits"),
    [((512, 512), (128, 128), 4, (128, 128)), ((512, 508), (170, 169), 3, (170, 169)),
     ((512, 512), (171, 171), 3, (170, 170)), ((513, 300), (126, 75), 4, (126, 75)), ((7, 9), (7, 9), 1, (7, 9))],
)  # fmt: skip
def test_sizes_that_belong_together(original, degraded, scale, fits):
    assert fitting_sides(Pair("a", Path("HR/a.png"), Path("LR/a.png")), original, degraded, scale) == fits


@pytest.mark.parametrize(
    ("original", "degraded", "scale"),
    [((512, 512), (256, 256), 4), ((512, 512), (128, 127), 4), ((7, 9), (7, 8), 1), ((3, 9), (1, 1), 4)],
)
def test_sizes_that_do_not(original, degraded, scale):
    with pytest.raises(DataError) as caught:
        fitting_sides(Pair("a", Path("HR/a.png"), Path("LR/a.png")), original, degraded, scale)
    text = str(caught.value)
    assert "HR/a.png" in text and text.startswith("LR/a.png: has ") and f"for scale {scale}" in text
    assert f"expected {original[0] // scale} x {original[1] // scale}" in text


def test_what_is_cropped_is_said_once(tmp_path, caplog):
    dataset = whole(FolderConfig(), one(tmp_path) * 2)
    with caplog.at_level(logging.INFO):
        assert dataset[0]["gt"].shape == (3, 60, 72) and dataset[1]["lq"].shape == (3, 15, 18)
    (record,) = caplog.records
    assert record.getMessage().startswith("a.png has 61 x 75 pixels, 60 x 72 are used")


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_seed_and_epoch():
    configs = [GeneratedConfig(degradation=GaussianNoiseConfig(sigma=20, sigma_max=60)) for _ in "ab"]
    first, second = (config.build(seed=seed) for seed, config in enumerate(configs))
    for data in (first, second):
        data.setup()
    assert all_same(list(first.test_dataloader()), list(second.test_dataloader()))
    test, val = first.split("test").dataset, first.split("val").dataset
    assert same(test[(0, 1)], test[(7, 1)]) and same(test[1], test[(0, 1)])
    assert not torch.equal(test[0]["lq"] - test[0]["gt"], val[1]["lq"] - val[1]["gt"])


def test_evaluation_sees_whole_images_as_matlab_would(tmp_path):
    pairs = one(tmp_path)
    sample = whole(FolderConfig(), pairs)[0]
    image = (pixels(0, 61, 75)[:60, :72] / np.float32(255)).astype(np.float32)
    torch.testing.assert_close(sample["gt"], torch.from_numpy(image).permute(2, 0, 1))
    expected = imresize(image, 0.25, rounding="output")
    torch.testing.assert_close(sample["lq"], torch.from_numpy(expected).permute(2, 0, 1), atol=1e-6, rtol=0)


def test_the_centre_alone(tmp_path):
    pairs = one(tmp_path)
    full, part = (whole(FolderConfig(eval_patch=side), pairs)[0] for side in (0, 5))
    assert torch.equal(part["lq"], full["lq"][:, 5:10, 6:11]) and torch.equal(part["gt"], full["gt"][:, 20:40, 24:44])
    assert same(whole(FolderConfig(eval_patch=500), pairs)[0], full)
    mosaic = whole(FolderConfig(degradation=MosaicConfig(pattern="quad"), eval_patch=8), pairs)[0]["lq"]
    assert mosaic[0, :2, :2].min() > 0 and mosaic[0, 2:4].max() == 0  # the pattern begins with red


def test_benchmarks_read_their_low_resolution_files(shared):
    if not (shared / "data/Set5").is_dir():
        pytest.skip("needs ../shared/data/Set5")
    data = BenchmarkConfig(root=str(shared / "data/Set5"), degradation=BicubicConfig(scale=3)).build(0)
    data.setup()
    batches = list(data.test_dataloader())
    assert [batch["name"] for batch in batches] == [["baby"], ["bird"], ["butterfly"], ["head"], ["woman"]]
    assert batches[0]["lq"].shape == (1, 3, 170, 170) and batches[0]["gt"].shape == (1, 3, 510, 510)
    assert data.info == RestorationInfo(scale=3, channels=3, period=3, colour="y", border=3, dataset="Set5")
    assert not data.has("train") and data.val_dataloader() == []


def test_images_of_several_sizes_do_not_fit_into_one_batch(tmp_path):
    write(tmp_path / "a.png", 0, 32, 32)
    write(tmp_path / "b.png", 1, 32, 40)
    data = BenchmarkConfig(root=str(tmp_path), eval_batch_size=2).build(0)
    data.setup()
    with pytest.raises(
        ConfigError, match=r"eval_batch_size=2 puts images of 8 x 8 and 8 x 10 .*--data.eval_batch_size 1"
    ):
        list(data.test_dataloader())
    data = BenchmarkConfig(root=str(tmp_path), eval_batch_size=2, eval_patch=6).build(0)
    data.setup()
    assert next(iter(data.test_dataloader()))["lq"].shape == (2, 3, 6, 6)


# -- loaders ----------------------------------------------------------------------------------------------------------


def test_two_workers_load_what_none_load():
    first = train_batches(GeneratedConfig(images=4, repeat=6), epoch=1)
    assert all_same(train_batches(GeneratedConfig(images=4, repeat=6, num_workers=2), epoch=1), first)
    assert not all_same(train_batches(GeneratedConfig(images=4, repeat=6), epoch=2), first)
    assert sum(len(batch["name"]) for batch in first) == 24


def test_a_run_goes_on_inside_an_epoch():
    first = train_batches(GeneratedConfig(images=8, batch_size=8, repeat=4))
    data = GeneratedConfig(images=8, batch_size=8, repeat=4).build(seed=3)
    data.setup()
    data.resume_at(0, 2)
    assert all_same(list(data.train_dataloader()), first[2:])


def test_batches_follow_the_sample_spec():
    data = GeneratedConfig(degradation=BicubicConfig(scale=2)).build(0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == set(data.sample_spec)
    assert data.sample_spec["lq"].startswith("[3, 16, 16]") and batch["lq"].shape == (16, 3, 16, 16)
    assert data.sample_spec["gt"].startswith("[3, 32, 32]") and batch["gt"].shape == (16, 3, 32, 32)
    figure = data.plot({key: value[0] for key, value in batch.items()})
    assert [axis.get_title() for axis in figure.axes] == ["bicubic", batch["name"][0]]


def corrupted(tmp_path: Path) -> Path:
    for number in range(4):
        write(tmp_path / f"train/{number}.png", number)
    write(tmp_path / "val/0.png", 9)
    (tmp_path / "train/2.png").write_bytes((tmp_path / "train/2.png").read_bytes()[:200])
    return tmp_path


def test_a_corrupt_file_stops_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"2.png: cannot be decoded.*--data.on_corrupt skip"):
        train_batches(FolderConfig(root=str(corrupted(tmp_path)), patch=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_replaced_and_counted(tmp_path, workers):
    data = FolderConfig(root=str(corrupted(tmp_path)), patch=4, on_corrupt="skip", num_workers=workers).build(0)
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert sorted(batch["name"]) == ["0", "1", "3", "3"]
    assert data.skipped == {str(tmp_path / "train/2.png"): 1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"degradation": MosaicConfig(pattern="quad"), "patch": 18}, "patch=18 must be a multiple of 4, the side"),
     ({"degradation": MosaicConfig(), "eval_patch": 5}, "eval_patch=5 must be a multiple of 2"),
     ({"degradation": MosaicConfig(), "channels": 1}, "channels=1 must be 3 for degradation.name=mosaic"),
     ({"images": 0}, "images=0"), ({"side": 4}, "side=4 must be at least 16"), ({"eval_batch_size": 0}, "eval_batch")],
)  # fmt: skip
def test_sizes_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=message):
        GeneratedConfig(**wrong).build(0).setup()


def test_info_tells_the_protocol_and_survives_a_checkpoint():
    info = GeneratedConfig(degradation=MosaicConfig(pattern="quad", form="packed")).build(0).info
    assert (info.scale, info.channels, info.degraded_channels, info.pattern) == (4, 3, 16, "quad")
    assert (info.colour, info.border, info.degradation) == ("rgb", 10, "mosaic")
    assert RestorationInfo.from_plain({**info.plain(), "unknown": 1}) == info
    other = GeneratedConfig(metric_colour="rgb", metric_border=2).build(0).info
    assert (other.colour, other.border, other.degraded_channels) == ("rgb", 2, 3)


# -- decoded images ---------------------------------------------------------------------------------------------------


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    decoded: list[Path] = []
    original = store.load_pixels

    def counted(path: Path, channels: int) -> Any:
        decoded.append(path)
        return original(path, channels)

    monkeypatch.setattr(store, "load_pixels", counted)
    return decoded


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    decoded = count_decoding(monkeypatch)
    path = write(tmp_path / "a.png")
    first = PixelStore(tmp_path / "kept", 3)
    for keeper in (first, first, PixelStore(tmp_path / "kept", 3), pickle.loads(pickle.dumps(first))):
        np.testing.assert_array_equal(keeper.pixels(path), pixels())
    assert decoded == [path]
    assert PixelStore(tmp_path / "kept", 1).pixels(path).shape == (24, 32, 1) and len(decoded) == 2
    write(path, 5, 30, 30)  # another file under the same name
    np.testing.assert_array_equal(first.pixels(path), pixels(5, 30, 30))


def test_a_damaged_copy_is_made_anew(tmp_path):
    path = write(tmp_path / "a.png")
    PixelStore(tmp_path / "kept", 3).pixels(path)
    (copy,) = (tmp_path / "kept").iterdir()
    copy.write_bytes(copy.read_bytes()[:100])
    np.testing.assert_array_equal(PixelStore(tmp_path / "kept", 3).pixels(path), pixels())


def test_many_files_stay_open_at_once_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OPEN_FILES", 2)
    keeper = PixelStore(tmp_path / "kept", 3)
    paths = [write(tmp_path / f"{number}.png", number) for number in range(4)]
    for number, path in enumerate([*paths, *paths]):
        np.testing.assert_array_equal(keeper.pixels(path), pixels(number % 4))
    assert len(keeper._open) == 2


def test_a_full_disk_ends_the_keeping_not_the_training(tmp_path, monkeypatch, caplog):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    keeper = PixelStore(tmp_path / "kept", 3)
    np.testing.assert_array_equal(keeper.pixels(write(tmp_path / "a.png")), pixels())
    assert "No space left on device): going on without" in caplog.text and keeper.folder is None
    assert list((tmp_path / "kept").iterdir()) == []


def test_where_decoded_images_are_kept(tmp_path, monkeypatch, caplog):
    pairs = [Pair(str(n), write(tmp_path / f"{n}.png", n, 20, 30)) for n in range(3)]
    assert decoded_bytes(pairs, 3) == 3 * 20 * 30 * 3 and decoded_bytes([], 3) == 0
    assert store_folder("off", pairs, 3) is None and store_folder("~/kept", pairs, 3) == Path.home() / "kept"
    assert store_folder("auto", pairs, 3).name == "decoded"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**4, 9000, 1000))
    assert store_folder("auto", pairs, 3) is None
    assert "every patch decodes its file; --data.cache FOLDER" in caplog.text


def test_the_store_changes_nothing(tmp_path):
    for number in range(3):
        write(tmp_path / f"data/train/{number}.png", number, 40, 40)
    root = str(tmp_path / "data")
    configs = [
        FolderConfig(root=root, patch=8, val_share=0.0, cache=cache) for cache in ("off", str(tmp_path / "kept"))
    ]
    assert all_same(*(train_batches(config) for config in configs))
    assert len(list((tmp_path / "kept").iterdir())) == 3


# -- embedded data ----------------------------------------------------------------------------------------------------


def test_the_sample_is_seven_photographs_in_the_standard_layout(tmp_path):
    data = SampleConfig(root=str(tmp_path)).build(seed=0)
    data.setup()
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [5 * 64, 1, 1]
    assert (tmp_path / "photographs/test/HR/chelsea.png").is_file()
    notice = (tmp_path / "photographs/LICENCE.txt").read_text()
    assert all(Path(photograph.file).stem in notice for photograph in PHOTOGRAPHS) and "Attribution 2.0" in notice
    sample = data.split("test").dataset[0]
    assert sample["name"] == "chelsea" and sample["gt"].shape == (3, 300, 448) and sample["lq"].shape == (3, 75, 112)
    halved = next(pair for pair in data.layout.splits["train"] if pair.name == "china")
    assert PixelStore(None, 3).pixels(halved.original).shape == (214, 320, 3)


def test_the_sample_written_once_needs_no_package(tmp_path, monkeypatch):
    SampleConfig(root=str(tmp_path)).find()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(SampleConfig(root=str(tmp_path)).find().splits["train"]) == 5
    shutil.rmtree(tmp_path / "photographs/val")
    with pytest.raises(ImportError, match=r"needs the package 'scikit-image'.*graftwork\[sample\]"):
        SampleConfig(root=str(tmp_path)).find()


def test_generated_images_depend_on_their_numbers_alone(tmp_path):
    layouts = [GeneratedConfig(root=str(tmp_path / name)).find() for name in "ab"]
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        files = [[pair.original.read_bytes() for pair in layout.splits[split]] for layout in layouts]
        assert files[0] == files[1] and len(set(files[0])) == count
    other = GeneratedConfig(root=str(tmp_path / "a"), images_seed=1).find()
    assert other.root != layouts[0].root


def test_every_dataset_is_registered_with_a_description():
    assert DATASETS.names() == ["sample", "folder", "benchmark", "div2k", "generated"] and DATASETS.default == "sample"
    assert all(DATASETS.get(name).__doc__ for name in DATASETS.names())
