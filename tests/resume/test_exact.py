"""A run that was broken off and gone on with is the run that was never broken off."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

from tests.resume.runs import assert_same, assert_same_run, cut, run
from tests.toy_task import ToyModule

VARIANTS = {
    "plain": {},
    "one worker": {"data.num_workers": 1},
    "two workers": {"data.num_workers": 2},
    "accumulation": {"trainer.accumulate_grad_batches": 3, "checkpoint.every_n_steps": 2},
    "moving average": {"trainer.ema_decay": 0.9},
    "early stopping": {"trainer.patience": 1, "optim.lr": 0.3, "trainer.max_epochs": 6},
    "halving": {"schedule.name": "halving", "schedule.warmup_steps": 0},
    "step": {"schedule.name": "step", "schedule.milestones": [1, 2]},
    "part of the data": {"trainer.limit_train_batches": 9},
    "rare validation": {"trainer.check_val_every_n_epoch": 2},
    "max_steps": {"trainer.max_steps": 31},
    "max_steps alone": {"trainer.max_steps": 31, "trainer.max_epochs": -1},
    "clipping": {"optim.clip_norm": 0.5, "optim.name": "radam"},
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Unbroken runs by variant; workers change nothing, so those variants share the plain run."""
    made = {}

    def make(variant: str):
        key = "plain" if "worker" in variant else variant
        if key not in made:
            made[key] = tmp_path_factory.mktemp("unbroken") / "run"
            assert run(made[key], **VARIANTS[key]) == 0
        return made[key]

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_inside_an_epoch(variant, unbroken, tmp_path, monkeypatch):
    cut(tmp_path / "run", 1, 7, monkeypatch, **VARIANTS[variant])
    assert run(tmp_path / "run", resume=True, **VARIANTS[variant]) == 0
    assert_same_run(unbroken(variant), tmp_path / "run")


@pytest.mark.parametrize("place", [(0, 4), (0, 12), (1, 0), (1, 1), (2, 12)], ids=str)
def test_resumed_anywhere(place, unbroken, tmp_path, monkeypatch):
    cut(tmp_path / "run", *place, monkeypatch)
    assert run(tmp_path / "run", resume=True) == 0
    assert_same_run(unbroken("plain"), tmp_path / "run")


def test_broken_off_again_and_again(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    cut(folder, 0, 8, monkeypatch)
    for place in ((0, 12), (1, 3), (1, 4), (2, 0), (2, 9)):
        cut(folder, *place, monkeypatch, resume=True)
    assert run(folder, resume=True, **{"data.num_workers": 2}) == 0
    assert_same_run(unbroken("plain"), folder)


@pytest.mark.parametrize("variant", ["plain", "moving average", "accumulation"])
@pytest.mark.parametrize("batch", [3, 12], ids=["inside an epoch", "at its last batch"])
def test_sigterm_writes_a_checkpoint_to_go_on_from(variant, batch, unbroken, tmp_path):
    folder = tmp_path / "run"
    changes = VARIANTS[variant] | {"checkpoint.every_n_steps": 0}
    assert run(folder, kill=f"SIGTERM:1:{batch}", **changes) == 143
    assert run(folder, resume=True, **changes) == 0
    assert_same_run(unbroken(variant), folder)


def test_ctrl_c_writes_a_checkpoint_and_exits_130(unbroken, tmp_path):
    assert run(tmp_path / "run", kill="SIGINT:0:5") == 130
    assert run(tmp_path / "run", resume=True) == 0
    assert_same_run(unbroken("plain"), tmp_path / "run")


@pytest.mark.parametrize("variant", ["plain", "moving average"])
def test_sigterm_inside_a_validation(variant, unbroken, tmp_path, monkeypatch):
    score, folder = ToyModule.predict_batch, tmp_path / "run"

    def stop_in_second_validation(self, batch):
        if self.trainer.current_epoch == 1 and 10 in batch["index"].tolist():
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ToyModule, "predict_batch", stop_in_second_validation)
        assert run(folder, **VARIANTS[variant]) == 143
    assert run(folder, resume=True, **VARIANTS[variant]) == 0
    assert_same_run(unbroken(variant), folder)


def test_a_finished_run_goes_on_when_it_may_take_more_epochs(tmp_path):
    constant = {"schedule.name": "constant"}  # the cosine of a shorter run is another curve
    assert run(tmp_path / "long", **constant, **{"trainer.max_epochs": 4}) == 0
    assert run(tmp_path / "short", **constant, **{"trainer.max_epochs": 2}) == 0
    assert run(tmp_path / "short", resume=True, **constant, **{"trainer.max_epochs": 4}) == 0
    assert_same_run(tmp_path / "long", tmp_path / "short")


def test_more_steps_after_max_steps_inside_an_epoch(tmp_path):

    constant = {"schedule.name": "constant"}
    assert run(tmp_path / "long", **constant) == 0
    assert run(tmp_path / "short", **constant, **{"trainer.max_steps": 18}) == 0
    assert run(tmp_path / "short", resume=True, **constant) == 0
    weights = [torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True) for n in ("long", "short")]
    assert_same(weights[0]["state_dict"], weights[1]["state_dict"], "weights")


def test_resuming_a_finished_run_changes_nothing(unbroken, tmp_path):
    shutil.copytree(unbroken("plain"), tmp_path / "run")
    assert run(tmp_path / "run", resume=True) == 0
    assert_same_run(unbroken("plain"), tmp_path / "run")


def test_sigterm_at_the_last_of_max_steps_still_validates(tmp_path):
    changes = {"trainer.max_steps": 17, "checkpoint.every_n_steps": 0}
    assert run(tmp_path / "unbroken", **changes) == 0
    assert run(tmp_path / "run", kill="SIGTERM:1:3", **changes) == 143
    assert run(tmp_path / "run", resume=True, **changes) == 0
    assert (tmp_path / "unbroken/results.json").read_text() == (tmp_path / "run/results.json").read_text()
    assert (tmp_path / "unbroken/metrics.csv").read_text().count("\n") == 14
    for name in ("best.ckpt", "last.ckpt"):
        states = [torch.load(tmp_path / run / "checkpoints" / name, weights_only=True) for run in ("unbroken", "run")]
        assert_same(states[0]["state_dict"], states[1]["state_dict"], name)
