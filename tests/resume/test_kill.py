"""kill -9 at random moments, with worker processes, then ``--resume last``."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.resume.runs import assert_same_run, run

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"data.num_workers": 2, "data.step_s": 0.004, "trainer.max_epochs": 4, "checkpoint.every_n_steps": 2}


@pytest.fixture(scope="module")
def server():
    """Starts processes that have everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.resume.runs", "tests.toy_task"])
    return context


def _run(folder: str, resume: bool) -> None:
    multiprocessing.set_start_method("fork", force=True)  # loader processes notice that this one is gone
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    run(Path(folder), resume=resume, **SLOW)


def _reference(folder: Path) -> Path:
    assert run(folder, **SLOW | {"data.num_workers": 0, "data.step_s": 0.0}) == 0
    return folder


def _wait_for(path: Path, process) -> None:
    while not path.exists() and process.is_alive():
        time.sleep(0.005)


def test_three_kills(server, tmp_path):
    folder, moments = tmp_path / "killed", random.Random(3)
    killed = 0
    for attempt in range(3):
        process = server.Process(target=_run, args=(str(folder), attempt > 0))
        process.start()
        _wait_for(folder / "checkpoints" / "last.ckpt", process)
        time.sleep(moments.uniform(0.05, 0.4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed and (folder / "checkpoints" / "last.ckpt").exists()
    assert run(folder, resume=True, **SLOW) == 0
    assert not list(folder.rglob("*.tmp"))
    assert_same_run(_reference(tmp_path / "unbroken"), folder)


@pytest.mark.slow
def test_ten_kills_from_the_command_line(tmp_path):
    folder, moments = tmp_path / "killed", random.Random(10)
    words = [f"--{key}={value}" for key, value in SLOW.items()]
    command = [sys.executable, "-m", "tests.toy_task", "fit", f"--run.dir={folder}", "--run.report=false", *words]
    killed = 0
    while killed < 10:
        resume = ["--resume", "last"] if folder.exists() else []
        process = subprocess.Popen([*command, *resume], cwd=ROOT, stdout=subprocess.DEVNULL)
        before = _stamp(folder)
        while process.poll() is None and _stamp(folder) == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.1))
        assert process.poll() is None, "the run was over before the tenth kill"
        process.kill()
        process.wait()
        killed += 1
    subprocess.run([*command, "--resume", "last"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    reference = tmp_path / "unbroken"
    subprocess.run(
        [*command[:4], f"--run.dir={reference}", *command[5:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    assert_same_run(reference, folder)


def _stamp(folder: Path) -> int:
    path = folder / "checkpoints" / "last.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0
