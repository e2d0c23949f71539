"""What a forecasting dataset tells models, metrics and predictors about itself. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class ForecastingInfo:
    """Sizes, names, scale and calendar of a dataset; plain values, so that a checkpoint can keep it.

    Args:
        look_back: Rows the model sees.
        horizon: Rows it forecasts.
        names: Columns of the history, the target last.
        outputs: How many of the last columns are forecast.
        mark_features: Calendar features of a row; 0 for none.
        marks: Kind of the calendar features.
        frequency: pandas alias of the step: ``"h"``.
        mean: Mean of each column over the training rows, in units.
        scale: Population standard deviation of each column over the training rows, 1 for a constant column.
        season: Rows per season of the seasonal-naive baseline.
        naive_error: In-sample mean absolute error of the seasonal-naive forecast of each output, in units.
        dataset: Name for titles.
        columns: The names as the file orders them, or as ``data.columns`` does where it is set; arrays of new data have
            this order. Empty for that of ``names``.
    """

    look_back: int
    horizon: int
    names: tuple[str, ...]
    outputs: int
    mark_features: int
    marks: Literal["timeF", "integer", "none"]
    frequency: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    season: int
    naive_error: tuple[float, ...]
    dataset: str = ""
    columns: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ForecastingInfo:
        """The inverse of :meth:`plain`."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in plain.items() if key in known
        }
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """Lists, numbers and strings only."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @property
    def variates(self) -> int:
        """Columns of the history."""
        return len(self.names)

    @property
    def array_columns(self) -> tuple[str, ...]:
        """Columns of an array of new data, in order."""
        return self.columns or self.names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Columns of the forecast."""
        return self.names[-self.outputs :]

    @property
    def output_mean(self) -> tuple[float, ...]:
        """Mean of each forecast column."""
        return self.mean[-self.outputs :]

    @property
    def output_scale(self) -> tuple[float, ...]:
        """Scale of each forecast column."""
        return self.scale[-self.outputs :]
