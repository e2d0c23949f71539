"""Loaders: the same batches whatever the workers, errors in their own words, corrupt files skipped if asked."""

from __future__ import annotations

import pytest
import torch

from graftwork.errors import DataError
from tests.toy_task import LinesConfig


def data(**changes):
    module = LinesConfig(**changes).build(seed=5)
    module.setup()
    return module


def batches(module, split="train"):
    return list(module.loader(split))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(workers):
    for one, other in zip(batches(data()), batches(data(num_workers=workers)), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_augmentation_changes_with_the_epoch_and_with_nothing_else():
    module = data()
    dataset = module.split("train")
    assert torch.equal(dataset[(3, 7)]["points"], dataset[(3, 7)]["points"])
    assert not torch.equal(dataset[(3, 7)]["points"], dataset[(4, 7)]["points"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_keeps_its_words(workers):
    with pytest.raises(DataError) as caught:
        batches(data(broken=3, num_workers=workers))
    assert str(caught.value) == "rows/3.csv: has 2 columns, expected 3. Add the column"


def test_a_corrupt_sample_stops_the_run_by_default():
    with pytest.raises(DataError, match=r"photos/9\.png: cannot be decoded"):
        batches(data(corrupt=(9,)))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_samples_are_replaced_by_the_next_and_counted(workers):
    module = data(corrupt=(9, 10), on_corrupt="skip", num_workers=workers)
    indices = sorted(index for batch in batches(module) for index in batch["index"].tolist())
    assert indices == sorted(11 if index in (9, 10) else index for index in range(50))
    assert module.skipped == {"photos/9.png": 1, "photos/10.png": 2}


def test_a_split_of_corrupt_samples_alone_is_an_error():
    with pytest.raises(DataError, match="every sample of the split is corrupt"):
        batches(data(samples=3, corrupt=(0, 1, 2), on_corrupt="skip"))


def test_a_missing_split_is_named():
    with pytest.raises(DataError, match=r"no predict split.*train, val, test"):
        data().split("predict")


def test_inspection_finds_what_loading_would():
    levels = {finding.what.split(":")[0]: finding.level for finding in data(broken=0).inspect()}
    assert levels == {"train": "error", "val": "ok", "test": "ok"}


def test_a_killed_worker_is_explained(monkeypatch):
    module = data(num_workers=1)

    def killed(self):
        raise RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")

    monkeypatch.setattr("torch.utils.data.dataloader._BaseDataLoaderIter.__next__", killed)
    with pytest.raises(DataError, match=r"data.num_workers=1: .*killed.*fewer workers"):
        batches(module)
