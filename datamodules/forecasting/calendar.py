"""Frequencies, the calendar features of each, and the timestamps that follow a series.

Source: the calendar features of the Informer data protocol, as listed in the long-term forecasting benchmarks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import tzinfo
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BaseOffset

from graftwork.errors import ConfigError

Family = Literal["second", "minute", "hour", "day", "business", "week", "month", "quarter", "year"]

# T rows, M features; every feature is scaled to [-0.5, 0.5]
FEATURES: dict[str, Callable[[pd.DatetimeIndex], NDArray[np.float64]]] = {
    "second": lambda index: _scaled(index.second, 0, 59),
    "minute": lambda index: _scaled(index.minute, 0, 59),
    "hour": lambda index: _scaled(index.hour, 0, 23),
    "weekday": lambda index: _scaled(index.dayofweek, 0, 6),
    "day": lambda index: _scaled(index.day, 1, 30),
    "day of year": lambda index: _scaled(index.dayofyear, 1, 365),
    "month": lambda index: _scaled(index.month, 1, 11),
    "week": lambda index: _scaled(index.isocalendar().week, 1, 52),
}

_HOURLY = ("hour", "weekday", "day", "day of year")
FAMILY_FEATURES: dict[Family, tuple[str, ...]] = {
    "second": ("second", "minute", *_HOURLY),
    "minute": ("minute", *_HOURLY),
    "hour": _HOURLY,
    "day": _HOURLY[1:],
    "business": _HOURLY[1:],
    "week": ("day", "week"),
    "month": ("month",),
    "quarter": ("month",),
    "year": (),
}

INTEGER_MARKS = ("month", "day", "weekday", "hour", "quarter of the hour")

_OFFSET_FAMILY: dict[str, Family] = {
    "D": "day", "B": "business", "C": "business", "W": "week",
    "MS": "month", "ME": "month", "BMS": "month", "BME": "month", "SMS": "month", "SME": "month",
    "QS": "quarter", "QE": "quarter", "BQS": "quarter", "BQE": "quarter",
    "YS": "year", "YE": "year", "BYS": "year", "BYE": "year",
}  # fmt: skip

# spellings of older pandas, of the benchmarks' scripts and of habit; case matters only for ms (millisecond), MS (month)
_OLD_ALIASES = {
    "t": "min", "T": "min", "H": "h", "S": "s", "L": "ms", "d": "D", "b": "B", "w": "W", "m": "ME", "M": "ME",
    "q": "QE", "Q": "QE", "y": "YE", "Y": "YE", "a": "YE", "A": "YE", "AS": "YS", "BM": "BME", "BQ": "BQE", "BA": "BYE",
    "hourly": "h", "daily": "D", "weekly": "W", "monthly": "MS", "quarterly": "QS", "yearly": "YS", "minutely": "min",
}  # fmt: skip

_ALIAS = re.compile(r"^\s*(\d*)\s*([A-Za-z]+)(-[A-Za-z0-9]+)?\s*$")
_EXAMPLES = "s, min, 15min, h, D, B (business days), W, MS (month start), ME (month end), QS or YS"


def frequency_offset(frequency: str) -> BaseOffset:
    """The pandas offset of a frequency.

    Args:
        frequency: Alias with an optional multiple: ``"h"``, ``"15min"``, ``"W-MON"``; old spellings (``"T"``) work too.

    Raises:
        ConfigError: No such frequency, or a step of zero.
    """
    match = _ALIAS.match(frequency)
    try:
        if match is None:
            raise ValueError(frequency)
        count, alias, anchor = match.groups(default="")
        offset = to_offset(f"{count}{_OLD_ALIASES.get(alias, alias)}{anchor.upper()}")
    except ValueError:
        raise ConfigError(f"frequency '{frequency}' is unknown", mend=f"Use one such as {_EXAMPLES}") from None
    if offset.n < 1:
        raise ConfigError(f"frequency '{frequency}' must be a step forward", mend=f"Use one such as {_EXAMPLES}")
    return offset


def tick_length(offset: BaseOffset) -> pd.Timedelta | None:
    """Length of a step of seconds to hours, or None for steps of the calendar (days and up), whose length varies."""
    if isinstance(offset, pd.offsets.Day) or not isinstance(offset, pd.offsets.Tick):
        return None
    return pd.Timedelta(offset.nanos, unit="ns")


def normalise_frequency(frequency: str) -> Family:
    """The family of a frequency, which decides its calendar features.

    A multiple keeps the family of its largest whole unit: 15min is a minute, 60min an hour, 24h a day.

    Raises:
        ConfigError: No such frequency, or one that has no calendar features.
    """
    offset = frequency_offset(frequency)
    step = tick_length(offset)
    if step is not None:
        wholes: tuple[tuple[str, Family], ...] = (("1D", "day"), ("1h", "hour"), ("1min", "minute"))
        for unit, family in wholes:
            if step % pd.Timedelta(unit) == pd.Timedelta(0):
                return family
        return "second"
    prefix = offset.name.split("-")[0]
    if prefix not in _OFFSET_FAMILY:
        raise ConfigError(f"frequency '{frequency}' has no calendar features", mend=f"Use one such as {_EXAMPLES}")
    return _OFFSET_FAMILY[prefix]


def mark_count(frequency: str, marks: str = "timeF") -> int:
    """Number of calendar features of a frequency.

    Args:
        frequency: See :func:`frequency_offset`.
        marks: ``"timeF"``, ``"integer"`` or ``"none"``.
    """
    if marks == "timeF":
        return len(FAMILY_FEATURES[normalise_frequency(frequency)])
    return len(INTEGER_MARKS) if marks == "integer" else 0


def time_features(index: pd.DatetimeIndex, frequency: str) -> NDArray[np.float64]:
    """Calendar features scaled to [-0.5, 0.5].

    Args:
        index: Timestamps; those with a zone give the features of its wall clock.
        frequency: Decides the set of features, see :data:`FAMILY_FEATURES`.

    Returns:
        [T, M]; M is 0 for yearly series.

    Source: the Informer data protocol. Its hourly set has no month; 0.5 is reached only in a leap year or a 53rd week.
    """
    names = FAMILY_FEATURES[normalise_frequency(frequency)]
    if not names:
        return np.zeros((len(index), 0))
    return np.stack([FEATURES[name](index) for name in names], axis=1)


def integer_marks(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    """Calendar numbers for embedding tables.

    Returns:
        [T, 5]: month 1..12, day 1..31, weekday 0..6 (Monday 0), hour 0..23, quarter of the hour 0..3.
    """
    columns = (index.month, index.day, index.dayofweek, index.hour, index.minute // 15)
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


def calendar_marks(index: pd.DatetimeIndex, frequency: str, marks: str) -> NDArray[np.float64]:
    """The calendar features of a configuration.

    Args:
        index: Timestamps.
        frequency: See :func:`frequency_offset`.
        marks: ``"timeF"``, ``"integer"`` or ``"none"``.

    Returns:
        [T, M] with M = ``mark_count(frequency, marks)``.
    """
    if marks == "timeF":
        return time_features(index, frequency)
    if marks == "integer":
        return integer_marks(index).astype(np.float64)
    return np.zeros((len(index), 0))


def default_season(frequency: str) -> int:
    """Rows until the calendar repeats itself.

    A day for hours and minutes (hourly 24, 15 min 96), an hour for seconds, a week for days (7, business days 5), a
    year for weeks (52), months (12) and quarters (4); 1 for years.
    """
    offset = frequency_offset(frequency)
    family = normalise_frequency(frequency)
    step = tick_length(offset)
    if step is not None:
        whole = {"second": "1h", "day": "7D"}.get(family, "1D")
        return max(1, round(pd.Timedelta(whole) / step))
    periods = {"day": 7, "business": 5, "week": 52, "month": 12, "quarter": 4, "year": 1}
    return max(1, round(periods[family] / offset.n))


def future_index(end: pd.Timestamp, frequency: str, horizon: int) -> pd.DatetimeIndex:
    """The timestamps after ``end``.

    Args:
        end: Last timestamp of the history; need not lie on the frequency's grid.
        frequency: See :func:`frequency_offset`.
        horizon: Number of timestamps.

    Returns:
        [horizon] timestamps, the first one step after ``end``, in the zone of ``end``. Steps of a day or more keep the
        hour of the wall clock across daylight saving time.
    """
    offset = frequency_offset(frequency)
    if tick_length(offset) is not None:
        return pd.date_range(end, periods=horizon + 1, freq=offset)[1:]
    clock = pd.date_range(end.tz_localize(None) + offset, periods=horizon, freq=offset)
    return local_times(clock, end.tz)


def local_times(clock: pd.DatetimeIndex, zone: tzinfo | None) -> pd.DatetimeIndex:
    """Wall-clock times as timestamps of a zone; an hour that daylight saving skips moves to the next that exists."""
    return clock.tz_localize(zone, ambiguous=np.ones(len(clock), dtype=bool), nonexistent="shift_forward")


def future_marks(
    end: pd.Timestamp, frequency: str, horizon: int, marks: str = "timeF"
) -> tuple[pd.DatetimeIndex, NDArray[np.float64]]:
    """Timestamps and calendar features of the rows to forecast.

    Args:
        end: Last timestamp of the history.
        frequency: See :func:`frequency_offset`.
        horizon: Number of rows.
        marks: ``"timeF"``, ``"integer"`` or ``"none"``.

    Returns:
        ([horizon] timestamps, [horizon, M] features).
    """
    index = future_index(end, frequency, horizon)
    return index, calendar_marks(index, frequency, marks)


def _scaled(field: object, first: int, span: int) -> NDArray[np.float64]:
    return (np.asarray(field, dtype=np.float64) - first) / span - 0.5
