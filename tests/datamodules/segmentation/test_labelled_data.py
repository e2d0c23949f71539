"""The datamodule: samples, batches, determinism over workers and resumption, counts, the embedded data."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.guard import CorruptSample
from datamodules.segmentation import counts as counting
from datamodules.segmentation.config import DATASETS, FolderConfig, GeneratedConfig, LabelledConfig, SampleConfig
from datamodules.segmentation.datamodule import SegmentationData
from datamodules.segmentation.info import SegmentationInfo
from datamodules.segmentation.sample import COUNTS, SIZE
from datamodules.segmentation.scenes import NAMES, THINGS, draw_scene
from datamodules.segmentation.sheet import contact_sheet
from graftwork.errors import ConfigError, DataError
from tests.datamodules.segmentation.pictures import striped, write_array, write_image, write_pairs

Batch = dict[str, Any]


def built(config: LabelledConfig, seed: int = 3) -> SegmentationData:
    data = config.build(seed)
    data.setup()
    return data


def train_batches(config: LabelledConfig, seed: int = 3, epoch: int = 0) -> list[Batch]:
    loader = built(config, seed).train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def same(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def small(**options: Any) -> GeneratedConfig:
    return GeneratedConfig(images=8, batch_size=3, crop=(48, 56), **options)


def test_a_training_sample_keeps_the_contract():
    data = built(small())
    sample = data.split("train")[(0, 2)]
    assert set(sample) == set(data.sample_spec)
    assert sample["image"].shape == (3, 48, 56) and sample["image"].dtype == torch.float32
    assert sample["mask"].shape == (48, 56) and sample["mask"].dtype == torch.int64
    assert sample["segments"].shape == (48, 56) and sample["segments"].dtype == torch.int32
    assert sample["segment_classes"].dtype == torch.int64 and sample["segment_crowd"].dtype == torch.bool
    assert sample["name"] == "0002" and int(sample["index"]) == 2 and sample["size"].tolist() == [48, 56]


@pytest.mark.parametrize("index", range(6))
def test_mask_and_segments_agree_and_all_segments_are_in_view(index):
    sample = built(small()).split("train")[(1, index)]
    classes = torch.cat([sample["segment_classes"], torch.tensor([255])])
    assert torch.equal(sample["mask"], classes[sample["segments"].long()])
    present = sample["segments"].unique()
    assert torch.equal(present[present >= 0].long(), torch.arange(len(sample["segment_classes"])))


def test_small_images_are_padded_with_0_255_and_minus_1(tmp_path):
    root = write_pairs(tmp_path)
    config = FolderConfig(root=str(root), crop=(64, 56), things=())
    config.augment.scale = (1.0, 1.0)
    sample = built(config).split("train")[(0, 0)]
    assert sample["size"].tolist() == [40, 48]
    assert (sample["image"][:, 40:] == 0).all() and (sample["image"][:, :, 48:] == 0).all()
    assert (sample["mask"][40:] == 255).all() and (sample["mask"][:40, :48] < 3).all()
    panoptic = built(GeneratedConfig(images=1, crop=(96, 128), size=(48, 64)))
    panoptic.config.augment.scale = (1.0, 1.0)
    padded = panoptic.split("train")[(0, 0)]
    assert (padded["segments"][48:] == -1).all() and padded["segments"][:48, :64].max() >= 0


def test_evaluation_has_whole_images_that_never_change():
    data = built(small())
    first = data.split("val")[(0, 1)]
    assert first["image"].shape == (3, 64, 96) and first["mask"].shape == (64, 96)
    assert same(first, data.split("val")[(5, 1)]) and same(first, built(small(), seed=9).split("val")[1])


def test_samples_are_functions_of_seed_epoch_and_index():
    data = built(small())
    first = data.split("train")[(2, 5)]
    np.random.random(3)
    torch.rand(3)
    assert same(first, data.split("train")[(2, 5)]) and same(first, built(small()).split("train")[(2, 5)])
    for other in (data.split("train")[(3, 5)], built(small(), seed=4).split("train")[(2, 5)]):
        assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_batches_do_not_depend_on_the_number_of_workers(balance):
    alone = train_batches(small(balance=balance), epoch=1)
    assert all_same(alone, train_batches(small(balance=balance, num_workers=2), epoch=1))
    assert not all_same(alone, train_batches(small(balance=balance), epoch=2))


def test_a_run_goes_on_inside_an_epoch():
    whole = train_batches(small(balance=0.5), epoch=1)
    data = built(small(balance=0.5))
    data.resume_at(1, 1)
    assert all_same(list(data.train_dataloader()), whole[1:])


def test_lists_of_segments_get_one_length():
    batch = next(iter(built(small()).train_dataloader()))
    classes, crowd = batch["segment_classes"], batch["segment_crowd"]
    assert classes.shape == crowd.shape and classes.shape[0] == 3
    longest = int(batch["segments"].amax()) + 1
    assert classes.shape[1] == longest and not crowd[classes < 0].any()
    for segments, row in zip(batch["segments"], classes, strict=True):
        assert int(segments.max()) + 1 == int((row >= 0).sum())


def test_semantic_samples_of_panoptic_labels():
    data = built(small(panoptic=False))
    assert "segments" not in data.split("train")[(0, 0)] and not data.info.panoptic and data.info.things == ()
    assert torch.equal(data.split("val")[0]["mask"], built(small()).split("val")[0]["mask"])


def test_grey_images_and_one_channel(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), count=1)
    deep = (np.arange(40 * 48).reshape(40, 48) * 30).astype(np.uint16)
    for split in ("train", "val"):
        write_array(root / "images" / split / "0.png", deep)
    shares = torch.from_numpy(np.round(deep / 257) / 255).float()
    for channels in (1, 3):
        data = built(FolderConfig(root=str(root), crop=(32, 32), channels=channels))
        image = data.split("val")[0]["image"]
        assert image.shape == (channels, 40, 48)
        for plane, mean, std in zip(image, data.info.mean, data.info.std, strict=True):
            assert torch.allclose(plane * std + mean, shares, atol=1e-5)
        assert data.split("train")[(0, 0)]["image"].shape == (channels, 32, 32)


def test_counts_by_hand_and_median_frequency(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"))
    mask = np.full((40, 48), 255, dtype=np.uint8)
    mask[:10] = 0
    write_array(root / "masks" / "train" / "1.png", mask)
    info = FolderConfig(root=str(root)).build(0).info
    third = 40 * 16
    assert info.pixels == (third + 480, third, third)
    assert info.present == (2 * 1920, 1920, 1920) and info.majority == 0
    assert SegmentationInfo.from_plain(info.plain()) == info


def test_counts_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    root = write_pairs(tmp_path)
    first = FolderConfig(root=str(root)).build(0).info
    with monkeypatch.context() as patched:
        patched.setattr(counting, "count", lambda *_, **__: pytest.fail("counted again"))
        assert FolderConfig(root=str(root)).build(0).info == first
        assert FolderConfig(root=str(root), count=False).build(0).info.pixels == ()
    write_array(root / "masks" / "train" / "0.png", striped(labels=(0, 0, 1, 2)))
    assert FolderConfig(root=str(root)).build(0).info.pixels != first.pixels


def test_broken_counts_are_counted_again(tmp_path, own_temporary_folder):
    root = write_pairs(tmp_path)
    first = FolderConfig(root=str(root)).build(0).info
    (kept,) = own_temporary_folder.rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:40])
    assert FolderConfig(root=str(root)).build(0).info == first


def test_corrupt_files_stop_or_are_replaced(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), count=4)
    broken = root / "masks" / "train" / "2.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(CorruptSample, match=r"2\.png: cannot be decoded"):
        _ = FolderConfig(root=str(root)).build(0).info
    config = FolderConfig(root=str(root), on_corrupt="skip", crop=(32, 32), batch_size=2)
    data = built(config)
    assert len(list(data.train_dataloader())) == 2 and data.skipped == {str(broken): 1}
    assert data.info.pixels == (3 * 640,) * 3


def test_images_of_different_sizes_need_batches_of_one(tmp_path):
    root = write_pairs(tmp_path)
    write_image(root / "images" / "val" / "1.png", 1, 50, 60)
    write_array(root / "masks" / "val" / "1.png", striped(50, 60))
    data = built(FolderConfig(root=str(root)))
    assert [tuple(batch["image"].shape[2:]) for batch in data.val_dataloader()] == [(40, 48), (50, 60)]
    with pytest.raises(ConfigError, match=r"eval_batch_size=2 puts images of 40 x 48 and 50 x 60"):
        list(built(FolderConfig(root=str(root), eval_batch_size=2)).val_dataloader())


def test_balance_shows_rare_classes_more_often(tmp_path):
    root = write_pairs(tmp_path, ("train", "val"), count=8)
    for number in range(7):
        write_array(root / "masks" / "train" / f"{number}.png", striped(labels=(0, 1)))
    batches = train_batches(FolderConfig(root=str(root), balance=1.0, crop=(32, 32), batch_size=8))
    names = [name for batch in batches for name in batch["name"]]
    assert len(names) == 8 and names.count("7") == 4  # 8 of 15, rounded at random


def test_the_default_is_a_folder_of_street_scenes(tmp_path):
    assert DATASETS.default == "sample"
    data = built(SampleConfig(root=str(tmp_path), num_workers=0))
    assert {name: len(data.split(name)) for name in COUNTS} == COUNTS
    info = data.info
    assert info.classes == NAMES and info.things == THINGS and info.panoptic and min(info.pixels) > 10_000
    sample = data.split("test")[0]
    assert sample["image"].shape == (3, *SIZE)
    images = sorted(tmp_path.rglob("images/train/*.png"))
    assert len(images) == 120
    stamp = images[0].stat().st_mtime_ns
    built(SampleConfig(root=str(tmp_path)))
    assert images[0].stat().st_mtime_ns == stamp  # written once


def test_scenes_are_the_same_everywhere():
    one, other = (draw_scene(np.random.default_rng(4), 64, 96) for _ in range(2))
    assert (one.image == other.image).all() and (one.segments == other.segments).all() and one.classes == other.classes
    assert one.image.shape == (64, 96, 3) and one.segments.max() == len(one.classes) - 1
    assert not (draw_scene(np.random.default_rng(5), 64, 96).image == one.image).all()


def test_a_datamodule_travels_to_worker_processes():
    data = built(small())
    assert same(pickle.loads(pickle.dumps(data)).split("train")[(0, 1)], data.split("train")[(0, 1)])


def test_pictures(tmp_path):
    config = small()
    path = contact_sheet(config, tmp_path / "a" / "sheet.png", images=5)
    assert path.stat().st_size > 1000
    data = built(config)
    assert len(data.plot(data.split("val")[0]).axes) == 2
    with pytest.raises(DataError, match="no night split"):
        contact_sheet(config, Path("x.png"), split="night")


def test_options_out_of_range():
    with pytest.raises(ConfigError, match=r"images=0 must be at least 1"):
        GeneratedConfig(images=0).check()
    with pytest.raises(ConfigError, match=r"size=\[8, 64\]"):
        GeneratedConfig(size=(8, 64)).check()
    wrong = SampleConfig(balance=1, count=False, eval_batch_size=0)
    wrong.augment.scale, wrong.augment.max_share = (2.0, 1.0), 0.0
    with pytest.raises(ConfigError) as caught:
        wrong.check()
    for text in ("set count=true", "eval_batch_size=0", "augment.scale=[2.0, 1.0]", "augment.max_share=0"):
        assert text in str(caught.value)
