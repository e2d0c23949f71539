"""Losses of point and quantile forecasts, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import ShapeError


def point_loss(values: Tensor, target: Tensor, kind: str = "mse") -> Tensor:
    """Mean loss of a point forecast.

    Args:
        values: Forecast, [batch, steps, variates], scaled.
        target: Truth of the same shape.
        kind: ``"mse"``, ``"mae"`` or ``"huber"`` (delta 1).

    Returns:
        Scalar.

    Raises:
        ShapeError: The shapes differ.
    """
    if values.shape != target.shape:
        raise ShapeError(f"forecast is {tuple(values.shape)}, truth is {tuple(target.shape)}")
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": F.mse_loss,
        "mae": F.l1_loss,
        "huber": F.huber_loss,
    }
    return functions[kind](values, target)


def pinball_loss(forecast: Tensor, target: Tensor, levels: Sequence[float]) -> Tensor:
    """Mean quantile loss over all levels.

    Args:
        forecast: Quantiles, [batch, steps, variates, levels].
        target: Truth, [batch, steps, variates].
        levels: Probability of each quantile, each in (0, 1).

    Returns:
        Scalar: mean of ``max(p * e, (p - 1) * e)`` with the error ``e = truth - quantile``.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: Koenker and Bassett 1978, equation 3.1.
    """
    if forecast.shape[:-1] != target.shape or forecast.shape[-1] != len(levels):
        raise ShapeError(
            f"quantiles are {tuple(forecast.shape)}, the truth {tuple(target.shape)}, levels {len(levels)}"
        )
    probability = torch.as_tensor(levels, dtype=forecast.dtype, device=forecast.device)
    error = target.unsqueeze(-1) - forecast
    return torch.maximum(probability * error, (probability - 1) * error).mean()
