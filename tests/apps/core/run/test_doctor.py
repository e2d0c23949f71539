from __future__ import annotations

import dataclasses

import pytest

from apps.core.run.doctor import cost_findings, disk_findings, doctor, estimate_rows, extra_rows, finding_lines
from apps.core.run.estimate import Estimate, estimate, limited, timed_batches
from apps.core.task import VerbOptions
from datamodules.findings import Finding
from graftwork.errors import DataError
from tests.apps.core.inference.toy_model import TASK, LoneToy
from tests.toy_task import LinesConfig, LinesData, ToyConfig

COST = Estimate(
    parameters=100, load_s=0.5, step_s=2.0, eval_s=1.0, steps=10, evals=4, workers=0, state_bytes=800, step_bytes=200
)


def test_epoch_time_by_hand():
    assert COST.epoch_s == 10 * (2.0 + 0.5) + 4 * (1.0 + 0.5)
    assert dataclasses.replace(COST, workers=1).epoch_s == 10 * 2.0 + 4 * 1.0  # loading hides behind the steps
    assert dataclasses.replace(COST, workers=2, load_s=8.0).epoch_s == (10 + 4) * 4.0
    assert COST.memory_bytes == 1000


def test_a_fit_that_waits_for_data_is_warned_of():
    assert [finding.level for finding in cost_findings(COST, 10_000)] == ["ok"]
    slow = dataclasses.replace(COST, load_s=3.0)
    _, warning = cost_findings(slow, 10_000)
    assert warning.level == "warning" and "--data.num_workers 2" in warning.mend


def test_too_little_memory_is_an_error():
    (finding,) = cost_findings(COST, 1100)
    assert finding.level == "error" and "--data.batch_size" in finding.mend
    assert cost_findings(COST, 1112)[0].level == "ok" and cost_findings(COST, 0)[0].level == "ok"


def test_limits_are_those_of_lightning():
    assert [limited(10, limit) for limit in (1.0, 0.25, 3, 20, 0)] == [10, 2, 3, 10, 0]


def test_loading_is_timed_per_batch():
    data = LinesData(LinesConfig(step_s=0.005, num_workers=2), seed=0)
    data.setup()
    batches, seconds = timed_batches(data, 3)
    assert len(batches) == 3 and 4 * 0.005 <= seconds < 0.2 and data.num_workers == 2


def test_estimate_counts_the_batches_of_the_data():
    config = ToyConfig(data=LinesConfig(samples=50, batch_size=4, eval_samples=21, eval_batch_size=5))
    config.trainer.limit_train_batches = 6
    data = config.data.build(seed=0)
    data.setup()
    cost = estimate(LoneToy(config, data.info), data, budget_s=0.01)
    assert (cost.steps, cost.evals) == (6, 5)
    assert cost.step_s > 0 and cost.step_bytes > 0 and cost.parameters == 57
    assert cost.state_bytes == 4 * 57 * 4


def test_sound_data_gives_zero_and_an_estimate(tmp_path, capsys):
    config = ToyConfig()
    config.run.root = str(tmp_path)
    assert doctor(TASK, config, VerbOptions()) == 0
    out = capsys.readouterr().out
    for part in ("attention on cpu", "sdpa", "graftwork[natten]", "one epoch, about", "3 epochs, about", "train: 50"):
        assert part in out


@pytest.mark.parametrize("data", [LinesConfig(broken=0), LinesConfig(samples=0)])
def test_broken_data_gives_one(data, tmp_path, capsys):
    config = ToyConfig(data=data)
    config.run.root = str(tmp_path)
    assert doctor(TASK, config, VerbOptions()) == 1
    out = capsys.readouterr().out
    assert "\nerror" in out and "one epoch" not in out


def test_what_was_found_before_an_error_is_kept(tmp_path, monkeypatch, capsys):
    def broken(self, stage=None):
        raise DataError("has no rows", "late.csv", "Add some")

    monkeypatch.setattr(LinesData, "inspect", lambda self: [Finding("warning", "two files are copies")])
    monkeypatch.setattr(LinesData, "setup", broken)
    config = ToyConfig()
    config.run.root = str(tmp_path)
    assert doctor(TASK, config, VerbOptions()) == 1
    out = capsys.readouterr().out
    assert "warning  two files are copies" in out and "error    late.csv: has no rows\n" in out


def test_an_absent_device_is_an_error_among_the_others(tmp_path, capsys):
    config = ToyConfig()
    config.run.root, config.trainer.accelerator = str(tmp_path), "tpuu"
    assert doctor(TASK, config, VerbOptions()) == 1
    assert "there is no device 'tpuu'" in capsys.readouterr().out


def test_errors_come_first_and_missing_extras_say_how_to_get_them(monkeypatch):
    found = [Finding("ok", "fine"), Finding("error", "bad\nworse", "mend it"), Finding("warning", "hm")]
    indent = " " * 9
    assert finding_lines(found) == [
        "error    bad", f"{indent}worse", f"{indent}mend it", "warning  hm", "ok       fine",
    ]  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert all("pip install 'graftwork[" in row[1] for row in extra_rows()[1:])


def test_a_full_disk_is_warned_of(tmp_path, monkeypatch):
    assert disk_findings(tmp_path / "not" / "yet")[0].level == "ok"
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert disk_findings(tmp_path)[0].level == "warning"


def test_estimate_without_an_end_names_an_epoch_only():
    assert not any("epochs" in row[0] for row in estimate_rows(COST, -1))
