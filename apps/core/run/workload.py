"""The calls of a module whose cost is of interest: a forward pass and a training step, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from apps.core.run.optim import build_optimizer
from backbones.timing import measure


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose tensors are on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def forward_call(module: Any, batch: Mapping[str, Any]) -> Callable[[], Any]:
    """A prediction in evaluation mode, without gradients."""
    precision = autocast(module.config.trainer.precision, module.device)

    def call() -> Any:
        module.eval()
        with torch.inference_mode(), precision:
            return module.predict_batch(batch)

    return call


def train_call(module: Any, batch: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Forward, loss, backward and optimiser step; the learning rate is 0, so the weights stay. None without weights."""
    if not any(parameter.requires_grad for parameter in module.model.parameters()):
        return None
    optimizer = build_optimizer(module.model, module.config.optim)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    precision = autocast(module.config.trainer.precision, module.device)

    def call() -> None:
        module.train()
        with precision:
            loss = module.training_loss(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # at the end, so that every call starts with the same memory

    return call


def parameter_count(module: Any) -> tuple[int, int]:
    """All parameters of the model, and those that are trained."""
    parameters = list(module.model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def state_bytes(module: Any, moments: int = 2) -> int:
    """Bytes of weights, gradients and the optimiser's moments in a training."""
    parameters = list(module.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return weights + trained * (1 + moments)


def flops(call: Callable[[], Any]) -> int:
    """Multiplications and additions of the matrix products, convolutions and attention of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def affordable(calls: Iterable[Callable[[], Any]], budget_s: float, most: int = 50) -> int:
    """How many rounds of all calls fit into the budget, from 3 to ``most``; runs each call twice to find out."""
    calls = list(calls)
    for call in calls:
        call()  # the first run also pays for warming up
    one_round = sum(
        timing.p50
        for timing in measure({str(number): call for number, call in enumerate(calls)}, repeats=1, warmup=0).values()
    )
    return max(3, min(most, int(budget_s / max(one_round, 1e-9))))


def autocast(precision: str, device: torch.device) -> Any:
    """The context of Lightning's mixed precisions: ``bf16-mixed``, ``16-mixed``; nothing for the others."""
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()
