"""What every forecaster takes and gives.

Shape legend of this folder: B batch, L look-back steps, S horizon steps, N variates, M calendar features, D width,
H heads, d channels of a head (D = H * d), Q quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.normalisation import Level
from graftwork.errors import ShapeError


class Forecast(NamedTuple):
    """A forecast in the units of the history.

    Attributes:
        values: Point forecast, [B, S, outputs]; with quantiles the one nearest to the median.
        quantiles: [B, S, outputs, Q] in the order of the configured levels, never crossing; None for a point model.
    """

    values: Tensor
    quantiles: Tensor | None = None


class Forecaster(nn.Module):
    """Base of every forecasting model.

    Args:
        info: Sizes of the series the model is built for.
    """

    def __init__(self, info: SeriesInfo) -> None:
        super().__init__()
        self.info = info

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps.

        Args:
            history: Observed steps, [B, L, N].
            history_marks: Calendar of the observed steps, [B, L, M]; None for series without dates.
            future_marks: Calendar of the steps to forecast, [B, S, M].
            decoder_input: In place of what encoder-decoder models make themselves, the last label_length observed
                steps and then S zeros, [B, label + S, N]; other models ignore it.
            decoder_marks: In place of the calendar of those steps, [B, label + S, M].

        Returns:
            The forecast, [B, S, outputs].

        Raises:
            ShapeError: The history is not the length or width the model was built for.
        """
        raise NotImplementedError

    def check_history(self, history: Tensor, *, any_variates: bool = False) -> None:
        """Refuse a history of another length (or width) than the model was built for.

        Raises:
            ShapeError: The message names both shapes.
        """
        variates = history.shape[-1] if any_variates else self.info.variates
        if history.dim() != 3 or history.shape[1] != self.info.look_back or history.shape[2] != variates:
            width = "any" if any_variates else str(variates)
            raise ShapeError(
                f"history of {type(self).__name__}: expected [batch, {self.info.look_back}, {width}], "
                f"got {list(history.shape)}"
            )

    def scored(self, values: Tensor) -> Tensor:
        """The columns the task asks for: all of them, or the last ones (the target comes last).

        Args:
            values: [B, S, variates, ...], the variates on axis 2.
        """
        if self.info.outputs == self.info.variates:
            return values
        return values[:, :, -self.info.outputs :]

    def finish(self, values: Tensor, quantiles: Tensor | None, level: Level | None = None) -> Forecast:
        """Bring what a head gives per series back to the units and the columns asked for.

        Args:
            values: [B, N, S].
            quantiles: [B, N, S, Q], or None.
            level: What instance normalisation removed, or None.
        """
        values = values.transpose(1, 2)
        if level is not None:
            values = level.restore(values)
        if quantiles is None:
            return Forecast(self.scored(values))
        quantiles = quantiles.transpose(1, 2)
        if level is not None:
            quantiles = level.restore_quantiles(quantiles)
        return Forecast(self.scored(values), self.scored(quantiles))


class ForecastHead(nn.Module):
    """The last Linear, for one value per step or for quantiles that never cross.

    With quantiles, the level nearest to 0.5 is read off directly and every other one lies a sum of softplus steps
    above or below it. The order therefore holds for any weights, and every output gets a gradient (sorting would
    also give the order, but lets levels swap their meaning during training).

    Args:
        features: Channels of the input.
        horizon: S, steps to forecast.
        quantiles: Levels in (0, 1), increasing; empty for a point forecast.
    """

    def __init__(self, features: int, horizon: int, quantiles: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.horizon = horizon
        self.levels = tuple(quantiles)
        self.middle = min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - 0.5)) if self.levels else 0
        self.linear = nn.Linear(features, horizon * max(1, len(self.levels)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., features] to point forecast [..., S] and quantiles [..., S, Q] or None."""
        raw = self.linear(features)
        if not self.levels:
            return raw, None
        raw = raw.unflatten(-1, (self.horizon, len(self.levels)))  # ..., S, Q
        middle = raw[..., self.middle : self.middle + 1]
        steps = nn.functional.softplus(raw)
        above = middle + steps[..., self.middle + 1 :].cumsum(-1)
        below = middle - steps[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        return middle.squeeze(-1), torch.cat([below, middle, above], dim=-1)
