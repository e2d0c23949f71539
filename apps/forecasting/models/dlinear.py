"""DLinear: one Linear over time for the trend, one for the rest.

Paper: Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023. Origin: cure-lab/LTSF-Linear,
Apache-2.0. Three surprises: the weights begin as the constant 1 / L, so the first forecast is flat at the mean of the
window; the weights are shared by all variates by default; the calendar is not used at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apps.forecasting.models.decomposition import Decomposition
from apps.forecasting.models.forecast import Forecast, Forecaster
from apps.forecasting.models.info import SeriesInfo

if TYPE_CHECKING:
    from apps.forecasting.models.config import DLinearConfig


class TimeLinear(nn.Module):
    """A Linear from L steps to S steps, shared by all variates or one for each.

    Args:
        look_back: L.
        horizon: S.
        variates: N for own weights per variate; None for shared ones.
    """

    def __init__(self, look_back: int, horizon: int, variates: int | None) -> None:
        super().__init__()
        lead = () if variates is None else (variates,)
        self.weight = nn.Parameter(torch.full((*lead, horizon, look_back), 1.0 / look_back))
        bound = look_back**-0.5
        self.bias = nn.Parameter(torch.empty(*lead, horizon).uniform_(-bound, bound))

    def forward(self, series: Tensor) -> Tensor:
        """[B, N, L] to [B, N, S]."""
        if self.weight.dim() == 2:
            return nn.functional.linear(series, self.weight, self.bias)
        return torch.einsum("bnl,nsl->bns", series, self.weight) + self.bias


class DLinear(Forecaster):
    """DLinear.

    Args:
        config: Moving average and sharing of weights.
        info: Sizes of the series.
    """

    def __init__(self, config: DLinearConfig, info: SeriesInfo) -> None:
        super().__init__(info)
        variates = info.variates if config.individual else None
        self.decomposition = Decomposition(config.moving_average)
        self.seasonal = TimeLinear(info.look_back, info.horizon, variates)
        self.trend = TimeLinear(info.look_back, info.horizon, variates)

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
        self.check_history(history, any_variates=self.seasonal.weight.dim() == 2)
        seasonal, trend = self.decomposition(history)
        values = self.seasonal(seasonal.transpose(1, 2)) + self.trend(trend.transpose(1, 2))  # B, N, S
        return self.finish(values, None)
