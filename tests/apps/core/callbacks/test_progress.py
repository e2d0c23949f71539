from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from apps.core.callbacks.progress import HEARTBEAT_S, Pace, RunProgress, metrics_text


class Regressor(pl.LightningModule):
    """Fits a line, logging names as the project does."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fail_at = fail_at

    def training_step(self, batch, index):
        if self.global_step == self.fail_at:
            raise RuntimeError("broken")
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val/mse", 0.25)
        self.log("val/baseline_mse", 0.5)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def run(progress: RunProgress, tmp_path, module: Regressor | None = None, **options) -> pl.Trainer:
    data = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[progress], **{**quiet, "max_epochs": 3, **options})
    trainer.fit(module or Regressor(), data, data)
    return trainer


def written(terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=40), out


def test_pace_foretells_steps_and_validations():
    pace = Pace(steps=10, train_s=5.0, validations=2, validation_s=6.0)
    assert pace.left_s(steps=20, validations=1) == 20 * 0.5 + 3.0
    assert math.isnan(Pace().left_s(10, 1)) and math.isnan(pace.left_s(math.inf, 0))
    assert Pace(steps=1, train_s=2.0).left_s(3, 5) == 6.0


def test_metrics_stand_beside_their_baseline():
    metrics = {"train/loss": 0.5, "val/mse": torch.tensor(0.25), "val/baseline_mse": 0.5, "val/mae": 0.1, "lr": 1.0}
    assert metrics_text(metrics, validated=True) == (
        "batch loss 0.5000  val/mse 0.2500 (baseline 0.5000)  val/mae 0.1000"
    )
    assert metrics_text(metrics, validated=False) == "batch loss 0.5000"
    assert metrics_text({}, validated=True) == ""


def test_a_log_gets_one_uncut_line_per_epoch(tmp_path):
    console, out = written()
    run(RunProgress(console), tmp_path)
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("val/mse 0.2500 (baseline 0.5000)" in line and "elapsed" in line for line in lines)
    assert "left" in lines[0] and "step 4" in lines[0] and "\x1b" not in out.getvalue()


def test_an_epoch_without_validation_shows_no_stale_metrics(tmp_path):
    console, out = written()
    run(RunProgress(console), tmp_path, check_val_every_n_epoch=2)
    first, second, third = out.getvalue().splitlines()
    assert "val/mse" not in first and "val/mse" in second and "val/mse" not in third


def test_long_epochs_give_a_sign_of_life_but_no_flood():
    now = [0.0]
    console, out = written()
    progress = RunProgress(console, clock=lambda: now[0])
    trainer = SimpleNamespace(
        global_step=0, current_epoch=0, max_epochs=2, estimated_stepping_batches=1000, num_training_batches=500,
        accumulate_grad_batches=1, check_val_every_n_epoch=1, num_val_batches=[5], callback_metrics={"train/loss": 1.0},
    )  # fmt: skip
    progress.on_train_start(trainer)
    for step in range(1, 201):
        now[0] += 1.0
        trainer.global_step = step
        progress.on_train_batch_end(trainer)
    lines = out.getvalue().splitlines()
    assert len(lines) == 200 // HEARTBEAT_S
    assert lines[0] == "epoch 1/2  step 60  batch loss 1.000  elapsed 1 min 00 s  left 15 min 40 s"


def test_a_terminal_gets_a_bar_and_keeps_the_epoch_lines(tmp_path):
    console, out = written(terminal=True)
    trainer = run(RunProgress(console), tmp_path)
    assert "epoch 3/3" in out.getvalue() and "12/12" in out.getvalue()
    trainer.test(Regressor(), DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2), verbose=False)
    assert "4/4" in out.getvalue().split("12/12")[-1]
    trainer.validate(Regressor(), DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=4), verbose=False)
    assert "2/2" in out.getvalue()


def test_the_bar_is_closed_when_training_fails(tmp_path):
    console, _ = written(terminal=True)
    progress = RunProgress(console)
    with pytest.raises(RuntimeError, match="broken"):
        run(progress, tmp_path, Regressor(fail_at=2))
    assert progress._bar is None


def test_accumulated_and_endless_runs_have_the_right_total(tmp_path):
    console, out = written()
    run(RunProgress(console), tmp_path, accumulate_grad_batches=2, max_epochs=2)
    assert "step 4" in out.getvalue().splitlines()[-1]
    console, out = written()
    run(RunProgress(console), tmp_path, max_epochs=-1, max_steps=6)
    assert out.getvalue().splitlines()[0].startswith("epoch 1  step 4")


def test_other_processes_show_nothing(tmp_path):
    console, out = written()
    progress = RunProgress(console)
    progress.disable()
    run(progress, tmp_path)
    assert out.getvalue() == ""
