"""Places that a command line names: runs to go on with, and files that cannot be written."""

from __future__ import annotations

import errno
import os
import re

import pytest
import yaml

from apps.core.cli import main as entry
from apps.core.cli.places import explained
from apps.core.cli.words import split
from tests.toy_task import TASK


def failing(code: int, filename: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), filename) if filename else OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("line", "error", "wanted"),
    [
        ("predict --output a/b.csv", failing(errno.EISDIR, "a/b.csv"), "a/b.csv: Is a directory. Check --output"),
        ("predict --output a/b.csv", failing(errno.ENOENT, "a/.b.csv.tmp"), "a/.b.csv.tmp: .* Check --output"),
        ("export --output a/b.onnx", failing(errno.ENOTDIR, "a"), "a: Not a directory. Check --output"),
        ("benchmark --json x.json", failing(errno.ENOSPC), "x.json: No space left .* another place by --json"),
        ("fit --run.dir r", failing(errno.ENOSPC), "r: No space left on device. Free .* by --run.dir"),
        ("fit", failing(errno.ENOSPC), "the folder of runs: No space .* by --run.dir or --run.root"),
        ("fit --run.dir r", failing(errno.EEXIST, "r/media"), "r/media: File exists. Check --run.dir"),
        ("fit --data.root d", failing(errno.EACCES, "d/x.csv"), "d/x.csv: Permission denied. .* by --data.root"),
        (
            "fit --run.name a",
            failing(errno.ENOENT, "gcc"),
            "gcc: No such file or directory. --debug shows what needs it",
        ),
        ("fit --config c.yaml", failing(errno.EACCES, "c.yaml"), "c.yaml: Permission denied. .* by --config"),
    ],
)
def test_errors_name_the_place_and_its_option(line, error, wanted):
    verb, *words = line.split()
    assert re.fullmatch(wanted, explained(error, verb, split(words)))


def test_errors_that_no_user_caused_stay_errors():
    assert explained(failing(errno.ENOENT), "fit", split([])) == ""
    assert explained(failing(errno.EBADF, "x"), "fit", split([])) == ""


@pytest.fixture
def resolved(monkeypatch):
    """Runs a command line up to its verb, and gives the configuration."""
    seen = []

    def remember(task, verb, config, options):
        seen.append(config)
        return 0

    monkeypatch.setattr("apps.core.run.verbs.run_verb", remember)

    def run(*words):
        assert entry.main(TASK, words) == 0
        return seen[-1]

    return run


@pytest.fixture
def earlier(tmp_path):
    """An earlier run with values other than the defaults."""
    tree = {"seed": 7, "model": {"name": "net", "width": 5}, "run": {"dir": "elsewhere", "pictures": 1}}
    tree["trainer"] = {"accelerator": "gpu", "max_epochs": 2}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "run"


def test_a_named_run_brings_its_configuration(earlier, resolved):
    run = ("--run.dir", str(earlier))
    for words in (("test", *run), ("validate", *run)):
        config = resolved(*words)
        assert (config.seed, config.model.width, config.trainer.accelerator) == (7, 5, "cpu")
    last = earlier / "checkpoints" / "last.ckpt"
    for words in (("fit", *run, "--resume", "last"), ("fit", "--resume", str(earlier)), ("fit", "--resume", str(last))):
        config = resolved(*words, "--trainer.max_epochs", "4")
        assert (config.seed, config.model.width, config.trainer.accelerator) == (7, 5, "gpu")
        assert config.trainer.max_epochs == 4 and config.run.dir == (str(earlier) if "last" in words else "")


def test_a_configuration_that_is_given_stands_alone(earlier, resolved, tmp_path):
    (tmp_path / "own.yaml").write_text("seed: 9\n")
    config = resolved("fit", "--run.dir", str(earlier), "--resume", "last", "--config", str(tmp_path / "own.yaml"))
    assert (config.seed, config.model.width) == (9, 8)
    assert resolved("fit", "--run.dir", str(earlier)).seed == 2023  # a new run takes nothing from an old one
