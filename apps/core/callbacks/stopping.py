"""Ends of a run other than its last epoch: no improvement for a while, or enough optimiser steps."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

log = logging.getLogger(__name__)


class Patience(EarlyStopping):
    """Stops after ``patience`` validations in a row that were strictly worse than the best.

    Differs from Lightning's: an equal value counts as no worse; a resumed run that had lost its patience stops again;
    the patience of the configuration wins over that of the checkpoint; epochs without a validation do not count.

    Args:
        monitor: Logged name.
        mode: ``min`` or ``max``.
        patience: Validations.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience)
        self.sign = -1.0 if mode == "max" else 1.0
        self.best_value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Best value and validations since."""
        return {"best": self.best_value, "waited": self.wait_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best_value, self.wait_count = state_dict["best"], state_dict["waited"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a resumed run that had stopped before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: the epoch's end counts."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count, and stop where patience has run out."""
        value = pl_module.monitored.get(self.monitor)  # type: ignore[operator,union-attr]
        if value is None:
            return
        if math.isnan(value) or (self.best_value is not None and self.sign * value > self.sign * self.best_value):
            self.wait_count += 1
        else:
            self.best_value, self.wait_count = value, 0
        if self.wait_count >= self.patience:
            log.info("stopped early: %s was worse than %s %d times", self.monitor, self.best_value, self.wait_count)
            trainer.should_stop = True


class StepLimit(pl.Callback):
    """Stops after a number of optimiser steps, with a last validation.

    Lightning's ``max_steps`` would leave that out, and would make every restart look like one inside an epoch.

    Args:
        steps: Optimiser steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a resumed run that has all its steps."""
        self._check(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last step."""
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
