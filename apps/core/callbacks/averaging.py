"""Exponential moving average of the weights: validated, tested and kept as best; training goes on with its own."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class MovingAverage(EMAWeightAveraging):
    """Lightning's moving average, made safe for buffers, interruptions and resumed runs.

    Differs from Lightning's: buffers are copied, not averaged (averaging an index table in a buffer truncates its
    integers); the training weights are not overwritten when training ends, so that a finished run can be prolonged; a
    validation that is broken off gives the training weights back before a checkpoint is written.

    Args:
        decay: Weight of the old average at each optimiser step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)
        self._averages_in_use = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._averages_in_use = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to the training weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._averages_in_use = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Go back to the training weights where a validation was broken off."""
        if self._averages_in_use:
            self._swap_models(pl_module)
            self._averages_in_use = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the training weights; the average is in the checkpoints."""
