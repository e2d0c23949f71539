"""Listing, help and wrong options answer at once: nothing heavy is imported."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.light_start import start

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 0),
        (("--help",), 0),
        (("fit", "--help"), 0),
        (("fit", "--print_config"), 0),
        (("fit", "--model.nmae", "patchtst"), 2),
        (("fti",), 2),
        (("fit", "--config", "nowhere.yaml"), 2),
    ],
)
def test_forecasting_answers_without_heavy_imports(words, code):
    out, err = start("apps.forecasting", *words)
    assert out.splitlines()[-1] == f"CODE {code} HEAVY []", out + err
    assert "Traceback" not in err


def test_apps_lists_tasks_without_heavy_imports():
    out, _ = start("apps")
    assert "forecasting" in out
    assert out.splitlines()[-1] == "CODE 0 HEAVY []"


def test_help_names_verbs_models_mixers_and_datasets():
    out, _ = start("apps.forecasting", "--help")
    for word in ("fit", "doctor", "itransformer", "patchtst", "flow", "selective_scan", "sample", "ett"):
        assert word in out


def test_verb_help_follows_the_chosen_component():
    out, _ = start("apps.forecasting", "fit", "--model.name", "patchtst", "--help")
    assert "--model.patch_length" in out or "--model.patch" in out
    assert "--data.horizon" in out


def test_completion_script_is_valid_bash_and_knows_nested_options(tmp_path):
    out, _ = start("apps", "--print_completion", "bash")
    script = tmp_path / "completion.sh"
    script.write_text(out.rsplit("CODE", 1)[0])
    assert subprocess.run(["bash", "-n", str(script)], timeout=20).returncode == 0
    for word in ("forecasting", "fit", "--data.horizon", "--model.name"):
        assert word in out
