"""Forecast errors over a whole split, scaled as papers report them and in the data's own units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.core.metrics.mean import WeightedMean
from apps.forecasting.models.forecast import Forecast
from datamodules.forecasting.info import ForecastingInfo

MOST_ROWS = 700


def seasonal_naive(history: Tensor, horizon: int, season: int, outputs: int) -> Tensor:
    """Repeat the last season; the last value where the look-back is shorter than one season.

    Args:
        history: [batch, look-back, variates].
        horizon: Steps to forecast.
        season: Steps per season.
        outputs: The last columns to forecast.

    Returns:
        [batch, horizon, outputs].
    """
    period = season if season <= history.shape[1] else 1
    last = history[:, -period:, -outputs:]
    repeats = -(-horizon // period)
    return last.repeat(1, repeats, 1)[:, :horizon]


class _Errors(nn.Module):
    """Mean absolute, squared and symmetric relative error, each [horizon, outputs]."""

    def __init__(self, horizon: int, outputs: int) -> None:
        super().__init__()
        shape = (horizon, outputs)
        self.absolute, self.squared, self.relative = (WeightedMean(shape) for _ in range(3))

    def update(self, values: Tensor, target: Tensor, mean: Tensor, scale: Tensor) -> None:
        """Add scaled values and truth, [batch, horizon, outputs]."""
        error = (values.double() - target.double()).abs()
        self.absolute.update(error)
        self.squared.update(error.square())
        units, truth = values.double() * scale + mean, target.double() * scale + mean
        size = units.abs() + truth.abs()
        self.relative.update(torch.where(size > 0, 200 * (units - truth).abs() / size, 0.0))  # both 0: no error

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three means, [horizon, outputs] each."""
        return self.absolute.compute().cpu(), self.squared.compute().cpu(), self.relative.compute().cpu()

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.absolute, self.squared, self.relative):
            metric.reset()


