"""Data frames and arrays as input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from datamodules.forecasting.config import CsvConfig, EttConfig
from datamodules.forecasting.frame import series_from_array, series_from_frame
from graftwork.errors import DataError, ShapeError

INDEX = pd.date_range("2024-01-01", periods=5, freq="15min")


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"date": INDEX, "a": np.arange(5), "b": np.arange(5.0), **columns})


@pytest.mark.parametrize(
    "given",
    [
        frame(),
        frame().set_index("date"),
        frame().astype({"date": str}),
        frame().astype({"a": "Int64", "b": "float32"}),
        frame().astype({"a": object}),
        frame().assign(a=["0", "1", "2", "3", "4"]),
        frame().set_index("date").rename_axis(None),
    ],
    ids=["column", "index", "text dates", "nullable", "object", "numbers as text", "unnamed index"],
)
def test_kinds_of_frames(given: pd.DataFrame) -> None:
    before = given.copy()
    series = series_from_frame(given)
    assert (series.names, series.frequency) == (("a", "b"), "15min")
    assert series.values.tolist() == [[i, i] for i in range(5)]
    assert series.index.tolist() == INDEX.tolist()
    pd.testing.assert_frame_equal(given, before)


def test_periods_and_zones() -> None:
    months = frame().set_index(pd.period_range("2024-01", periods=5, freq="M")).drop(columns="date")
    assert series_from_frame(months).frequency == "MS"
    local = series_from_frame(frame(date=INDEX.tz_localize("Asia/Tokyo")))
    assert (str(local.index.tz), local.index[0].hour) == ("Asia/Tokyo", 0)


def test_any_dataset_lends_its_features() -> None:
    config = EttConfig(features="S", target="a")
    assert series_from_frame(frame(), config).names == ("a",)
    with pytest.raises(DataError, match="unknown target column 'c'"):
        series_from_frame(frame(), CsvConfig(target="c"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (frame(a=["0", "1", "x", "3", "4"]), "cells of column 'a' that are no number: 1 of 5, first at row 2: 'x'"),
        (frame(date=[*INDEX[:4], None]), "no date: 1 of 5, first at row 4: an empty cell"),
        (frame(a=[0, 1, np.nan, 3, 4]), "empty cells: 1, in 'a' 1"),
        (frame(a=[0, 1, np.inf, 3, 4]), "infinite values in 'a' 1"),
        (frame().drop(columns="date"), "unknown date column 'date'"),
        (frame().set_axis(["date", "a", "a"], axis=1), "column 'a' occurs 2 times"),
        (frame().head(0), "no rows"),
        (frame()[["date"]], "only the date column"),
        (frame(a=INDEX), "cells of column 'a' that are no number: 5 of 5"),
    ],
)
def test_broken_frames(given: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        series_from_frame(given)


def test_arrays() -> None:
    series = series_from_array(np.arange(6).reshape(3, 2), "D", "2024-02-28", names=("a", "b"))
    assert series.index.tolist() == list(pd.to_datetime(["2024-02-28", "2024-02-29", "2024-03-01"]))
    assert series.names == ("a", "b")
    assert series_from_array([1.0, 2.0]).values.shape == (2, 1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3, 4)])
def test_arrays_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \[T, N\] or \[T\]"):
        series_from_array(np.zeros(shape))


def test_arrays_with_holes() -> None:
    with pytest.raises(DataError, match="not finite: 'x1' 1"):
        series_from_array([[1.0, np.nan]])
