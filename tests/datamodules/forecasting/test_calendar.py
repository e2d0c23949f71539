"""Calendar features, frequencies and the timestamps that follow a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from datamodules.forecasting.calendar import (
    calendar_marks,
    default_season,
    frequency_offset,
    future_index,
    future_marks,
    integer_marks,
    mark_count,
    normalise_frequency,
    time_features,
)
from graftwork.errors import ConfigError

FAMILIES = {
    "h": "hour",
    "H": "hour",
    "60min": "hour",
    "15min": "minute",
    "min": "minute",
    "T": "minute",
    "s": "second",
    "30s": "second",
    "D": "day",
    "24h": "day",
    "B": "business",
    "W": "week",
    "w-mon": "week",
    "MS": "month",
    "ME": "month",
    "M": "month",
    "BME": "month",
    "QS": "quarter",
    "QE-FEB": "quarter",
    "YS": "year",
    "A": "year",
}


@pytest.mark.parametrize("letter", list("sthdbwm"))
def test_features_equal_the_reference(shared: Path, letter: str) -> None:
    golden = load_file(shared / "goldens/forecasting/time_features.safetensors")
    parts = zip(
        ("year", "month", "day", "hour", "minute", "second"), golden[f"input.timestamps.{letter}"].T, strict=True
    )
    index = pd.DatetimeIndex(pd.to_datetime(pd.DataFrame(dict(parts))))
    np.testing.assert_allclose(time_features(index, letter), golden[f"output.timeF.{letter}"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(integer_marks(index), golden[f"output.integer.{letter}"])


def test_hourly_features_by_hand() -> None:
    index = pd.DatetimeIndex(["2024-12-31 23:30"])  # a Tuesday, day 366
    np.testing.assert_allclose(time_features(index, "h"), [[0.5, 1 / 6 - 0.5, 0.5, 0.5]])
    assert integer_marks(index).tolist() == [[12, 31, 1, 23, 2]]


@pytest.mark.parametrize(("frequency", "family"), FAMILIES.items())
def test_spelling_of_frequencies(frequency: str, family: str) -> None:
    assert normalise_frequency(frequency) == family
    features = time_features(pd.date_range("2024-01-01", periods=3, freq=frequency_offset(frequency)), frequency)
    assert features.shape == (3, mark_count(frequency))


@pytest.mark.parametrize("frequency", ["", "foo", "hour of day", "0h", "-1h", "WOM-3FRI"])
def test_unknown_frequency_names_examples(frequency: str) -> None:
    with pytest.raises(ConfigError, match=r"frequency '.*' .*15min"):
        normalise_frequency(frequency)


@given(
    st.datetimes(
        min_value=pd.Timestamp("1900-01-01").to_pydatetime(), max_value=pd.Timestamp("2200-01-01").to_pydatetime()
    ),
    st.sampled_from(["s", "min", "15min", "h", "D", "B", "W", "MS", "QS"]),
)
def test_features_stay_in_range(moment: object, frequency: str) -> None:
    features = time_features(pd.DatetimeIndex([moment]), frequency)
    assert np.abs(features).max() <= 0.5


def test_yearly_series_have_no_features() -> None:
    assert time_features(pd.date_range("2000", periods=4, freq="YS"), "YS").shape == (4, 0)


def test_marks_follow_the_configuration() -> None:
    index = pd.date_range("2024-01-01", periods=4, freq="h")
    for marks in ("timeF", "integer", "none"):
        assert calendar_marks(index, "h", marks).shape == (4, mark_count("h", marks))
    assert mark_count("h", "integer") == 5


@pytest.mark.parametrize(
    ("frequency", "season"),
    {
        "h": 24,
        "15min": 96,
        "2h": 12,
        "10min": 144,
        "D": 7,
        "B": 5,
        "W": 52,
        "MS": 12,
        "QE": 4,
        "YS": 1,
        "s": 3600,
    }.items(),
)
def test_season_of_a_frequency(frequency: str, season: int) -> None:
    assert default_season(frequency) == season


@pytest.mark.parametrize(
    ("end", "frequency", "expected"),
    [
        ("2024-01-31", "ME", ["2024-02-29", "2024-03-31"]),
        ("2024-01-01", "MS", ["2024-02-01", "2024-03-01"]),
        ("2024-01-15", "MS", ["2024-02-01", "2024-03-01"]),
        ("2024-01-05", "B", ["2024-01-08", "2024-01-09"]),
        ("2024-02-28", "D", ["2024-02-29", "2024-03-01"]),
        ("2024-01-01 12:07", "15min", ["2024-01-01 12:22", "2024-01-01 12:37"]),
        ("2024-01-07", "W-SUN", ["2024-01-14", "2024-01-21"]),
    ],
)
def test_timestamps_go_on(end: str, frequency: str, expected: list[str]) -> None:
    index, marks = future_marks(pd.Timestamp(end), frequency, 2)
    assert index.tolist() == [pd.Timestamp(date) for date in expected]
    np.testing.assert_array_equal(marks, time_features(index, frequency))


def test_hours_and_days_go_on_across_daylight_saving() -> None:
    hours = future_index(pd.Timestamp("2024-03-31 01:00", tz="Europe/Berlin"), "h", 2)
    assert [stamp.hour for stamp in hours] == [3, 4]
    days = future_index(pd.Timestamp("2024-03-30 12:00", tz="Europe/Berlin"), "D", 2)
    assert [stamp.hour for stamp in days] == [12, 12]
    skipped = future_index(pd.Timestamp("2024-03-30 02:30", tz="Europe/Berlin"), "D", 2)
    assert [(stamp.hour, stamp.minute) for stamp in skipped] == [(3, 0), (2, 30)]
