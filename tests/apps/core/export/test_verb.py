from __future__ import annotations

from pathlib import Path

import pytest

from apps.core.checkpoints.read import WeightsMeta
from apps.core.export import onnx as verb
from apps.core.task import VerbOptions
from graftwork.errors import ConfigError, UserError
from tests.apps.core.inference.toy_model import TASK, save_checkpoint
from tests.toy_task import ToyConfig


def test_export_writes_beside_the_weights_and_reports(tmp_path: Path, capsys):
    import onnx

    save_checkpoint(tmp_path / "best.ckpt")
    options = VerbOptions(weights=str(tmp_path / "best.ckpt"), config_text="seed: 2023\n")
    assert verb.export(TASK, ToyConfig(), options) == 0
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "best.onnx").metadata_props}
    assert metadata["task"] == "toy" and metadata["config"] == "seed: 2023\n" and metadata["graftwork"]
    out = capsys.readouterr().out
    assert "input (5, 3)" in out and "equal to the model at all shapes" in out


def test_export_fails_loudly_where_the_file_differs(tmp_path: Path, capsys, monkeypatch):
    save_checkpoint(tmp_path / "best.ckpt")
    form = verb.formats("pt2")
    lying = form._replace(runner=lambda *_: lambda example: [0 * example["input"][:, :1].numpy() + 9])
    monkeypatch.setattr(verb, "formats", lambda name: lying)
    options = VerbOptions(weights=str(tmp_path / "best.ckpt"), output=str(tmp_path / "toy.pt2"), format="pt2")
    assert verb.export(TASK, ToyConfig(), options) == 1
    assert (tmp_path / "toy.failed.pt2").exists() and not (tmp_path / "toy.pt2").exists()
    assert "3 of 3 outputs differ" in capsys.readouterr().out


def test_export_refuses_before_it_loads_anything(tmp_path: Path):
    with pytest.raises(ConfigError, match="unknown export format 'tflite'"):
        verb.export(TASK, ToyConfig(), VerbOptions(format="tflite"))
    with pytest.raises(UserError, match="--weights: no trained weights"):
        verb.export(TASK, ToyConfig(), VerbOptions())


def test_default_place_is_beside_weights_of_ones_own():
    meta = WeightsMeta(Path("run/checkpoints/best.ckpt"))
    assert verb.default_output(TASK, "run", meta, ".onnx") == Path("run/checkpoints/best.onnx")
    assert verb.default_output(TASK, "zoo:demo", meta, ".onnx") == Path("toy.onnx")
    official = WeightsMeta(Path("paper.pth"), official=True)
    assert verb.default_output(TASK, "official:paper.pth", official, ".onnx") == Path("toy.onnx")


def test_a_folder_as_output_takes_the_model_of_that_name(tmp_path: Path):
    save_checkpoint(tmp_path / "best.ckpt")
    options = VerbOptions(weights=str(tmp_path / "best.ckpt"), output=str(tmp_path), format="pt2")
    assert verb.export(TASK, ToyConfig(), options) == 0
    assert (tmp_path / "model.pt2").is_file()
    assert verb.named_output(f"{tmp_path}/new/", ".onnx") == tmp_path / "new" / "model.onnx"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(verb, "load_module", lambda *_, **__: pytest.fail("the weights were read"))
    options = VerbOptions(weights="best.ckpt", output=str(tmp_path / "file" / "model.onnx"))
    with pytest.raises(UserError, match=r"file/model\.onnx: cannot be written: .*file is a file.* by --output"):
        verb.export(TASK, ToyConfig(), options)
