"""A forecasting run that is killed goes on bit for bit; two processes score as one does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    sys.executable, "-m", "apps.forecasting", "fit", "--config", "configs/forecasting/tiny.yaml",
    "--trainer.max_epochs", "6", "--data.num_workers", "2", "--data.batch_size", "8", "--checkpoint.every_n_steps", "7",
    "--run.report", "false", "--run.pictures", "0", "--trainer.threads", "1",
]  # fmt: skip
STEPS = 6 * 44


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [*WORDS, "--run.dir", str(folder), *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def steps_written(folder: Path) -> int:
    last = folder / "checkpoints/last.ckpt"
    return int(torch.load(last, weights_only=True)["global_step"]) if last.exists() else 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def kill_at(folder: Path, step: int, *words: str) -> bool:
    """Run until the given step is on disk, then kill -9 the run with its workers; whether it still ran."""
    process = start(folder, *words)
    deadline = time.monotonic() + 120
    while process.poll() is None and steps_written(folder) < step and time.monotonic() < deadline:
        time.sleep(0.02)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert alive or process.returncode == 0, errors.decode()[-2000:]
    return alive


def check_kills(tmp_path: Path, kills: int, seed: int) -> None:
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=240) == 0
    chance = random.Random(seed)
    killed = 0
    for step in sorted(chance.randrange(0, STEPS - 20) for _ in range(kills)):
        exists = (tmp_path / "killed").exists()
        killed += kill_at(tmp_path / "killed", step, *(["--resume", "last"] if exists else []))
    last = start(tmp_path / "killed", "--resume", "last")
    assert last.wait(timeout=240) == 0
    assert killed == kills
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")]
    assert results[0] == results[1]


def test_killed_runs_end_bit_for_bit_the_same(tmp_path):
    check_kills(tmp_path, kills=2, seed=1)


@pytest.mark.slow
def test_ten_kills_at_random_steps(tmp_path):
    check_kills(tmp_path, kills=10, seed=2)


def test_two_processes_score_as_one(tmp_path):
    trained = tmp_path / "trained"
    run = start(trained, "--data.num_workers", "0", "--trainer.max_steps", "30")
    assert run.wait(timeout=240) == 0, run.stderr.read().decode()[-2000:]
    scores = []
    for devices in ("1", "2"):
        folder = tmp_path / f"devices{devices}"
        words = [
            sys.executable, "-m", "apps.forecasting", "test", "--weights", str(trained), "--run.dir", str(folder),
            "--trainer.devices", devices, "--trainer.strategy", "auto" if devices == "1" else "ddp",
            "--trainer.accelerator", "cpu", "--log.wandb", "off", "--data.eval_batch_size", "10",
        ]  # fmt: skip
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = json.loads((folder / "results.json").read_text())
        scores.append({row["metric"]: (row["value"], row["baseline"], row["samples"]) for row in rows})
    assert scores[0].keys() == scores[1].keys()
    for name, (value, baseline, samples) in scores[0].items():
        assert scores[1][name][0] == pytest.approx(value, rel=1e-6), name
        assert scores[1][name][1] == pytest.approx(baseline, rel=1e-6), name
        assert scores[1][name][2] == samples, name
