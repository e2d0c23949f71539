"""Streaming means that do not depend on the batch size or on the number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from graftwork.errors import ShapeError


class WeightedMean(Metric):
    """Mean of values over a whole split: sums in float64, divided once, summed over processes.

    A mean of batch means weighs the samples of a short last batch more; this one weighs every value alike.

    Args:
        shape: Shape of the mean; the default is a scalar. ``(horizon,)`` keeps one mean for each horizon step.
        kwargs: Options of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, shape: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.add_state("total", torch.zeros(self.shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(self.shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add values.

        Args:
            values: [..., *shape]; the leading axes are averaged over.
            weights: Weight of each value, broadcastable to ``values``; 0 leaves a value out, even a NaN.

        Raises:
            ShapeError: ``values`` does not end in the shape of the mean.
        """
        kept_axes = len(self.shape)
        if tuple(values.shape[values.ndim - kept_axes :]) != self.shape:
            raise ShapeError(f"values of a mean must end in {self.shape}, got {tuple(values.shape)}")
        values = values.detach().to(self.total)
        weights = torch.as_tensor(weights).detach().to(self.total).expand_as(values)
        products = torch.where(weights == 0, torch.zeros_like(values), values * weights)
        leading = (math.prod(values.shape[: values.ndim - kept_axes]), *self.shape)
        self.total = self.total + products.reshape(leading).sum(0)
        self.weight = self.weight + weights.reshape(leading).sum(0)

    def compute(self) -> Tensor:
        """Mean so far, [*shape] float64; NaN where nothing was added."""
        return self.total / self.weight
