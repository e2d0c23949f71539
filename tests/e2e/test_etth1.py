"""The published protocol on ETTh1, where the data is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def scores(folder: Path, *words: str) -> dict[str, tuple[float, int]]:
    command = [sys.executable, "-m", "apps.forecasting", *words, "--run.dir", str(folder), "--log.wandb", "off"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["metric"]: (row["value"], row["samples"]) for row in json.loads((folder / "results.json").read_text())}


def recipe(model: str, shared: Path) -> list[str]:
    return ["--config", f"configs/forecasting/etth1_{model}.yaml", "--data.root", str(shared / "data/ETT-small")]


@pytest.mark.parametrize("batch", ["1", "32", "512"])
def test_last_value_scores_every_window_at_any_batch_size(batch, shared, tmp_path):
    words = ["--data.eval_batch_size", batch, "--run.report", "false", "--run.pictures", "0"]
    found = scores(tmp_path / "run", "test", *recipe("last_value", shared), *words)
    assert found["mse"] == (pytest.approx(1.2943705947845097, abs=1e-5), 2785)
    assert found["mae"] == (pytest.approx(0.7131813544413372, abs=1e-5), 2785)


@pytest.mark.slow
def test_itransformer_reaches_its_paper(shared, tmp_path):
    found = scores(tmp_path / "run", "fit", *recipe("itransformer", shared))
    assert found["mse"][0] <= 0.390
    assert found["mae"][0] <= 0.408
