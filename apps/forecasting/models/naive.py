"""Forecasts without parameters: what any trained model should beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apps.forecasting.models.forecast import Forecast, Forecaster
from apps.forecasting.models.info import SeriesInfo

if TYPE_CHECKING:
    from apps.forecasting.models.config import SeasonalNaiveConfig


class LastValue(Forecaster):
    """Repeats the last observed value over the whole horizon.

    Args:
        info: Sizes of the series.
    """

    def __init__(self, info: SeriesInfo) -> None:
        super().__init__(info)

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps, see :meth:`Forecaster.forward`; only ``history`` has an effect."""
        self.check_history(history, any_variates=True)
        return Forecast(self.scored(history[:, -1:].repeat(1, self.info.horizon, 1)))


class SeasonalNaive(Forecaster):
    """Repeats the last observed season.

    Args:
        config: Length of the season.
        info: Sizes of the series; the look-back holds at least one season.
    """

    steps: Tensor

    def __init__(self, config: SeasonalNaiveConfig, info: SeriesInfo) -> None:
        super().__init__(info)
        steps = info.look_back - config.season + torch.arange(info.horizon) % config.season
        self.register_buffer("steps", steps, persistent=False)

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps, see :meth:`Forecaster.forward`; only ``history`` has an effect."""
        self.check_history(history, any_variates=True)
        return Forecast(self.scored(history.index_select(1, self.steps)))
