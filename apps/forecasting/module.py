"""Training and evaluation of forecasters: steps, metrics, pictures; no maths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.core.protocols import ExportSpec, Picture
from apps.core.run.module import GraftModule
from apps.forecasting.config import ForecastingConfig
from apps.forecasting.losses import pinball_loss, point_loss
from apps.forecasting.metrics import ForecastMetrics, seasonal_naive
from apps.forecasting.models.config import MODELS, SeriesInfo, marks_kind
from apps.forecasting.models.forecast import Forecast
from apps.forecasting.visualise import draw_attention, draw_error_by_step, draw_forecast
from backbones.sequence.config import SoftmaxMixerConfig
from checkpoints.keymap import KeyMap
from checkpoints.official.forecasting import KEYMAPS
from datamodules.forecasting.info import ForecastingInfo

Batch = Mapping[str, Tensor]


class ForecastingModule(GraftModule):
    """A forecaster in Lightning's loop.

    Args:
        config: The app's configuration.
        info: The datamodule's ``info``, or the plain dict a checkpoint keeps of it.
    """

    config: ForecastingConfig

    def __init__(self, config: ForecastingConfig, info: ForecastingInfo | Mapping[str, Any]) -> None:
        self.series = ForecastingInfo.from_plain(info) if isinstance(info, Mapping) else info
        super().__init__(config, self.series)

    def build_model(self) -> nn.Module:
        """The configured model for the sizes of this series."""
        series = self.series
        sizes = SeriesInfo(
            look_back=series.look_back,
            horizon=series.horizon,
            variates=series.variates,
            outputs=series.outputs,
            mark_features=series.mark_features,
            frequency=series.frequency,
            marks="integer" if series.marks == "integer" else "features",
        )
        model: nn.Module = self.config.model.build(sizes)
        return model

    @property
    def levels(self) -> tuple[float, ...]:
        """Quantile levels of the model; empty for point forecasts."""
        return tuple(getattr(self.config.model, "quantiles", ()))

    def forecast(self, batch: Batch) -> Forecast:
        """The model's forecast of a batch of windows."""
        marked = self.series.mark_features > 0
        history_marks = batch["history_marks"] if marked else None
        forecast: Forecast = self.model(batch["history"], history_marks, batch["future_marks"] if marked else None)
        return forecast

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one batch, and its parts."""
        return {"loss": self._loss(self.forecast(batch), batch["future"])}

    def _loss(self, forecast: Forecast, target: Tensor) -> Tensor:
        if forecast.quantiles is not None:
            return pinball_loss(forecast.quantiles, target, self.levels)
        return point_loss(forecast.values, target, self.config.loss)

    def predict_batch(self, batch: Batch) -> Forecast:
        """The forecast that metrics and pictures read."""
        return self.forecast(batch)

    def validation_loss(self, batch: Batch, prediction: Forecast) -> Tensor:
        """The training loss on a validation batch; early stopping watches its mean."""
        return self._loss(prediction, batch["future"])

    def metric_suite(self, split: str) -> ForecastMetrics:
        """Streaming metrics of a split."""
        return ForecastMetrics(self.series, self.levels)

    def sample_scores(self, batch: Batch, prediction: Forecast) -> Tensor:
        """MSE of each window, [B]."""
        return (prediction.values - batch["future"]).square().mean(dim=(1, 2))

    def picture_candidates(self, batch: Batch, indices: Sequence[int]) -> list[int]:
        """Windows whose horizons do not overlap: those of one hour apart look all the same."""
        return [place for place, index in enumerate(indices) if index % self.series.horizon == 0]

    def unbatch(self, prediction: Forecast, index: int) -> Forecast:
        """The forecast of one window of a batch, on the CPU."""
        quantiles = prediction.quantiles
        return Forecast(
            prediction.values[index].detach().float().cpu(),
            None if quantiles is None else quantiles[index].detach().float().cpu(),
        )

    def render(self, sample: Batch, prediction: Forecast) -> list[Picture]:
        """One window: history, truth, forecast, baseline and band, in units."""
        window, series = int(sample["window"]), self.series
        history, future = sample["history"].float().cpu(), sample["future"].float().cpu()
        naive = seasonal_naive(history[None], len(future), series.season, series.outputs)[0]
        band = None
        if prediction.quantiles is not None:
            band = (self._units(prediction.quantiles[..., 0]), self._units(prediction.quantiles[..., -1]))
        error = float((prediction.values - future).square().mean())
        figure = draw_forecast(
            self._units(history[:, -series.outputs :]),
            self._units(prediction.values),
            series.output_names,
            truth=self._units(future),
            naive=self._units(naive),
            band=band,
            title=f"window {window}, MSE {error:.3f}",
        )
        return [Picture(f"window_{window}", f"Window {window} of the split, MSE {error:.3f} (scaled).", figure)]

    def summary_pictures(self) -> list[Picture]:
        """Error by step of the horizon."""
        suite = self.suites.get("test") or self.suites.get("val")
        if suite is None or not suite.count():
            return []
        figure = draw_error_by_step(suite.tables()["error by step"])
        return [Picture("error_by_step", "Mean absolute error by step of the horizon.", figure)]

    def sample_pictures(self, sample: Batch) -> list[Picture]:
        """Attention between the variates of one window, where the model has it."""
        attention = getattr(self.model, "variate_attention", None)
        if attention is None or not isinstance(getattr(self.config.model, "mixer", None), SoftmaxMixerConfig):
            return []
        marks = sample["history_marks"][None].to(self.device) if self.series.mark_features else None
        weights = attention(sample["history"][None].to(self.device), marks)
        figure = draw_attention(weights[0].float().cpu().numpy(), self.series.names)
        caption = "Attention between variates in the last layer of the best window, mean over heads."
        return [Picture("attention", caption, figure)]

    def official_keymap(self) -> KeyMap | None:
        """The key map of the paper's own weights, where there are any."""
        return KEYMAPS.get(MODELS.name_of(self.config.model))

    def _units(self, values: Tensor) -> Any:
        """Scaled [steps, outputs] to units, as an array."""
        mean, scale = torch.tensor(self.series.output_mean), torch.tensor(self.series.output_scale)
        return (values.detach().float().cpu() * scale + mean).numpy()

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Random windows of the configured sizes, for benchmarks and exports."""
        series = self.series
        generator = torch.Generator().manual_seed(0)

        def numbers(steps: int, columns: int) -> Tensor:
            return torch.randn(batch_size, steps, columns, generator=generator)

        def marks(steps: int) -> Tensor:
            if marks_kind(self.config.model) == "integer":
                return torch.ones(batch_size, steps, series.mark_features)
            return torch.rand(batch_size, steps, series.mark_features, generator=generator) - 0.5

        return {
            "history": numbers(series.look_back, series.variates),
            "history_marks": marks(series.look_back),
            "future": numbers(series.horizon, series.outputs),
            "future_marks": marks(series.horizon),
            "window": torch.arange(batch_size),
        }

    def export_spec(self) -> ExportSpec:
        """Any number of windows in one call; sizes of look-back and horizon are fixed."""
        keys = ["history", *(["history_marks", "future_marks"] if self.series.mark_features else [])]
        examples = []
        for size in (2, 1, 5):
            batch = self.example_batch(size)
            examples.append({key: batch[key] for key in keys})
        outputs = ["forecast", *(["quantiles"] if self.levels else [])]
        return ExportSpec(
            module=_Outputs(self.model, bool(self.levels)),
            examples=examples,
            dynamic={key: {0: "batch"} for key in keys},
            outputs=outputs,
            notes={"variates": ", ".join(self.series.names), "values": "standardised by the training rows"},
        )


class _Outputs(nn.Module):
    """A model that returns tensors instead of a named tuple with None in it."""

    def __init__(self, model: nn.Module, with_quantiles: bool) -> None:
        super().__init__()
        self.model = model
        self.with_quantiles = with_quantiles

    def forward(
        self, history: Tensor, history_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Point forecast, and quantiles where the model has them."""
        forecast = self.model(history, history_marks, future_marks)
        return (forecast.values, forecast.quantiles) if self.with_quantiles else forecast.values
