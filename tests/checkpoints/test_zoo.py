"""The zoo: names to files that are checked, and never fetched unless asked."""

from __future__ import annotations

import hashlib

import pytest
import torch

from apps.core.checkpoints.io import AtomicCheckpointIO
from apps.core.checkpoints.read import resolve_weights, stored_config
from checkpoints import zoo
from checkpoints.__main__ import main
from graftwork.errors import ConfigError, WeightsError


@pytest.fixture
def run_checkpoint(tmp_path):
    story = {
        "task": "toy",
        "config": {"seed": 4, "run": {"name": "x", "dir": "places/runs"}, "data": {"root": "places/photos"}},
        "info": {"inputs": 3},
        "metrics": {"val/mse": 1.5},
    }
    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"model.weight": torch.ones(2, 3)}, "graftwork": story}, path)
    return path


@pytest.fixture
def listed(tmp_path, run_checkpoint, capsys, monkeypatch):
    """A zoo with one imported entry."""
    path = tmp_path / "zoo" / "zoo.yaml"
    path.parent.mkdir()
    path.write_text("[]\n")
    assert main(["--zoo", str(path), "import", str(run_checkpoint), "toy-demo", "--about", "for tests"]) == 0
    path.write_text(capsys.readouterr().out)
    monkeypatch.setattr(zoo, "ZOO", path)
    monkeypatch.setattr(zoo.local_file, "__defaults__", (path,))
    return path


def test_an_imported_entry_loads_by_name(listed):
    state, meta = resolve_weights("zoo:toy-demo", "toy")
    assert torch.equal(state["model.weight"], torch.ones(2, 3))
    assert meta.info == {"inputs": 3} and meta.metrics == {"val/mse": 1.5}
    assert stored_config("zoo:toy-demo", "toy") == {"seed": 4, "data": {}}


def test_weights_that_are_passed_on_hold_no_folder_of_their_machine(listed):
    assert b"places/" not in (listed.parent / "demo" / "toy-demo.safetensors").read_bytes()


def test_list_info_and_verify(listed, capsys):
    assert main(["--zoo", str(listed), "list"]) == 0
    assert capsys.readouterr().out == "toy-demo  toy  here  for tests\n"
    assert main(["--zoo", str(listed), "info", "toy-demo"]) == 0
    assert "values: 6" in capsys.readouterr().out
    assert main(["--zoo", str(listed), "verify"]) == 0


def test_a_changed_file_is_found(listed, capsys):
    file = listed.parent / "demo" / "toy-demo.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    assert main(["--zoo", str(listed), "verify"]) == 1
    assert "sha256 is" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="damaged or another one"):
        resolve_weights("zoo:toy-demo")


def test_an_unknown_name_gets_the_nearest(listed):
    with pytest.raises(ConfigError, match="did you mean toy-demo"):
        resolve_weights("zoo:toy-dmo")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """An entry with an address, as a file: address so that no network is needed."""
    source = tmp_path / "remote.safetensors"
    source.write_bytes(b"weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"weights").hexdigest()
    path = tmp_path / "zoo.yaml"
    path.write_text(f"- {{name: far, task: toy, sha256: {digest}, url: '{source.as_uri()}'}}\n")
    return path


def test_nothing_is_fetched_unless_asked(remote, tmp_path, capsys):
    with pytest.raises(WeightsError, match="python -m checkpoints fetch far"):
        zoo.local_file("far", remote)
    assert not (tmp_path / "cache").exists()
    assert main(["--zoo", str(remote), "fetch", "far"]) == 0
    assert zoo.local_file("far", remote).read_bytes() == b"weights"


def test_a_wrong_download_is_not_kept(remote, tmp_path, capsys):
    (tmp_path / "remote.safetensors").write_bytes(b"something else")
    assert main(["--zoo", str(remote), "fetch", "far"]) == 2
    assert "sha256" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.safetensors*"))


def test_the_shipped_list_is_valid():
    assert main(["verify"]) == 0
    for entry in zoo.entries():
        assert len(entry.sha256) == 64
