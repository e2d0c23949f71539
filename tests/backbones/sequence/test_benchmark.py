"""The benchmark verb: every operator, both forms, a table and a file."""

from __future__ import annotations

import json

import pytest

from backbones.sequence import MIXERS, benchmark
from backbones.sequence.__main__ import main


def test_every_mixer_is_measured():
    for name in MIXERS.names():
        assert benchmark.chosen([name]), name
    assert benchmark.chosen([]) == list(benchmark.CASES)
    assert benchmark.chosen(["flow"]) == ["flow", "flow_causal"]


def test_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "cost.json"
    size = ["--length", "12", "--batch", "2", "--width", "16", "--heads", "2", "--repeats", "2"]
    assert main(["benchmark", *size, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["speed"]] == list(benchmark.CASES)
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in result["speed"])
    assert "selective_scan" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, case in benchmark.CASES.items() if case.linear])
def test_memory_of_linear_operators_grows_linearly(name):
    size = benchmark.Size(batch=1, heads=2, width=32, states=4)
    growth = benchmark.memory_growth(name, size, lengths=[512, 1024, 2048])
    assert 0.5 < growth.exponent < 1.1  # work buffers of constant size flatten it at small lengths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sofmax"], "did you mean softmax"),
        (["--width", "10", "--heads", "4"], "--width 10 must be a multiple of --heads 4"),
        (["--length", "0"], "--length 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
