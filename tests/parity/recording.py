"""Intermediate outputs and gradients of our modules under their official names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from checkpoints.keymap import KeyMap


@dataclass(frozen=True)
class Tap:
    """Where an intermediate output is found.

    Args:
        path: Module inside our model.
        index: Which item, where the module returns a tuple.
        before: Take the module's first input instead of its output.
    """

    path: str
    index: int = 0
    before: bool = False


@contextmanager
def record(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with what passes the taps during the first forward pass inside the block."""
    seen: dict[str, Tensor] = {}

    def hook(name: str, tap: Tap) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
            found = inputs[0] if tap.before else output
            seen.setdefault(name, found[tap.index] if isinstance(found, tuple) else found)

        return keep

    handles = []
    for name, tap in taps.items():
        module = model.get_submodule(tap.path)
        register = module.register_forward_pre_hook if tap.before else module.register_forward_hook
        handles.append(register(hook(name, tap)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def official_gradients(
    model: nn.Module,
    keymap: KeyMap,
    weights: Mapping[str, Tensor],
    keys: list[str],
    loss: Callable[[Callable[..., Any]], Tensor],
) -> dict[str, Tensor]:
    """Gradients with respect to the official tensors, taken through the key map.

    Args:
        model: Our model.
        keymap: Its key map; all its functions are differentiable.
        weights: Official state dict.
        keys: Official keys wanted.
        loss: Computes the loss, given a function that calls the model.

    Returns:
        Official key to gradient, in the official shape.
    """
    if not keys:
        return {}
    leaves = {key: value.clone().requires_grad_(key in keys) for key, value in weights.items()}
    translated = keymap.translate(leaves).tensors
    known = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    translated = {name: value for name, value in translated.items() if name in known}

    def call(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model, translated, args, kwargs)

    with torch.enable_grad():
        found = torch.autograd.grad(loss(call), [leaves[key] for key in keys], allow_unused=True)
    return {key: torch.zeros_like(leaves[key]) if g is None else g for key, g in zip(keys, found, strict=True)}


def gradient_keys(expected: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Official keys behind the expected outputs ``<prefix>.<official key>``."""
    return [name.removeprefix(f"{prefix}.") for name in expected if name.startswith(f"{prefix}.")]
