"""What a fit will take, foretold from a few batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

import torch

from apps.core.run.workload import forward_call, parameter_count, state_bytes, to_device, train_call
from backbones.timing import measure, peak_memory


@dataclass(frozen=True)
class Estimate:
    """Cost of one epoch, and its parts.

    Args:
        parameters: Parameters of the model.
        load_s: Seconds to load a training batch in one process.
        step_s: Seconds of a training step.
        eval_s: Seconds to predict an evaluation batch.
        steps: Training batches of an epoch.
        evals: Validation batches.
        workers: Loader processes.
        state_bytes: Weights, gradients and moments of the optimiser.
        step_bytes: Peak of a training step, on top of the weights.
    """

    parameters: int
    load_s: float
    step_s: float
    eval_s: float
    steps: int
    evals: int
    workers: int
    state_bytes: int
    step_bytes: int

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch with its validation; loader processes work beside the steps."""
        return self.steps * self._with_loading(self.step_s) + self.evals * self._with_loading(self.eval_s)

    @property
    def waits_for_data(self) -> bool:
        """Whether loading takes more than half of a training epoch's time."""
        return self.steps > 0 and self._with_loading(self.step_s) > 2 * self.step_s

    @property
    def memory_bytes(self) -> int:
        """Bytes of tensors in a training."""
        return self.state_bytes + self.step_bytes

    def _with_loading(self, seconds: float) -> float:
        return max(seconds, self.load_s / self.workers) if self.workers else seconds + self.load_s


def estimate(module: Any, datamodule: Any, batches: int = 3, budget_s: float = 10.0) -> Estimate:
    """Load and train on a few batches of the data; the learning rate is 0, so nothing is learnt.

    Args:
        module: The app's module, on its device.
        datamodule: Its data, set up.
        batches: Batches to load.
        budget_s: Seconds to spend on repeated steps.
    """
    loaded, load_s = timed_batches(datamodule, batches)
    batch = to_device(loaded[0], module.device)
    forward, train = forward_call(module, batch), train_call(module, batch)
    settings = module.config.trainer
    return Estimate(
        parameters=parameter_count(module)[0],
        load_s=load_s,
        step_s=_seconds(train, budget_s / 2) if train else 0.0,
        eval_s=_seconds(forward, budget_s / 2),
        steps=limited(len(datamodule.train_dataloader()), settings.limit_train_batches) if train else 0,
        evals=limited(len(datamodule.val_dataloader()), settings.limit_val_batches),
        workers=datamodule.num_workers,
        state_bytes=state_bytes(module, 1 if module.config.optim.name == "sgd" else 2),
        step_bytes=peak_memory(train or forward, module.device),
    )


def timed_batches(datamodule: Any, count: int) -> tuple[list[Any], float]:
    """The first training batches, and the seconds that one of them takes to load in a process of its own."""
    workers, datamodule.num_workers = datamodule.num_workers, 0  # starting workers would be most of the time measured
    try:
        loader = iter(datamodule.train_dataloader())
    finally:
        datamodule.num_workers = workers
    batches, seconds = [], []
    started = time.perf_counter()
    for batch in islice(loader, count):
        seconds.append(time.perf_counter() - started)
        batches.append(batch)
        started = time.perf_counter()
    return batches, median(seconds[1:] or seconds)  # the first one also pays for what is read once


def limited(batches: int, limit: int | float) -> int:
    """Batches left by one of Lightning's limits: a number of batches, or a share of them."""
    return min(batches, limit) if isinstance(limit, int) else math.floor(batches * limit)


def _seconds(call: Callable[[], Any], budget_s: float) -> float:
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    if first > budget_s:
        return first
    repeats = max(1, min(10, int(budget_s / max(first, 1e-9))))
    return measure({"call": call}, repeats=repeats, warmup=0)["call"].p50


def available_memory(device: torch.device) -> int:
    """Bytes that a training may still take on a device; 0 where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    from apps.core.run.machine import free_memory

    return free_memory()
