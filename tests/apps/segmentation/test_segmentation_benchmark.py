"""What is measured is the same function in both forms."""

from __future__ import annotations

import json

import pytest

from apps.segmentation import costs
from apps.segmentation.benchmark import main


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbones", "swin_tinny"], "swin_tiny"),
        (["--heads", "kmaxx"], "kmax"),
        (["--size", "16"], "--size 16"),
        (["--repeats", "0"], "--repeats 0"),
    ],
)
def test_wrong_words_are_one_error(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err
