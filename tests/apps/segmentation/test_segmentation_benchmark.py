"""What is measured is the same function in both forms."""

from __future__ import annotations

import json

import pytest
import torch

from apps.segmentation import costs
from apps.segmentation.benchmark import main
from apps.segmentation.models.segmenter import Segmenter

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.slow
def test_both_forms_compute_the_same():
    rows = {row.name: row for row in costs.parts(repeats=1, side=64)}
    assert {name.split()[0] for name in rows} == {"kmax", "segformer", "upernet", "mask2former"}
    assert all(row.difference < 1e-4 for row in rows.values()), rows


def test_the_command_prints_and_writes_rows(capsys, tmp_path):
    words = ["--backbones", "shvit_s1", "--heads", "segformer", "kmax", "--size", "64x96", "--repeats", "1"]
    assert main([*words, "--output", str(tmp_path / "c.json")]) == 0
    assert "shvit_s1" in capsys.readouterr().out
    row, other = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert (
        (row["head"], other["head"]) == ("segformer", "kmax")
        and row["latency_ms"] > 0
        and row["gmacs"] > 0
        and row["parameters"] > 5e6
    )


def test_half_types_and_compilation_reach_the_measured_calls(capsys, monkeypatch):
    compiled, seen = [], set()
    monkeypatch.setattr("torch.nn.Module.compile", lambda module: compiled.append(type(module)))
    class_scores = Segmenter.class_scores

    def spied(model, images):
        found = class_scores(model, images)
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return found

    monkeypatch.setattr(Segmenter, "class_scores", spied)
    words = ["--backbones", "shvit_s1", "--heads", "segformer", "--size", "64", "--repeats", "1"]
    assert main([*words, "--dtype", "bfloat16", "--compile"]) == 0
    assert compiled == [Segmenter] and torch.bfloat16 in seen
    title = " ".join(capsys.readouterr().out.split())
    assert "cpu, bfloat16" in title and "compiled" in title


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbones", "swin_tinny"], "swin_tiny"),
        (["--heads", "kmaxx"], "kmax"),
        (["--size", "16"], "--size 16"),
        (["--repeats", "0"], "--repeats 0"),
        (["--device", "foo"], "there is no device 'foo' here"),
        pytest.param(["--device", "cuda"], "there is no device 'cuda' here", marks=NO_GPU),
        (["--threads", "-1"], "--threads -1 must be at least 0"),
        (["--dtype", "bfloat61"], "did you mean bfloat16"),
        (["--parts", "--compile"], "--compile is for whole models"),
    ],
)
def test_wrong_words_are_one_error(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err
