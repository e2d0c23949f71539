"""Checkpoints are written whole or not at all, and read without running code."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from apps.core.checkpoints.io import AtomicCheckpointIO
from apps.core.checkpoints.read import read_checkpoint, resolve_weights, stored_config, weights_path
from apps.core.run.atomic import clean_unfinished, replace_file
from graftwork.errors import UserError, WeightsError

STATE = {"state_dict": {"model.weight": torch.arange(6.0).reshape(2, 3)}, "graftwork": {"task": "toy"}}


def test_round_trip_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["model.weight"], STATE["state_dict"]["model.weight"])
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


class FullDisk:
    """A file that takes ``room`` bytes and then fails as a full disk does."""

    def __init__(self, stream, room: int) -> None:
        self.stream, self.room = stream, room

    def write(self, data) -> int:
        self.stream.write(bytes(data)[: self.room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()


def fill_disk(monkeypatch, room: int = 100) -> None:
    opened = Path.open

    def full(self, mode="r", *args, **kwargs):
        stream = opened(self, mode, *args, **kwargs)
        return FullDisk(stream, room) if "w" in mode else stream

    monkeypatch.setattr(Path, "open", full)


def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    before = path.read_bytes()
    fill_disk(monkeypatch)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written: No space left on device\. Free some space"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_a_killed_writer_left_is_cleaned_and_nothing_else(tmp_path):
    for name in (".last.ckpt.123.tmp", "last.ckpt", "notes.tmp", ".hidden"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in clean_unfinished(tmp_path)] == [".last.ckpt.123.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "last.ckpt", "notes.tmp"]


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*--run.dir"):
        replace_file(tmp_path / "file" / "notes.json", "{}")


class Evil:
    def __reduce__(self):
        return (os.system, ("echo evil > evil.txt",))


@pytest.mark.parametrize("read", [read_checkpoint, resolve_weights, AtomicCheckpointIO().load_checkpoint])
def test_code_in_a_checkpoint_is_never_run(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(1)}, "evil": Evil()}, "evil.ckpt")
    with pytest.raises(WeightsError, match="refused"):
        read(Path("evil.ckpt"))
    with pytest.raises(WeightsError, match="refused"):
        stored_config("evil.ckpt")
    assert not Path("evil.txt").exists()


def test_lightning_cannot_ask_for_code_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "evil": Evil()}, "evil.ckpt")
    with pytest.raises(WeightsError):
        AtomicCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.path, a pathlib\.PosixPath"):
        AtomicCheckpointIO().save_checkpoint({"model": {"path": Path("x")}}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"hello"])
def test_damaged_files_are_named(content, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_missing_file():
    with pytest.raises(WeightsError, match="no such weights file"):
        resolve_weights("nowhere.ckpt")


def save(path: Path, **entry) -> Path:
    AtomicCheckpointIO().save_checkpoint({**STATE, "graftwork": {"task": "toy", **entry}}, path)
    return path


def test_a_run_folder_means_its_best_weights(tmp_path):
    last = save(tmp_path / "checkpoints" / "last.ckpt")
    assert weights_path(tmp_path) == last
    best = save(tmp_path / "checkpoints" / "best.ckpt")
    assert weights_path(tmp_path) == best
    assert weights_path(tmp_path / "checkpoints") == best
    with pytest.raises(WeightsError, match="holds no checkpoint"):
        weights_path(_empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_weights_of_another_task_are_refused(tmp_path):
    path = save(tmp_path / "best.ckpt")
    assert resolve_weights(path, "toy")[1].task == "toy"
    with pytest.raises(WeightsError, match="weights of 'toy', not of 'forecasting'"):
        resolve_weights(path, "forecasting")


def test_stored_config_leaves_machine_and_folder_behind(tmp_path):
    config = {"seed": 1, "run": {"dir": "there"}, "log": {}, "trainer": {"devices": 8, "precision": "bf16-mixed"}}
    path = save(tmp_path / "best.ckpt", config=config)
    assert stored_config(path) == {"seed": 1, "trainer": {"precision": "bf16-mixed"}}


def test_official_weights_are_raw(tmp_path):
    torch.save({"model": {"layer.weight": torch.ones(2)}}, tmp_path / "official.pth")
    state, meta = resolve_weights(f"official:{tmp_path / 'official.pth'}", "toy")
    assert list(state) == ["layer.weight"] and meta.official
    assert stored_config(f"official:{tmp_path / 'official.pth'}") is None
