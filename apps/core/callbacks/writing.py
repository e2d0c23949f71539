"""Writing ``last`` and ``best``: when, and exactly which place in the run they stand for."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from apps.core.callbacks.finite import first_broken_weight
from apps.core.callbacks.interruption import Interrupted, Interruption
from apps.core.checkpoints.place import Place, counters_at
from apps.core.checkpoints.read import ENTRY
from apps.core.config import CheckpointConfig
from apps.core.run.folder import RunFolder
from graftwork.errors import ConfigError, UserError


class CheckpointWriter(Checkpoint):
    """Writes ``last.ckpt`` every so often and at each epoch's end, ``best.ckpt`` where the monitored value improves.

    Only places between optimiser steps are written: gradients that are still being accumulated are no part of a
    checkpoint. An equal value does not replace the best. Lightning calls this callback after all others.

    Args:
        folder: The run's folder.
        config: When to write.
        monitor: Logged name that picks the best.
        mode: ``min`` or ``max``.
        interruption: Asked at every place whether to stop there.
    """

    def __init__(
        self, folder: RunFolder, config: CheckpointConfig, monitor: str, mode: str, interruption: Interruption
    ) -> None:
        self.folder, self.config, self.monitor, self.interruption = folder, config, monitor, interruption
        self.sign = -1.0 if mode == "max" else 1.0
        self.best: float | None = None
        self._place: Place | None = None
        self._written_at = time.monotonic()
        self._in_validation = False

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best value of before."""
        self.best = state_dict["best"]

    # -- when -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._written_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last`` between two batches where it is time, or stop there where that was asked for."""
        done, total = batch_idx + 1, trainer.num_training_batches
        if done % trainer.accumulate_grad_batches and done != total:
            return
        signum = self.interruption.agreed(trainer)
        place = Place(trainer.current_epoch, done, validate=done == total and _validation_due(trainer))
        # where the run ends here anyway, its last validation is still wanted
        if signum is not None and not trainer.should_stop and (done < total or place.validate):
            self._write_last(trainer, place)
            raise Interrupted(signum)
        if done < total and self._is_time(trainer):
            self._write_last(trainer, place)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that a validation runs."""
        self._in_validation = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that it has ended."""
        self._in_validation = False

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop inside a validation where that was asked for; several processes wait for the epoch's end instead."""
        alone = trainer.state.fn == "fit" and trainer.world_size == 1 and not trainer.should_stop
        if alone and self.interruption.requested is not None:
            raise Interrupted(self.interruption.requested)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the place before a validation that was stopped."""
        if isinstance(exception, Interrupted) and self._in_validation:
            self._write_last(trainer, Place(trainer.current_epoch, int(trainer.num_training_batches), validate=True))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``best`` where it improved, then ``last``; the best first, so that ``last`` never promises too much."""
        done, total = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.num_training_batches
        # stopped inside an epoch by max_steps: a run that may take more steps goes on there
        epoch = trainer.current_epoch
        place = Place(epoch, done) if done < total else Place(epoch + 1)
        if self._improved(pl_module):
            self._write(trainer, place, self.folder.best)
            self._same_as_best(trainer, place)
        else:
            self._write_last(trainer, place)
        signum = self.interruption.agreed(trainer)
        if signum is not None:
            raise Interrupted(signum)

    def _is_time(self, trainer: pl.Trainer) -> bool:
        steps, minutes = self.config.every_n_steps, self.config.every_minutes
        if steps > 0 and trainer.global_step % steps == 0:
            return True
        late = minutes > 0 and time.monotonic() - self._written_at >= minutes * 60
        if trainer.world_size == 1:
            return late
        return trainer.strategy.reduce_boolean_decision(late, all=False) if minutes > 0 else False

    def _improved(self, module: Any) -> bool:
        """Whether this epoch measured a better value than any before; remembers it."""
        measured: dict[str, float] = module.monitored
        if self.monitor not in measured:
            if any(name.startswith("val/") for name in measured):
                known = ", ".join(sorted(measured))
                raise ConfigError(f"nothing is logged as '{self.monitor}'", "checkpoint.monitor", f"Logged: {known}")
            return False
        value = measured[self.monitor]
        better = not math.isnan(value) and (self.best is None or self.sign * value < self.sign * self.best)
        if better:
            self.best = value
        return better

    # -- what -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rewrite Lightning's counters to the place, and keep what it forgets."""
        if self._place is None:
            return
        loops = checkpoint["loops"]
        loops["fit_loop"] = counters_at(self._place, loops["fit_loop"], trainer.global_step)
        entry = checkpoint.setdefault(ENTRY, {})
        entry["place"] = self._place.plain()
        entry["means"] = pl_module.means.totals(pl_module.summed)  # type: ignore[operator,union-attr]
        entry["skipped"] = dict(trainer.datamodule.skipped)  # type: ignore[attr-defined]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go to the place of a checkpoint: loaders, running means, and rows of the metrics file."""
        entry = checkpoint.get(ENTRY, {})
        if "place" not in entry:
            raise UserError("this checkpoint cannot be gone on from", mend="Use it with --weights to start from it")
        place = Place.from_plain(entry["place"])
        trainer.datamodule.resume_at(place.epoch, place.batch)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            pl_module.means.load(entry["means"])  # type: ignore[operator,union-attr]
        # the larger number of both: files left out of evaluation were counted in setup again
        trainer.datamodule.skipped |= Counter(entry["skipped"])  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(int(checkpoint["global_step"]))

    def _write_last(self, trainer: pl.Trainer, place: Place) -> None:
        self._write(trainer, place, self.folder.last)

    def _write(self, trainer: pl.Trainer, place: Place, path: Path) -> None:
        broken = first_broken_weight(trainer.lightning_module)
        if broken is not None:
            raise UserError(
                f"the weights of '{broken}' are not finite after step {trainer.global_step}",
                mend="The checkpoint of before is intact; try a lower --optim.lr or --optim.clip_norm 1",
            )
        self._place = place
        try:
            trainer.save_checkpoint(path)
        finally:
            self._place = None
        self._written_at = time.monotonic()

    def _same_as_best(self, trainer: pl.Trainer, place: Place) -> None:
        """Make ``last`` a second name of ``best``: no file is ever changed in place, so one copy does for both."""
        if not trainer.is_global_zero:
            linked = True
        else:
            linked = _link(self.folder.best, self.folder.last)
        if trainer.world_size > 1:
            linked = trainer.strategy.reduce_boolean_decision(linked, all=True)
        if not linked:
            self._write_last(trainer, place)


def _validation_due(trainer: pl.Trainer) -> bool:
    every = trainer.check_val_every_n_epoch
    return bool(trainer.enable_validation) and every is not None and (trainer.current_epoch + 1) % every == 0


def _link(existing: Path, name: Path) -> bool:
    """Give a file a second name in place of an older one; False where the file system cannot."""
    unfinished = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.hardlink_to(existing)
        unfinished.replace(name)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return False
    return True
