"""Forecasts of new data: what is read, what is written, and what is refused. The models are untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apps.forecasting.config import ForecastingConfig
from apps.forecasting.models.config import LastValueConfig
from apps.forecasting.module import ForecastingModule
from apps.forecasting.predict import SeriesPredictor
from datamodules.forecasting.config import CsvConfig
from datamodules.forecasting.info import ForecastingInfo

NAMES = ("b", "c", "a")  # of the file: a, b, c


def predictor(names: tuple[str, ...] = NAMES, **changes: object) -> SeriesPredictor:
    """A last-value forecaster of hourly data: 8 rows back, 4 ahead."""
    count = len(names)
    values = {
        "look_back": 8,
        "horizon": 4,
        "names": names,
        "outputs": count,
        "mark_features": 0,
        "marks": "none",
        "frequency": "h",
        "mean": tuple(10.0 * place for place in range(count)),
        "scale": (2.0,) * count,
        "season": 24,
        "naive_error": (1.0,) * count,
        "columns": tuple(sorted(names)),
    }
    data = CsvConfig(marks="none", look_back=8, horizon=4, **changes.pop("data", {}))  # type: ignore[arg-type]
    config = ForecastingConfig(data=data, model=LastValueConfig())
    return SeriesPredictor(ForecastingModule(config, ForecastingInfo(**{**values, **changes})))  # type: ignore[arg-type]


def frame(rows: int = 12, frequency: str = "h", **columns: object) -> pd.DataFrame:
    """Columns a = 0, b = 10, c = 20 in the first row, growing by one."""
    steps = np.arange(float(rows))
    index = pd.date_range("2024-01-01", periods=rows, freq=frequency)
    return pd.DataFrame({"date": index, "a": steps, "b": 10 + steps, "c": 20 + steps, **columns})


def write(folder: Path, table: pd.DataFrame, name: str = "new.csv") -> Path:
    """A frame as a CSV file."""
    table.to_csv(folder / name, index=False)
    return folder / name


def test_arrays_have_the_order_of_the_file() -> None:
    ours = predictor()
    by_frame = ours(frame()).frame()
    by_array = ours(frame()[["a", "b", "c"]].to_numpy(), start="2024-01-01").frame()
    pd.testing.assert_frame_equal(by_frame, by_array)
    assert by_array["a"].tolist() == pytest.approx([11.0] * 4)
    assert predictor(columns=())(np.array([[1.0, 2.0, 3.0]] * 8)).frame()["a"].iloc[0] == pytest.approx(3.0)
