"""Weight files are read without running code, and broken ones are named for what they are."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoints.keymap import read_weights
from graftwork.errors import WeightsError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w"])
def test_safetensors_by_content(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(read_weights(tmp_path / name))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "params_ema"])
def test_torch_files(tmp_path: Path, wrap: str, legacy: bool) -> None:
    content = {wrap: STATE, "epoch": 3} if wrap else STATE
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert same(read_weights(str(tmp_path / "w.pth")))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / "sprung"
    torch.save({"state_dict": STATE, "x": Trap(trap)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"refused: .*mkdir.*could run code"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "plain.pkl")
    assert not trap.exists()


class History:
    """Like the history of losses in checkpoints of mmengine, which refers to its own methods."""

    def __init__(self, trap: Trap | None = None) -> None:
        self.trap = trap

    def lowest(self) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        numbers = {"values": np.arange(5.0), "last": np.float32(2), "seed": np.int64(1)}
        return {**numbers, "methods": {"min": History.lowest}, "trap": self.trap}


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> type[History]:
    """The class under its name in mmengine, which is not to be importable when the file is read."""
    name = "mmengine.logging.history_buffer"
    monkeypatch.setattr(History, "__module__", name)
    module = types.ModuleType(name)
    module.History = History  # type: ignore[attr-defined]
    for part in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return History


def training_state(history: History) -> dict[str, Any]:
    return {
        "meta": {"epoch": 3, "seed": np.int64(7), "options": argparse.Namespace(lr=0.1)},
        "message_hub": {"log_scalars": OrderedDict({"train/loss": history})},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "lr": np.float64(0.1)},
        "state_dict": OrderedDict(STATE),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_training_state_is_passed_over(
    tmp_path: Path, legacy: bool, history: type[History], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(training_state(history()), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(History, "__init__", None)  # would be called by nobody
    for part in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, part, None)  # an import raises
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "w.pth", weights_only=True)
    assert same(read_weights(tmp_path / "w.pth"))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_inside_of_training_state_is_refused(tmp_path: Path, legacy: bool, history: type[History]) -> None:
    trap = tmp_path / "sprung"
    content = training_state(history(Trap(trap)))
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"refused: .*mkdir.*could run code"):
        read_weights(tmp_path / "w.pth")
    assert not trap.exists()


def test_getattr_reaches_nothing(tmp_path: Path) -> None:
    """A file that fetches a function through ``getattr`` and calls it gets an object that does nothing."""
    trap = tmp_path / "sprung"
    content = b"\x80\x02cbuiltins\ngetattr\ncnumpy\nos\nX\x05\x00\x00\x00mkdir\x86R"
    content += b"X" + len(str(trap)).to_bytes(4, "little") + str(trap).encode() + b"\x85R."
    torch.save(STATE, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as changed:
        for name in plain.namelist():
            changed.writestr(name, content if name.endswith("data.pkl") else plain.read(name))
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "w.pth")
    assert not trap.exists()


def test_nothing_stays_allowed(tmp_path: Path, history: type[History]) -> None:
    torch.save(training_state(history()), tmp_path / "w.pth")
    before = set(torch.serialization.get_safe_globals())
    read_weights(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"refused: .*torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("kept", [0, 7, 40, 0.5, 0.95])
def test_a_cut_file_is_called_incomplete(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 or kept == 0 else len(content) * kept)])
    with pytest.raises(WeightsError, match=r"no complete|empty file") as error:
        read_weights(path)
    assert name in str(error.value) and "again" in str(error.value)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="folder"):
        read_weights(tmp_path)
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    with pytest.raises(WeightsError, match="no complete"):
        read_weights(tmp_path / "photo.pth")
    (tmp_path / "page.pth").write_text("<html>404: not found</html>")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "page.pth")
    for content in ({}, {"epoch": 3}, [1, 2], torch.zeros(3)):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="holds no tensors"):
            read_weights(tmp_path / "w.pth")
