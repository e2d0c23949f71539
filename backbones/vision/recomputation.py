"""Batch norm under gradient checkpointing: running statistics are moved once per step, not again when recomputing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def keep_statistics(model: nn.Module) -> None:
    """Let the norms of a model leave their running statistics alone while the backward pass computes them again.

    Gradient checkpointing runs its part of the model twice per step, and torch moves the statistics both times. The
    recomputed values are those of the forward pass either way: in training they come from the batch alone.

    Args:
        model: Changed in place; calling this again, or for norms that were exchanged since, is harmless.
    """
    for module in model.modules():
        if isinstance(module, _NormBase) and _before not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after, always_call=True)


def recomputing() -> bool:
    """Whether the call is part of a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _before(norm: nn.Module, inputs: Any) -> None:
    if norm.training and norm.track_running_stats and recomputing():
        # a momentum of 0 leaves the statistics as they are; without them autograd would keep other tensors than before
        norm.__dict__["_kept"] = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None  # type: ignore[assignment]


def _after(norm: nn.Module, inputs: Any, output: Any) -> None:
    kept = norm.__dict__.pop("_kept", None)
    if kept is not None:
        norm.momentum, norm.num_batches_tracked = kept
