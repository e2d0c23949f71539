"""Splits: the benchmark's counts, shares, dates, and what a too short series is told."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.forecasting.borders import (
    SPLITS,
    Span,
    date_borders,
    ett_borders,
    ratio_borders,
    require_windows,
    rows_needed,
)
from graftwork.errors import DataError

SHARES = st.tuples(*[st.floats(0.05, 1.0)] * 3).map(lambda s: tuple(x / sum(s) for x in s))


def test_ett_hourly_is_the_published_split() -> None:
    borders = ett_borders(1)
    assert [borders.rows(split, 96) for split in SPLITS] == [Span(0, 8640), Span(8544, 11520), Span(11424, 14400)]
    assert [borders.windows(split, 96, 96) for split in SPLITS] == [8449, 2785, 2785]


def test_ett_quarter_hours_are_four_times_as_long() -> None:
    borders = ett_borders(4)
    assert [borders.rows(split, 336) for split in SPLITS] == [Span(0, 34560), Span(34224, 46080), Span(45744, 57600)]
    assert [borders.windows(split, 336, 720) for split in SPLITS] == [34560 - 336 - 719, 11520 - 719, 11520 - 719]


@pytest.mark.parametrize(
    ("rows", "train", "val", "test"), [(26304, 18412, 2632, 5260), (7588, 5311, 760, 1517), (90, 62, 10, 18)]
)
def test_shares_round_as_the_benchmarks_do(rows: int, train: int, val: int, test: int) -> None:
    borders = ratio_borders(rows, (0.7, 0.1, 0.2))
    assert [len(borders.span(split)) for split in SPLITS] == [train, val, test]


def test_shares_below_one_leave_the_last_rows_unused() -> None:
    assert ratio_borders(1000, (0.5, 0.2, 0.2)).test == Span(700, 900)


@given(st.integers(10, 5000), SHARES, st.integers(1, 50), st.integers(1, 50))
def test_no_split_forecasts_rows_of_another(
    rows: int, split: tuple[float, float, float], look_back: int, horizon: int
) -> None:
    borders = ratio_borders(rows, split)
    assert (borders.train.start, borders.test.stop) == (0, rows)
    assert (borders.train.stop, borders.val.stop) == (borders.val.start, borders.test.start)
    for name in SPLITS:
        span, read, count = borders.span(name), borders.rows(name, look_back), borders.windows(name, look_back, horizon)
        if count and borders.windows("train", look_back, horizon):
            futures = [Span(read.start + i + look_back, read.start + i + look_back + horizon) for i in (0, count - 1)]
            assert futures[-1].stop == span.stop  # the last window ends at the border
            assert futures[0].start == (span.start if name != "train" else look_back)  # the first begins there


@given(SHARES, st.integers(1, 60), st.integers(1, 60))
def test_rows_needed_is_enough_and_least(split: tuple[float, float, float], look_back: int, horizon: int) -> None:
    def enough(rows: int) -> bool:
        return all(ratio_borders(rows, split).windows(name, look_back, horizon) for name in SPLITS)

    rows = rows_needed(split, look_back, horizon)
    assert enough(rows)
    assert not enough(rows - 1)


def test_too_few_rows_says_found_needed_and_mend() -> None:
    with pytest.raises(DataError) as caught:
        require_windows(
            ratio_borders(300, (0.7, 0.1, 0.2)), 300, 96, 96, "my.csv", rows_needed((0.7, 0.1, 0.2), 96, 96)
        )
    message = str(caught.value)
    assert "my.csv: 300 rows are too few: val gets 30 and needs at least horizon 96" in message
    assert f"needs {rows_needed((0.7, 0.1, 0.2), 96, 96)} rows in all" in message
    assert "--data.horizon" in message


def test_file_shorter_than_the_published_split() -> None:
    with pytest.raises(DataError, match="10000 rows found, the split needs 14400"):
        require_windows(ett_borders(1), 10000, 96, 96, "ETTh1.csv")


def test_dates_are_the_first_of_their_split() -> None:
    index = pd.date_range("2024-01-01", periods=100, freq="D")
    borders = date_borders(index, ("2024-02-01", "2024-03-01"))
    assert (index[borders.val.start], index[borders.test.start]) == (
        pd.Timestamp("2024-02-01"),
        pd.Timestamp("2024-03-01"),
    )
    assert borders.test.stop == 100


def test_dates_in_the_zone_of_the_series() -> None:
    index = pd.date_range("2024-01-01", periods=100, freq="h", tz="Europe/Berlin")
    assert date_borders(index, ("2024-01-02", "2024-01-03T00:00+00:00")).val == Span(24, 49)


def test_date_outside_the_series() -> None:
    with pytest.raises(DataError, match=r"2030-01-01 is outside the series, which runs from 2024-01-01"):
        date_borders(pd.date_range("2024-01-01", periods=100, freq="D"), ("2024-02-01", "2030-01-01"))
