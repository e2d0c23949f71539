"""Rows of training losses and learning rate, written before the checkpoint that would otherwise forget them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from apps.core.run.module import GraftModule


class TrainingLog(pl.Callback):
    """Logs ``train/<name>_step`` and ``lr`` every so many optimiser steps, ``train/<name>`` as means of each epoch.

    Lightning writes the row of a step after the hooks in which checkpoints are written, and forgets the sums of an
    epoch when it restarts inside of it; here a resumed run leaves the same rows as an unbroken one.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin new means; not called where an epoch is gone on with."""
        module = _ours(pl_module)
        module.means.reset()
        module.monitored.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch; log where a step was taken and its number says so."""
        module, done = _ours(pl_module), batch_idx + 1
        module.means.add(module.parts)
        stepped = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        if stepped and trainer.global_step % max(1, module.config.trainer.log_every_n_steps) == 0:
            row = {f"train/{name}_step": float(value) for name, value in module.parts.items()}
            self._write(trainer, row | {"lr": module.learning_rate(trainer.global_step - 1)})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means; Lightning calls the callbacks that write checkpoints after this one."""
        module = _ours(pl_module)
        totals = module.means.totals(module.summed)
        means = {f"train/{name}": total / count for name, (total, count) in totals.items()}
        module.monitored.update(means)
        self._write(trainer, means)

    def _write(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({**row, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)


def _ours(module: pl.LightningModule) -> GraftModule:
    if not isinstance(module, GraftModule):
        raise TypeError(f"expected a GraftModule, got {type(module).__name__}")
    return module
