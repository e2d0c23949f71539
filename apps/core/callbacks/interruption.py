"""Stopping on request: SIGTERM (a cluster takes the machine back) and Ctrl-C end a fit at the next optimiser step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Training stopped on request; ``last.ckpt`` holds its state."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")

    @property
    def exit_code(self) -> int:
        """The shell's code for a program that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.signum


class Interruption(pl.Callback):
    """Listens for signals while training runs.

    The first signal asks the run to stop at the next place that it can go on from; a second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}
        self._launcher: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the handlers of before; Lightning installs its own after this hook."""
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's handlers, which raise wherever training happens to be."""
        self.requested, self._launcher = None, trainer.strategy.launcher
        self._install(dict.fromkeys(SIGNALS, self._handle))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self._install(self._before)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._install(self._before)

    def agreed(self, trainer: pl.Trainer) -> int | None:
        """The signal that any process got; all processes must ask at the same place."""
        if trainer.world_size == 1:
            return self.requested
        anywhere = trainer.strategy.reduce_boolean_decision(self.requested is not None, all=False)
        return (self.requested or signal.SIGTERM) if anywhere else None

    def _install(self, handlers: dict[int, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in handlers.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = signum
        log.warning("%s: stopping at the next optimiser step", signal.Signals(signum).name)
        if signum == signal.SIGTERM and hasattr(self._launcher, "kill"):
            self._launcher.kill(signum)  # a terminal sends Ctrl-C to every process itself
