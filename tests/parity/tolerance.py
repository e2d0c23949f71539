"""How close is close enough, as each case states it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Error:
    """How far one tensor is off.

    Args:
        ratio: Worst error over tolerance; more than 1 fails, and so does NaN or infinity.
        absolute: Worst absolute error.
        note: What is wrong beside numbers: a missing tensor, a shape.
    """

    ratio: float
    absolute: float = math.nan
    note: str = ""

    @property
    def passes(self) -> bool:
        return self.ratio <= 1


def missing() -> Error:
    return Error(math.inf, note="the adapter gives no such output")


@dataclass(frozen=True)
class Tolerance:
    """The tolerance of a case.

    Args:
        rtol: Relative to each golden number.
        atol: Absolute.
        grad_rtol: In place of ``rtol`` for gradients.
        grad_atol: In place of ``atol`` for gradients.
        relative_to_max: In place of both: relative to the largest golden number of the tensor.
        image_abs: In place of both for images.
    """

    rtol: float = 1e-4
    atol: float = 2e-5
    grad_rtol: float | None = None
    grad_atol: float | None = None
    relative_to_max: float | None = None
    image_abs: float | None = None

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Tolerance:
        names = ("rtol", "atol", "grad_rtol", "grad_atol", "relative_to_max", "image_abs")
        return cls(**{name: float(stated[name]) for name in names if stated.get(name) is not None})

    def error(self, name: str, ours: Tensor, golden: Tensor) -> Error:
        """Compare one tensor; integers and booleans exactly."""
        if ours.shape != golden.shape:
            return Error(math.inf, note=f"shape {list(ours.shape)}, golden {list(golden.shape)}")
        if golden.numel() == 0:
            return Error(0.0, 0.0)
        ours = ours.detach().cpu()
        if not golden.is_floating_point():
            return _exact(ours, golden)
        ours, golden = ours.to(torch.float64), golden.to(torch.float64)
        same = (ours == golden) | (ours.isnan() & golden.isnan())
        difference = torch.where(same, 0.0, (ours - golden).abs()).nan_to_num(nan=math.inf)
        allowed = self._allowed(name, golden)
        ratio = torch.where(difference == 0, 0.0, difference / allowed).nan_to_num(nan=math.inf)
        return Error(float(ratio.max()), float(difference.max()))

    def _allowed(self, name: str, golden: Tensor) -> Tensor:
        finite = golden.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs()
        if name.startswith("image") and self.image_abs is not None:
            return torch.full_like(finite, self.image_abs)
        if name.startswith("grad") and self.grad_rtol is not None:
            return (self.atol if self.grad_atol is None else self.grad_atol) + self.grad_rtol * finite
        if self.relative_to_max is not None:
            return torch.full_like(finite, self.relative_to_max * float(finite.max()))
        return self.atol + self.rtol * finite


def _exact(ours: Tensor, golden: Tensor) -> Error:
    """Integers and booleans; int64 codes are compared as such, beyond what a float64 can tell apart."""
    if bool((ours == golden).all()):
        return Error(0.0, 0.0)
    return Error(math.inf, float((ours.to(torch.float64) - golden.to(torch.float64)).abs().max()))
