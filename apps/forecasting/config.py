"""Options of the forecasting app. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from apps.core.config import AppConfig, OptimConfig, ScheduleConfig, TrainerConfig
from apps.core.task import Task
from apps.forecasting.models.config import MODELS, marks_kind
from backbones.sequence.config import MIXERS
from datamodules.forecasting.config import DATASETS
from graftwork.components import component


def _optim() -> OptimConfig:
    return OptimConfig(name="adam", lr=5e-4, weight_decay=0.0)


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(name="cosine", warmup_steps=0)


def _trainer() -> TrainerConfig:
    return TrainerConfig(max_epochs=10, patience=3)


@dataclass(kw_only=True)
class ForecastingConfig(AppConfig):
    """Forecast every variate of a multivariate series over a horizon from a look-back window."""

    data: Any = component(DATASETS)
    model: Any = component(MODELS, default="itransformer")
    loss: Literal["mse", "mae", "huber"] = "mse"
    """Training loss of point forecasts on scaled values; models with quantiles are trained on the pinball loss."""
    optim: OptimConfig = field(default_factory=_optim)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=_schedule)
    """Learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=_trainer)
    """Training loop."""

    def problems(self) -> Iterator[str]:
        """Values of data and model that contradict each other."""
        yield from super().problems()
        label = getattr(self.model, "label_length", None)
        if label is not None and label > self.data.look_back:
            yield (
                f"model.label_length={label} is longer than data.look_back={self.data.look_back}; "
                f"try --model.label_length {self.data.look_back // 2}"
            )
        wanted = "integer" if marks_kind(self.model) == "integer" else "timeF"
        if self.data.marks not in ("none", wanted):
            embed = getattr(self.model, "embed", "timeF")
            yield f"data.marks={self.data.marks} does not fit model.embed={embed}; try --data.marks {wanted}"


TASK = Task(
    name="forecasting",
    title="long-term forecasting of multivariate time series",
    config=ForecastingConfig,
    module="apps.forecasting.module:ForecastingModule",
    predictor="apps.forecasting.predict:SeriesPredictor",
    registries={"models": MODELS, "mixers": MIXERS, "datasets": DATASETS},
    monitor="val/loss",
    mode="min",
)
