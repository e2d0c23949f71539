"""Depth of the parameters of a model of timm: numbers of layers and stages, from timm's own grouping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models._manipulate import group_parameters
from torch import nn

_STEM, _LAST = r"^(?:stem|patch_embed|conv_stem)", (r"^norm", (99999,))
_BLOCKS = {"stem": _STEM, "blocks": [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^\w+\.(\d+)", None), _LAST]}
_STAGES = {"stem": _STEM, "blocks": [(r"^\w+\.(\d+)", None), _LAST]}
"""For models without a grouping of their own: numbered modules are layers, the outermost of them stages."""


class Depths:
    """Layer and stage of everything in a model.

    Args:
        model: The model; what is not numbered in it (necks, heads) counts to the last layer.

    Attributes:
        count: Number of layers.
    """

    def __init__(self, model: nn.Module) -> None:
        layers, stages = _grouped(model, coarse=False), _grouped(model, coarse=True)
        self.count = 1 + max(layers.values(), default=0)
        self._layers, self._stages = _by_module(layers), _by_module(stages)

    def layer(self, name: str) -> int:
        """Layer of a parameter, 0 for the stem."""
        return _shared(self._layers, name, 0)

    def stage(self, name: str) -> int:
        """Stage of a parameter or module, 0 for the stem; -1 for a module that holds several."""
        return _shared(self._stages, name, -1)


def _grouped(model: Any, coarse: bool) -> dict[str, int]:
    try:
        matcher = model.group_matcher(coarse=coarse)
    except (AttributeError, AssertionError):  # no grouping, or none of this kind
        matcher = _STAGES if coarse else _BLOCKS
    found: dict[str, int] = group_parameters(model, matcher, reverse=True)
    return found


def _by_module(numbers: Mapping[str, int]) -> dict[str, set[int]]:
    """Numbers below every parameter and every module that holds some, by dotted name."""
    found: dict[str, set[int]] = {}
    for name, number in numbers.items():
        parts = name.split(".")
        for length in range(len(parts) + 1):
            found.setdefault(".".join(parts[:length]), set()).add(number)
    return found


def _shared(numbers: Mapping[str, set[int]], name: str, otherwise: int) -> int:
    """The number of the nearest module around a name that has parameters, if there is one number below it."""
    while name not in numbers:  # a buffer, an adapter, or a module without parameters
        name = name.rpartition(".")[0]
    found = numbers[name]
    return next(iter(found)) if len(found) == 1 else otherwise
