"""Two processes on the CPU, started from the command line as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
TWO = ["--data.samples=51", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


def toy(*words: str) -> subprocess.CompletedProcess[str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("GRAFTWORK", "LOCAL_", "NODE_", "WORLD", "MASTER"))
    }
    command = [sys.executable, "-m", "tests.toy_task", *words]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=180, check=False)


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())


def test_two_processes_score_as_one(tmp_path):
    trained = toy("fit", f"--run.root={tmp_path}", *TWO, "--trainer.max_epochs=2")
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "toy" / "lines_net").iterdir()  # one folder, shared by both
    assert trained.stdout.count("metric") == 1
    alone = toy("test", f"--weights={folder}", f"--run.dir={tmp_path / 'alone'}", "--data.eval_batch_size=7")
    assert alone.returncode == 0, alone.stderr
    for two, one in zip(results(folder), results(tmp_path / "alone"), strict=True):
        assert two["value"] == pytest.approx(one["value"], rel=1e-9)
        assert two["baseline"] == pytest.approx(one["baseline"], rel=1e-9)
        assert two["samples"] == one["samples"] == 21
    media = lambda path: sorted(p.name for p in (path / "media").glob("*.png"))  # noqa: E731
    assert media(folder) == media(tmp_path / "alone")


@pytest.mark.slow
def test_two_processes_go_on_where_they_stopped(tmp_path):
    whole = toy("fit", f"--run.dir={tmp_path / 'whole'}", *TWO)
    assert whole.returncode == 0, whole.stderr
    environment = os.environ | {"TOY_KILL": "SIGTERM:1:3"}
    command = [sys.executable, "-m", "tests.toy_task", "fit", f"--run.dir={tmp_path / 'parts'}", *TWO]
    stopped = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert stopped.returncode == 143, stopped.stderr
    assert toy("fit", f"--run.dir={tmp_path / 'parts'}", "--resume", "last", *TWO).returncode == 0
    assert results(tmp_path / "whole") == results(tmp_path / "parts")
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert texts[0] == texts[1]
