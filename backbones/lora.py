"""Low-rank adapters on linear layers: fine-tuning with a small share of the parameters.

The weight keeps its name beside the two small matrices, so weights load as before, and :func:`merge_lora` gives back
the plain layers with the same function. Source: Hu et al. 2022, "LoRA", section 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwork.errors import ConfigError


class LoRALinear(nn.Linear):
    """``x W^T + b + alpha / rank * (x A^T) B^T`` with W and b frozen, A [rank, in] and B [out, rank] trained.

    B begins at zero, so that the layer begins as the one it adapts.

    Args:
        linear: The layer to adapt; its parameters are taken over, not copied.
        rank: Rank of the update, at least 1.
        alpha: The update is scaled by ``alpha / rank``.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float = 16.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.scale = rank, alpha / rank
        self.lora_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))
        for frozen in (self.weight, self.bias):
            if frozen is not None:
                frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)

    def merged(self) -> nn.Linear:
        """A plain layer with the same function and trainable parameters."""
        bias = self.bias is not None
        plain = nn.Linear(self.in_features, self.out_features, bias, self.weight.device, self.weight.dtype)
        with torch.no_grad():
            plain.weight.copy_(self.weight + self.scale * self.lora_up @ self.lora_down)
            if bias:
                plain.bias.copy_(self.bias)
        return plain

    def extra_repr(self) -> str:
        """Sizes and rank."""
        return f"{super().extra_repr()}, rank={self.rank}"


def add_lora(model: nn.Module, rank: int, alpha: float = 16.0, targets: str = "") -> list[str]:
    """Adapt the linear layers of a model in place and freeze everything else.

    Args:
        model: The model.
        rank: Rank of the updates, at least 1.
        alpha: They are scaled by ``alpha / rank``.
        targets: Regular expression searched in the names of linear layers; all of them if empty.

    Returns:
        Names of the layers adapted.

    Raises:
        ConfigError: The rank is below 1, no linear layer matches, or ``targets`` is no regular expression.
    """
    if rank < 1:
        raise ConfigError(f"lora_rank={rank} must be at least 1")
    try:
        wanted = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"targets={targets!r} is no regular expression: {error}") from error
    found = [name for name, _ in _linears(model) if wanted.search(name)]
    if not found:
        raise ConfigError(f"no linear layer of {type(model).__name__} matches targets={targets!r}")
    model.requires_grad_(False)
    for name in found:
        layer = model.get_submodule(name)
        model.set_submodule(name, LoRALinear(layer, rank, alpha))  # type: ignore[arg-type]
    return found


def merge_lora(model: nn.Module) -> list[str]:
    """Put every adapter into the weight it adapts, in place; the function stays the same and all can be trained.

    Returns:
        Names of the layers merged.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    for name in names:
        layer = model.get_submodule(name)
        model.set_submodule(name, layer.merged())  # type: ignore[operator]
    if names:
        model.requires_grad_(True)
    return names


def _linears(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    # exact type: subclasses may use their weight otherwise than by calling the layer
    return [(name, module) for name, module in model.named_modules() if name and type(module) is nn.Linear]
