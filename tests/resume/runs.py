"""Runs of the toy task, broken off and gone on with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from apps.core.cli.resolve import resolve, to_yaml
from apps.core.run.fit import fit
from apps.core.task import VerbOptions
from tests.toy_task import TASK, ToyConfig


class PowerCutError(Exception):
    """Ends a run as abruptly as an exception can."""


def toy(folder: Path, **changes: Any) -> ToyConfig:
    """A configuration of the toy task: ``toy(path, data__num_workers=2)``."""
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return resolve(ToyConfig, [], {"run.dir": str(folder), "run.pictures": 0, "run.report": False, **overrides})


def run(folder: Path, *, resume: bool = False, kill: str = "", **changes: Any) -> int:
    """Fit the toy task; ``kill`` is the value of TOY_KILL."""
    config = toy(folder, **changes)
    options = VerbOptions(resume="last" if resume else "", config_text=to_yaml(config), argv=("fit",))
    before = os.environ.pop("TOY_KILL", None)
    try:
        if kill:
            os.environ["TOY_KILL"] = kill
        return fit(TASK, config, options)
    finally:
        os.environ.pop("TOY_KILL", None)
        if before is not None:
            os.environ["TOY_KILL"] = before


def cut(folder: Path, epoch: int, batch: int, monkeypatch: Any, **changes: Any) -> None:
    """Fit until the loss of a batch, then end as if the power had gone."""

    def power_cut(at_epoch: int, at_batch: int) -> None:
        if (at_epoch, at_batch) == (epoch, batch):
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr("tests.toy_task._kill_at", power_cut)
        try:
            run(folder, **changes)
        except PowerCutError:
            return
    raise AssertionError(f"batch {batch} of epoch {epoch} was never reached")


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, optimiser, counters, rows and results, bit for bit."""
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (one, other))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "epoch"):
            assert_same(left[part], right[part], f"{name}: {part}")
        for part in ("current_model_state", "averaging_state"):
            assert_same(left.get(part), right.get(part), f"{name}: {part}")
        for part in ("place", "means", "metrics", "step"):
            assert_same(left["graftwork"][part], right["graftwork"][part], f"{name}: {part}")
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    assert (one / "results.json").read_text() == (other / "results.json").read_text()


def assert_same(left: Any, right: Any, where: str) -> None:
    """Equal trees of tensors and plain values."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert left == right, where
