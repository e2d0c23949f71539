"""Optimiser, its groups, and the learning rate as a pure function of the optimiser step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from apps.core.config import OptimConfig, ScheduleConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those that are decayed, and those that are not.

    Not decayed are parameters of one dimension or none (biases, scales), those of norms and embedding tables, and those
    marked with a true attribute ``_no_weight_decay`` (position tables, state matrices).

    Args:
        model: The model.
        weight_decay: Decay of the first group.

    Returns:
        Groups for a torch optimiser; empty ones are left out.
    """
    kept = [module for module in model.modules() if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__]
    undecayed = {id(parameter) for module in kept for parameter in module.parameters(recurse=False)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            marked = getattr(parameter, "_no_weight_decay", False) or id(parameter) in undecayed
            groups[parameter.ndim > 1 and not marked].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [{"params": params, "weight_decay": decays[decayed]} for decayed, params in groups.items() if params]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser over the groups of ``model``."""
    groups = parameter_groups(model, config.weight_decay)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "radam": torch.optim.RAdam,
    }
    return kinds[config.name](groups, lr=config.lr, betas=tuple(config.betas))


def learning_rate_factor(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the peak learning rate at each optimiser step (0-based).

    It depends on the step alone, so that accumulation, the number of devices and a resumed run have no say in it.

    Args:
        config: Warm-up and curve.
        total_steps: Optimiser steps of the whole run.
        steps_per_epoch: Optimiser steps of an epoch.
    """
    curve = _curve(config, total_steps, max(1, steps_per_epoch))

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        return curve(step)

    return factor


def _curve(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    if config.name == "cosine":
        span = max(1, total_steps - config.warmup_steps)

        def cosine(step: int) -> float:
            done = min(1.0, (step - config.warmup_steps) / span)
            return config.min_factor + (1 - config.min_factor) * (1 + math.cos(math.pi * done)) / 2

        return cosine
    if config.name == "step":
        milestones = sorted(config.milestones)
        return lambda step: config.gamma ** bisect_right(milestones, step // steps_per_epoch)
    if config.name == "halving":  # epochs 1 and 2 at the peak, then half of the epoch before
        return lambda step: 0.5 ** max(0, step // steps_per_epoch - 1)
    return lambda step: 1.0
