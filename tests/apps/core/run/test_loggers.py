"""The metrics file, and W&B that stays in its place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.core.config import LogConfig
from apps.core.run.loggers import MetricsFile, wandb_mode
from graftwork.errors import UserError

ROOT = Path(__file__).resolve().parents[4]


def test_columns_grow_and_rows_are_on_disk_at_once(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 0.5, "epoch": 0}, 3)
    assert log.path.read_text() == "step,epoch,train/loss\n3,0,0.5\n"
    log.log_metrics({"val/mse": 1.0, "epoch": 0}, 4)
    assert log.path.read_text() == "step,epoch,train/loss,val/mse\n3,0,0.5,\n4,0,,1.0\n"


def test_rewinding_forgets_later_rows_and_a_row_cut_short(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,a\n1,0,0.5\n2,0,0.25\n3,0,0.125\n4,0,0.0")
    log = MetricsFile(path)
    log.rewind(3)
    log.log_metrics({"a": 9.0, "b": 1.0, "epoch": 1}, 3)
    assert path.read_text() == "step,epoch,a,b\n1,0,0.5,\n2,0,0.25,\n3,1,9.0,1.0\n"


def test_numbers_are_kept_exactly(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"a": 0.1 + 0.2}, 0)
    assert float(log.path.read_text().split()[-1].split(",")[-1]) == 0.1 + 0.2


def test_a_full_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"a": 1.0}, 0)

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"No space left.*--resume last"):
        log.log_metrics({"a": 2.0}, 1)


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "off"),
    ],
)
def test_auto_sends_only_for_users_who_are_logged_in(environment, mode, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(LogConfig()) == mode
    assert wandb_mode(LogConfig(wandb="off")) == "off"


def test_a_netrc_entry_is_a_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(LogConfig()) == "online"


@pytest.mark.slow
def test_wandb_offline_is_silent_and_stays_in_the_run_folder(tmp_path):
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    for name in ("WANDB_API_KEY", "WANDB_MODE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "tests.toy_task", "fit", f"--run.dir={run}", "--log.wandb=auto"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "wandb" not in (done.stdout + done.stderr).replace(str(tmp_path), "").lower()
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "mpl") == ["home", "run"]
    assert not [path for path in home.rglob("*") if path.is_file()]
