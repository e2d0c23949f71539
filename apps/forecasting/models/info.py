"""The sizes a forecasting model is built for. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from graftwork.errors import ConfigError, all_problems


@dataclass(frozen=True)
class SeriesInfo:
    """What the data tells a model before it is built.

    Args:
        look_back: L, observed steps.
        horizon: S, steps to forecast.
        variates: N, columns of the history.
        outputs: Columns of the forecast; the last ones of the history (the target comes last).
        mark_features: M, calendar features of a step; 0 for series without dates.
        frequency: Sampling frequency: s, t (or 15min), h, d, b, w, m.
        marks: ``features``: M real numbers in [-0.5, 0.5]; ``integer``: month, day, weekday, hour, minute // 15.
    """

    look_back: int
    horizon: int
    variates: int
    outputs: int
    mark_features: int = 4
    frequency: str = "h"
    marks: Literal["features", "integer"] = "features"

    def __post_init__(self) -> None:
        for name in ("look_back", "horizon", "variates", "outputs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.outputs > self.variates:
            raise ConfigError(f"outputs={self.outputs} exceeds variates={self.variates}")


def refuse(problems: Iterable[str]) -> None:
    """Raise one error that lists all problems; do nothing if there are none.

    Raises:
        ConfigError: There is at least one.
    """
    found = list(problems)
    if found:
        raise all_problems(found)
