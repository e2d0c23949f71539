"""Progress of a run: one bar with the time left in a terminal, one line per epoch in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from apps.core.report.numbers import duration, number

HEARTBEAT_S = 60.0


@dataclass
class Pace:
    """Seconds a training step and a validation take, and so the time left.

    Attributes:
        steps: Training steps measured.
        train_s: What they took.
        validations: Validations measured.
        validation_s: What they took.
    """

    steps: int = 0
    train_s: float = 0.0
    validations: int = 0
    validation_s: float = 0.0

    def left_s(self, steps: float, validations: float) -> float:
        """Seconds that so many steps and validations will take; NaN before the first step was measured."""
        if not self.steps or not math.isfinite(steps):
            return math.nan
        per_validation = self.validation_s / self.validations if self.validations else 0.0
        return steps * self.train_s / self.steps + validations * per_validation


def metrics_text(metrics: Mapping[str, Any], validated: bool) -> str:
    """Loss of the latest training batch and, after a validation, its metrics with the baseline's beside them.

    Args:
        metrics: Logged name to value: ``train/loss``, ``val/mse``, ``val/baseline_mse``.
        validated: Whether the validation values are of now.
    """
    values = {name: float(value) for name, value in metrics.items()}
    parts = [f"batch loss {number(values['train/loss'])}"] if "train/loss" in values else []
    names = [name for name in values if name.startswith("val/") and "/baseline_" not in name] if validated else []
    for name in names:
        baseline = values.get(name.replace("val/", "val/baseline_", 1))
        beside = "" if baseline is None else f" (baseline {number(baseline)})"
        parts.append(f"{name} {number(values[name])}{beside}")
    return "  ".join(parts)


class RunProgress(ProgressBar):
    """Shows how far a run is and how long it will take.

    Args:
        console: Where to write; standard output if omitted. A terminal gets a bar, anything else plain lines.
        clock: Seconds that only grow; for tests.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.console = console or Console()
        self.clock = clock
        self.pace = Pace()
        self._enabled = True
        self._bar: Progress | None = None
        self._started = self._last_line = self._last_step_end = self._validation_start = 0.0
        self._first_step = self._steps_seen = 0
        self._validated = False

    def enable(self) -> None:
        """Show progress; so it is at first."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, as Lightning asks of all processes but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        self._line(" ".join(map(str, args)))

    # Training

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        """Start the clock and open the bar."""
        self._started = self._last_line = self.clock()
        self._first_step = self._steps_seen = trainer.global_step
        self.pace = Pace()
        self._open("fit", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Measure the step and move the bar."""
        now, step = self.clock(), trainer.global_step
        if self._steps_seen > self._first_step:  # the first step also pays for warming up
            self.pace.train_s += now - self._last_step_end
            self.pace.steps += step - self._steps_seen
        self._last_step_end, self._steps_seen = now, max(step, self._steps_seen)
        self._move(step, self._left(trainer), _epoch(trainer))
        if not self.console.is_terminal and now - self._last_line >= HEARTBEAT_S:
            loss = metrics_text(trainer.callback_metrics, validated=False)
            self._line(f"{_place(trainer)}  {loss}  {self._clocks(trainer)}")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """One line: metrics beside the baseline, time spent, time left."""
        text = metrics_text(trainer.callback_metrics, self._validated)
        self._line("  ".join(part for part in (_place(trainer), text, self._clocks(trainer)) if part))
        self._validated = False

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Close the bar, so that the error is readable."""
        self._close()

    # Validation, test and prediction

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        """Stop the clock of training, or open a bar of its own."""
        self._validation_start = self.clock()
        if not _fitting(trainer) and not trainer.sanity_checking:
            self._open("validate", _total(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        """Move the bar of a validation alone."""
        if not _fitting(trainer) and not trainer.sanity_checking:
            self._advance()

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        """Measure the validation."""
        if trainer.sanity_checking:
            return
        if not _fitting(trainer):
            self._close()
            return
        spent = self.clock() - self._validation_start
        self.pace.validations += 1
        self.pace.validation_s += spent
        self._last_step_end += spent  # so that the next step is not charged with it
        self._validated = True

    def on_test_start(self, trainer: Any, *_: Any) -> None:
        """Open a bar."""
        self._open("test", _total(trainer.num_test_batches))

    def on_test_batch_end(self, *_: Any) -> None:
        """Move the bar."""
        self._advance()

    def on_test_end(self, *_: Any) -> None:
        """Close the bar."""
        self._close()

    def on_predict_start(self, trainer: Any, *_: Any) -> None:
        """Open a bar."""
        self._open("predict", _total(trainer.num_predict_batches))

    def on_predict_batch_end(self, *_: Any) -> None:
        """Move the bar."""
        self._advance()

    def on_predict_end(self, *_: Any) -> None:
        """Close the bar."""
        self._close()

    # Drawing

    def _left(self, trainer: Any) -> float:
        steps = max(0.0, trainer.estimated_stepping_batches - trainer.global_step)
        if not math.isfinite(steps):
            return math.nan
        per_epoch = max(1.0, trainer.num_training_batches / trainer.accumulate_grad_batches)
        every = (trainer.check_val_every_n_epoch or 1) * per_epoch
        return self.pace.left_s(steps, math.ceil(steps / every) if _total(trainer.num_val_batches) else 0)

    def _clocks(self, trainer: Any) -> str:
        left = self._left(trainer)
        spent = f"elapsed {duration(self.clock() - self._started)}"
        return f"{spent}  left {duration(left)}" if left > 0 else spent  # false for NaN too

    def _line(self, text: str) -> None:
        if not self._enabled:
            return
        self._last_line = self.clock()
        (self._bar.console if self._bar else self.console).print(text, highlight=False, markup=False, soft_wrap=True)

    def _open(self, name: str, total: float, done: int = 0) -> None:
        if not (self._enabled and self.console.is_terminal):
            return
        self._close()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._bar.add_task(name, total=total if math.isfinite(total) else None, completed=done, left="")
        self._bar.start()

    def _move(self, done: int, left_s: float, name: str) -> None:
        if self._bar:
            left = f"{duration(left_s)} left" if math.isfinite(left_s) else ""
            self._bar.update(self._bar.task_ids[0], completed=done, description=name, left=left)

    def _advance(self) -> None:
        if self._bar:
            self._bar.advance(self._bar.task_ids[0])

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def _fitting(trainer: Any) -> bool:
    return str(trainer.state.fn) == "fit" or getattr(trainer.state.fn, "value", "") == "fit"


def _total(batches: Any) -> float:
    return float(sum(batches)) if isinstance(batches, list) else float(batches)


def _epoch(trainer: Any) -> str:
    of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{of}"


def _place(trainer: Any) -> str:
    return f"{_epoch(trainer)}  step {trainer.global_step}"
