"""How long training and validation take, noted in the run folder."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl

from apps.core.run.folder import RunFolder
from apps.core.run.scoring import batch_size


class Timing(pl.Callback):
    """Notes seconds of training and validation, and training samples per second, after each epoch.

    Parts of a run that was interrupted are added up.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.train_s = self.val_s = 0.0
        self.samples = self.epochs = 0
        self._since: float | None = None
        self._val_since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Sums so far."""
        return {"train_s": self.train_s, "val_s": self.val_s, "samples": self.samples, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding."""
        self.train_s, self.val_s = state_dict["train_s"], state_dict["val_s"]
        self.samples, self.epochs = state_dict["samples"], state_dict["epochs"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the first batch."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the time since the batch before, loading included."""
        now = time.perf_counter()
        self.train_s += now - (self._since or now)
        self.samples += batch_size(batch) * trainer.world_size
        self._since = now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the validation."""
        self._val_since = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time of the validation."""
        self.val_s += time.perf_counter() - self._val_since

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the sums."""
        self._since = None
        self.epochs += 1
        self.folder.note("timing", self.summary())

    def summary(self) -> dict[str, Any]:
        """Plain values for the report."""
        epochs = max(1, self.epochs)
        return {
            "epochs": self.epochs,
            "training_s": round(self.train_s, 3),
            "validation_s": round(self.val_s, 3),
            "training_s_per_epoch": round(self.train_s / epochs, 3),
            "training_samples_per_s": round(self.samples / self.train_s, 1) if self.train_s else None,
        }
