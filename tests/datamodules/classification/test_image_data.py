"""Image loaders: pure functions of seed, epoch and index, whatever loads them; doctor's findings."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.classification.config import (
    DATASETS,
    AugmentConfig,
    FolderConfig,
    GeneratedConfig,
    ImagesConfig,
    SampleConfig,
)
from datamodules.classification.generated import class_list
from datamodules.classification.info import ClassificationInfo
from datamodules.classification.transforms import EvalTransform, TrainTransform, restored
from graftwork.errors import ConfigError, DataError

EVERYTHING = AugmentConfig(crop_scale=(0.3, 1.0), vertical_flip=0.3, policy="rand", erase=0.7)


def info(size: int = 32, channels: int = 3, **changes: object) -> ClassificationInfo:
    values = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "crop_pct": 1.0, "interpolation": "bilinear"}
    return ClassificationInfo(size, channels, ("a", "b"), (1, 1), **{**values, **changes})  # type: ignore[arg-type]


def noise(height: int = 40, width: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def batches(config: ImagesConfig, seed: int = 3, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    data = config.build(seed=seed)
    data.setup()
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


# -- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["none", "rand", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_depends_on_seed_epoch_and_index_alone(policy, channels):
    image = noise() if channels == 3 else noise().convert("L")
    augment = AugmentConfig(policy=policy, erase=0.5, vertical_flip=0.5)

    def make(seed: int, epoch: int, index: int) -> torch.Tensor:
        return TrainTransform(info(channels=channels), augment, seed)(image, epoch, index)

    first = make(1, 2, 3)
    torch.rand(100)
    assert first.shape == (channels, 32, 32) and first.dtype == torch.float32
    assert torch.equal(make(1, 2, 3), first)
    assert not any(torch.equal(make(*other), first) for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4)])


def test_augmentation_leaves_the_global_generator_where_it_was():
    before = torch.random.get_rng_state()
    TrainTransform(info(), EVERYTHING, 0)(noise(), 0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre():
    image = Image.fromarray(np.arange(64, dtype=np.uint8)[None].repeat(32, 0))  # 32 high, 64 wide: a ramp
    found = EvalTransform(info(size=16, channels=1, crop_pct=0.5, mean=(0.0,), std=(1.0,)))(image)
    # the shorter side becomes 16 / 0.5 = 32, which it is; the centre of the ramp begins at (64 - 16) / 2 = 24
    torch.testing.assert_close(found[0, 0] * 255, torch.arange(24.0, 40.0))


def test_scaling_by_hand():
    pixel = Image.new("RGB", (4, 4), (0, 51, 255))
    found = EvalTransform(info(size=4, mean=(0.5, 0.1, 0.0), std=(0.5, 0.2, 2.0)))(pixel)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([-1.0, 0.5, 0.5]))
    torch.testing.assert_close(
        restored(found, info(size=4, mean=(0.5, 0.1, 0.0), std=(0.5, 0.2, 2.0)))[:, 0, 0], torch.tensor([0.0, 0.2, 1.0])
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (31, 33)])
def test_images_of_any_shape_come_out_square(size):
    for transform in (EvalTransform(info(crop_pct=0.875)), TrainTransform(info(), EVERYTHING, 0)):
        assert transform(noise(*size), 0, 0).shape == (3, 32, 32)


def test_whole_crop_scale_trains_on_what_is_evaluated():
    augment = AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0)
    facts = info(crop_pct=0.8)
    assert torch.equal(TrainTransform(facts, augment, 0)(noise(), 5, 5), EvalTransform(facts)(noise()))


def test_flips_have_their_share():
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8).repeat(8, 1).repeat(16, 0))
    transform = TrainTransform(info(size=16, channels=1), AugmentConfig(crop_scale=(1.0, 1.0), flip=0.25), 0)
    mirrored = sum(bool(transform(image, 0, index)[0, 0, 0] > 0) for index in range(400))
    assert 70 < mirrored < 130


def test_erased_rectangles_are_noise_of_standardised_pixels():
    flat = Image.new("RGB", (32, 32), (128, 128, 128))
    plain = AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0, erase=1.0)
    found = TrainTransform(info(), plain, 0)(flat, 0, 0)
    changed = (found - found.flatten(1).mode(1).values[:, None, None]).abs() > 1e-3
    assert 0.015 < changed.float().mean() < 0.34
    assert 0.7 < found[changed].std() < 1.3


BAD = {
    "crop_scale": ((0.5, 0.2), r"crop_scale=\[0.5, 0.2\]"),
    "crop_ratio": ((0.0, 1.0), "crop_ratio"),
    "flip": (1.5, "flip=1.5"),
    "erase": (-0.1, "erase=-0.1"),
    "operations": (0, "operations=0"),
    "magnitude": (31, "magnitude=31 must be from 0 to 30"),
}


@pytest.mark.parametrize("name", BAD)
def test_augmentations_out_of_range(name, tmp_path):
    value, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        FolderConfig(root=str(tmp_path), augment=AugmentConfig(**{name: value})).build(0).setup()


# -- loaders ----------------------------------------------------------------------------------------------------------


def test_two_workers_load_what_none_load():
    plain = GeneratedConfig(images=40, batch_size=8, augment=EVERYTHING)
    first = batches(plain, epoch=1)
    assert same(batches(GeneratedConfig(images=40, batch_size=8, augment=EVERYTHING, num_workers=2), epoch=1), first)
    assert not same(batches(plain, epoch=2), first) and not same(batches(plain, seed=4, epoch=1), first)


def test_repeated_epochs_bring_the_same_images_in_the_order_of_each(tree):
    data = FolderConfig(root=str(tree("a", "b", count=6)), image_size=24, augment=EVERYTHING).build(seed=0)
    data.setup()
    new = [data.split("train")[(epoch, 3)]["image"] for epoch in range(5)]
    data.repeat_epochs(2)
    again = [data.split("train")[(epoch, 3)]["image"] for epoch in range(5)]
    assert all(torch.equal(again[epoch], new[epoch % 2]) for epoch in range(5))
    assert not torch.equal(new[2], new[0]) and not torch.equal(new[1], new[0])
    orders = []
    for epoch in (0, 2):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        orders.append(next(iter(loader))["index"].tolist())
    assert orders[0] != orders[1]


def test_batches_follow_the_sample_spec(tree):
    data = FolderConfig(root=str(tree("a", "b", count=6)), image_size=24, channels=1, batch_size=4).build(seed=0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == set(data.sample_spec) and batch["image"].shape == (4, 1, 24, 24)
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert data.plot({key: value[0] for key, value in batch.items()}).axes


def test_evaluation_sees_every_image_once_in_order():
    data = GeneratedConfig(images=50, eval_batch_size=7).build(seed=0)
    data.setup()
    found = [index for batch in data.test_dataloader() for index in batch["index"].tolist()]
    assert found == list(range(len(data.split("test"))))


def test_info_survives_a_checkpoint():
    found = SampleConfig().build(seed=0).info
    assert ClassificationInfo.from_plain(found.plain()) == found
    assert found.classes[:2] == ("zero", "one") and found.dataset == "digits"
    assert found.mean == (0.485, 0.456, 0.406)
    assert SampleConfig(channels=1).build(seed=0).info.mean == (0.449,)


def corrupted(tree) -> tuple[str, str]:
    root = tree("train/a", "train/b", "val/a", "val/b")
    (root / "train/a/1.png").write_bytes(b"no image")
    return str(root), str(root / "train/a/1.png")


def test_a_corrupt_file_stops_with_its_name(tree):
    root, file = corrupted(tree)
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        batches(FolderConfig(root=root, image_size=32))
    assert caught.value.where == file


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_replaced_and_counted(tree, workers):
    root, file = corrupted(tree)
    data = FolderConfig(root=root, image_size=32, on_corrupt="skip", num_workers=workers).build(seed=0)
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert sorted(batch["index"].tolist()) == [0, 2, 2, 3, 4, 5]
    assert data.skipped == {file: 1}


# -- embedded data ----------------------------------------------------------------------------------------------------


def test_the_sample_is_real_digits_in_the_standard_layout(tmp_path):
    data = SampleConfig(root=str(tmp_path)).build(seed=0)
    data.setup()
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [1295, 142, 360]
    assert (tmp_path / "digits/train/0/0000.png").is_file()
    assert "CC BY 4.0" in (tmp_path / "digits/LICENCE.txt").read_text()
    from sklearn.datasets import load_digits

    pixels = np.asarray(Image.open(tmp_path / "digits/test/8/1796.png"))
    np.testing.assert_array_equal(np.round(pixels / 255 * 16), load_digits().images[-1])


def test_the_sample_written_once_needs_no_package(tmp_path, monkeypatch):
    SampleConfig(root=str(tmp_path)).find()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(SampleConfig(root=str(tmp_path)).find().classes) == 10
    shutil.rmtree(tmp_path / "digits/test/3")
    with pytest.raises(ImportError, match=r"needs the package 'scikit-learn'.*graftwork\[sample\]"):
        SampleConfig(root=str(tmp_path)).find()


def test_generated_shapes_depend_on_their_numbers_alone(tmp_path):
    roots = [GeneratedConfig(root=str(tmp_path / name), images=24, classes=12).find() for name in ("a", "b")]
    assert len(roots[0].classes) == 12 == len(set(class_list(12)))
    for index in range(len(roots[0].splits["train"])):
        one, other = (layout.splits["train"].path(index).read_bytes() for layout in roots)
        assert one == other
    other = GeneratedConfig(root=str(tmp_path / "a"), images=24, classes=12, images_seed=1).find()
    assert other.root != roots[0].root


@pytest.mark.parametrize("wrong", [{"classes": 13}, {"images": 10}, {"side": 4}, {"noise": 2.0}], ids=str)
def test_generated_data_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}="):
        GeneratedConfig(**wrong).build(0).setup()


def test_every_dataset_is_registered_with_a_description():
    assert DATASETS.names() == ["sample", "folder", "generated"] and DATASETS.default == "sample"
    assert all(DATASETS.get(name).__doc__ for name in DATASETS.names())
