"""Optimiser, its groups, and the learning rate as a pure function of the optimiser step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from apps.core.config import OptimConfig, ScheduleConfig
from backbones.vision.base import VisionBackbone


def parameter_groups(
    model: nn.Module, weight_decay: float, lr: float = 1e-3, layer_decay: float = 1.0, backbone_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters by what they are decayed by and how fast they learn.

    Not decayed are parameters of one dimension or none (biases, scales), those of norms and embedding tables, and those
    marked with a true attribute ``_no_weight_decay`` (position tables, state matrices).

    Args:
        model: The model.
        weight_decay: Decay of the parameters that are decayed.
        lr: Learning rate of the last layers.
        layer_decay: Factor of the learning rate from each layer of a vision backbone to the one before it, see
            :func:`layer_scales`.
        backbone_factor: Factor of the learning rate of all of a vision backbone.

    Returns:
        Groups for a torch optimiser with ``params``, ``weight_decay`` and ``lr``; empty ones are left out.
    """
    kept = [module for module in model.modules() if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__]
    undecayed = {id(parameter) for module in kept for parameter in module.parameters(recurse=False)}
    scales = layer_scales(model, layer_decay, backbone_factor)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            marked = getattr(parameter, "_no_weight_decay", False) or id(parameter) in undecayed
            key = (scales.get(name, 1.0), parameter.ndim > 1 and not marked)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if decayed else 0.0, "lr": lr * scale}
        for (scale, decayed), params in groups.items()
        if params
    ]


def layer_scales(model: nn.Module, decay: float, factor: float = 1.0) -> dict[str, float]:
    """Factor of the learning rate of every parameter inside a vision backbone; other parameters learn at full rate.

    Layer number l of a backbone with D layers (the stem is number 0) gets ``factor * decay ** (D - l)``, so that what
    lies outside the backbone counts as layer D.

    Args:
        model: Any model; backbones are found wherever they are in it.
        decay: Factor per layer, in (0, 1].
        factor: Of all layers; 1 and a decay of 1 give an empty result.

    Source: Clark et al. 2020, "ELECTRA", appendix A; for images Bao et al. 2021, "BEiT".
    """
    if decay == factor == 1:
        return {}
    scales = {}
    for path, module in model.named_modules():
        if isinstance(module, VisionBackbone):
            prefix, depth = f"{path}." if path else "", module.depth
            for name, _ in module.named_parameters():
                scales[prefix + name] = factor * decay ** (depth - module.layer_of(name))
    return scales


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser over the groups of ``model``."""
    groups = parameter_groups(model, config.weight_decay, config.lr, config.layer_decay, config.backbone_factor)
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
            below = curve(step) if config.name == "poly" else 1.0
            return below * (step + 1) / config.warmup_steps
        return curve(step)

    return factor


def _curve(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    if config.name == "cosine":
        span = max(1, total_steps - config.warmup_steps)

        def cosine(step: int) -> float:
            done = min(1.0, (step - config.warmup_steps) / span)
            return config.min_factor + (1 - config.min_factor) * (1 + math.cos(math.pi * done)) / 2

        return cosine
    if config.name == "poly":

        def poly(step: int) -> float:  # of all steps, so that it does not start anew after the warm-up
            left = max(0.0, 1 - step / max(1, total_steps))
            return config.min_factor + (1 - config.min_factor) * left**config.power

        return poly
    if config.name == "step":
        milestones = sorted(config.milestones)
        return lambda step: config.gamma ** bisect_right(milestones, step // steps_per_epoch)
    if config.name == "halving":  # epochs 1 and 2 at the peak, then half of the epoch before
        return lambda step: 0.5 ** max(0, step // steps_per_epoch - 1)
    return lambda step: 1.0