class ForecastMetrics(nn.Module):
    """Metric suite of one split, with the seasonal-naive forecast of the same windows beside.

    MSE and MAE are means over (windows, steps, variates) of standardised values, every window counted, the last ones
    included; they depend neither on the batch size nor on the number of processes. MASE divides the MAE in units by
    the in-sample MAE of the seasonal-naive forecast on the training rows (Hyndman and Koehler 2006); sMAPE is
    ``200 |f - y| / (|f| + |y|)`` in percent.

    Args:
        info: Scale, names and season of the data.
        levels: Quantile levels of the model; empty for point forecasts.
    """

    def __init__(self, info: ForecastingInfo, levels: Sequence[float] = ()) -> None:
        super().__init__()
        self.info = info
        self.levels = tuple(levels)
        outputs = len(info.output_names)
        self.errors, self.naive = _Errors(info.horizon, outputs), _Errors(info.horizon, outputs)
        self.pinball = WeightedMean((max(len(self.levels), 1),))
        self.coverage = WeightedMean()
        self.windows = WeightedMean()
        self.register_buffer("mean", torch.tensor(list(info.output_mean), dtype=torch.float64), persistent=False)
        self.register_buffer("scale", torch.tensor(list(info.output_scale), dtype=torch.float64), persistent=False)
        self.mean: Tensor
        self.scale: Tensor

    def update(self, batch: Mapping[str, Tensor], prediction: Forecast) -> None:
        """Add one batch of windows and their forecasts."""
        target = batch["future"]
        mean, scale = self.mean.double(), self.scale.double()
        self.errors.update(prediction.values, target, mean, scale)
        naive = seasonal_naive(batch["history"], target.shape[1], self.info.season, target.shape[2])
        self.naive.update(naive, target, mean, scale)
        self.windows.update(torch.ones(len(target), device=target.device))
        if self.levels and prediction.quantiles is not None:
            self._update_quantiles(prediction.quantiles, target)

    def _update_quantiles(self, quantiles: Tensor, target: Tensor) -> None:
        levels = torch.tensor(self.levels, dtype=torch.float64, device=target.device)
        error = target.double().unsqueeze(-1) - quantiles.double()
        self.pinball.update(torch.maximum(levels * error, (levels - 1) * error).flatten(0, -2))
        if len(self.levels) < 2:
            return  # no band
        self.coverage.update(((target >= quantiles[..., 0]) & (target <= quantiles[..., -1])).double().flatten())

    def compute(self) -> dict[str, float]:
        """MSE and MAE of scaled values, MASE, sMAPE; for quantiles pinball loss and the share of truths in the band.

        The latter is named after what the band promises: ``coverage_80`` should be 0.8. One level makes no band.
        """
        result = self._headline(self.errors)
        if self.levels:
            result["pinball"] = float(self.pinball.compute().mean())
        if len(self.levels) > 1:
            result[f"coverage_{100 * (self.levels[-1] - self.levels[0]):.0f}"] = float(self.coverage.compute())
        return result

    def baseline(self) -> dict[str, float]:
        """The same of the seasonal-naive forecast, which has no band."""
        return self._headline(self.naive)

    def _headline(self, errors: _Errors) -> dict[str, float]:
        absolute, squared, relative = errors.compute()
        mase = self._mase(absolute)
        return {
            "mse": float(squared.mean()),
            "mae": float(absolute.mean()),
            "mase": float(mase[~mase.isnan()].mean()) if (~mase.isnan()).any() else float("nan"),
            "smape": float(relative.mean()),
        }

    def _mase(self, absolute: Tensor) -> Tensor:
        naive = torch.tensor(list(self.info.naive_error), dtype=torch.float64)
        return torch.where(naive > 0, absolute.mean(0) * self.scale.double().cpu() / naive, torch.nan)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Errors per variate in its own units, and per step of the horizon, ours and the baseline's."""
        return {
            "error by variate": self._by_variate(),
            "error by step": self._by_step(),
            "error by step and variate": self._by_step_and_variate(),
        }

    def _by_variate(self) -> list[dict[str, Any]]:
        absolute, squared, relative = self.errors.compute()
        scale, mase = self.scale.double().cpu(), self._mase(absolute)
        naive = self.naive.compute()[0].mean(0) * scale
        return [
            {
                "variate": name,
                "MAE": float(absolute[:, i].mean() * scale[i]),
                "RMSE": float(squared[:, i].mean().sqrt() * scale[i]),
                "sMAPE %": float(relative[:, i].mean()),
                "MASE": float(mase[i]),
                "MAE of seasonal naive": float(naive[i]),
            }
            for i, name in enumerate(self.info.output_names)
        ]

    def _by_step(self) -> list[dict[str, Any]]:
        ours, naive = self.errors.compute(), self.naive.compute()
        return [
            {
                "step": step + 1,
                "MSE, scaled": float(ours[1][step].mean()),
                "MAE, scaled": float(ours[0][step].mean()),
                "sMAPE %": float(ours[2][step].mean()),
                "MAE of seasonal naive, scaled": float(naive[0][step].mean()),
            }
            for step in range(self.info.horizon)
        ]

    def _by_step_and_variate(self) -> list[dict[str, Any]]:
        """In units; of a long table every k-th step, so that it stays within ``MOST_ROWS`` rows."""
        absolute, squared, relative = self.errors.compute()
        scale, names = self.scale.double().cpu(), self.info.output_names
        mase = torch.stack([self._mase(step[None]) for step in absolute])  # horizon, outputs
        every = -(-self.info.horizon * len(names) // MOST_ROWS)
        return [
            {
                "step": step + 1,
                "variate": name,
                "MAE": float(absolute[step, i] * scale[i]),
                "RMSE": float(squared[step, i].sqrt() * scale[i]),
                "sMAPE %": float(relative[step, i]),
                "MASE": float(mase[step, i]),
            }
            for step in range(0, self.info.horizon, every)
            for i, name in enumerate(names)
        ]

    def count(self) -> int:
        """Windows seen."""
        return round(float(self.windows.weight))

    def reset(self) -> None:
        """Forget everything."""
        self.errors.reset()
        self.naive.reset()
        for metric in (self.pinball, self.coverage, self.windows):
            metric.reset()
