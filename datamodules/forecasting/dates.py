"""Dates of a table: reading them in the many ways they are written, and putting them into a time zone."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_string_dtype

from graftwork.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_OFFSET = r"\d\d:\d\d(?::\d\d(?:\.\d+)?)?\s*(Z|UTC|GMT|[+-]\d\d:?\d\d)$"
OFFSETS_TEXT = "dates of column '{}' have several UTC offsets ({}), read as UTC; set --data.timezone to their zone"
_ZERO = {"Z": "+0000", "UTC": "+0000", "GMT": "+0000", "-0000": "+0000"}
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?:\s*[APap][Mm])?"
_EITHER_ORDER = r"^\s*\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b"
_DATE_MEND = "Write dates like 2024-01-31 13:00, or give their format: --data.date_format '%d.%m.%Y %H:%M'"
_FORMAT_MEND = "Write it from %Y %m %d %H %M %S %z, such as '%d.%m.%Y %H:%M', or drop it"
_DIGITS = {4: {"format": "%Y"}, 6: {"format": "%Y%m"}, 8: {"format": "%Y%m%d"}}
_EPOCH = {9: "s", 10: "s", 12: "ms", 13: "ms", 15: "us", 16: "us", 18: "ns", 19: "ns"}


def parse_timestamps(
    cells: pd.Series, column: str, where: str, date_format: str | None = None, first_line: int | None = None
) -> pd.DatetimeIndex:
    """Read a column of dates.

    Dates with an offset become UTC. Eight digits are read as YYYYMMDD, four as years, six as YYYYMM, 9 or more as time
    since 1970 in s, ms, us or ns.

    Args:
        cells: Text, numbers or timestamps.
        column: Name of the column, for messages.
        where: File, for messages.
        date_format: strptime format; recognised if omitted.
        first_line: Line of the first cell in the file; messages count rows from 0 if omitted.

    Raises:
        ConfigError: ``date_format`` is no format.
        DataError: A cell is no date; the message has its line and text.
    """
    if isinstance(cells.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(cells.dtype):
        return _all_dates(pd.DatetimeIndex(cells), cells, column, where, first_line)
    text = cells.astype("string").str.strip().str.replace(r"^(\d+)\.0*$", r"\1", regex=True)
    if text.str.fullmatch(_CLOCK).fillna(False).all():
        raise DataError(f"column '{column}' has times without dates, such as '{text.iloc[0]}'", where, _DATE_MEND)
    aware = text.str.contains(_OFFSET.replace("(Z", "(?:Z"), regex=True).fillna(False)
    if aware.any() and not aware.all():
        row = int(np.argmin(aware.to_numpy(dtype=bool)))
        raise DataError(
            f"column '{column}' mixes dates with and without a UTC offset, first without at "
            f"{place_of(row, first_line)}: '{text.iloc[row]}'",
            where,
            "Write all dates with an offset, or none",
        )
    ways = [{"format": date_format}] if date_format else _ways(text)
    utc = bool(aware.any()) or "%z" in (date_format or "")
    try:
        tries = [_convert(text, utc, way) for way in ways]
    except (ValueError, re.error) as error:
        if not date_format:
            raise
        what = f"data.date_format='{date_format}' is no format of dates: {str(error).splitlines()[0]}"
        raise ConfigError(what, mend=_FORMAT_MEND) from error
    best = min(tries, key=lambda parsed: int(np.sum(parsed.isna())))  # the first of equals
    if not date_format and len(tries) > 1:
        best = _day_or_month_first(text, best, tries[-1], column, where)
    return _all_dates(best, text, column, where, first_line)


def _ways(text: pd.Series) -> list[dict[str, Any]]:
    lengths = set(text.str.len()) if text.str.fullmatch(r"\d+").fillna(False).all() else set()
    if len(lengths) == 1 and (way := _DIGITS.get(next(iter(lengths)))):
        return [way]
    if lengths and all(length in _EPOCH for length in lengths):
        return [{"unit": _EPOCH[max(lengths)]}]
    return [{}, {"format": "ISO8601"}, {"dayfirst": True}]


def _convert(text: pd.Series, aware: bool, way: dict[str, Any]) -> pd.DatetimeIndex:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns about guessed formats; failures are reported here instead
        cells = pd.to_numeric(text) if "unit" in way else text.astype(object).where(text.notna(), None)
        return pd.DatetimeIndex(pd.to_datetime(cells, errors="coerce", utc=aware, **way))


def _day_or_month_first(
    text: pd.Series, best: pd.DatetimeIndex, day_first: pd.DatetimeIndex, column: str, where: str
) -> pd.DatetimeIndex:
    """Settle dates such as 01/02/2024, which both orders can read."""
    if not text.str.contains(_EITHER_ORDER, regex=True).fillna(False).all():
        return best
    if best.isna().any() or day_first.isna().any() or best.equals(day_first):
        return best
    chosen, order = (day_first, "day") if "." in str(text.iloc[0])[:6] else (best, "month")
    message = "%s: column '%s' could be day or month first; read %s first, as %s. Settle it with --data.date_format"
    logger.warning(message, where, column, order, chosen[0])
    return chosen


def _all_dates(
    parsed: pd.DatetimeIndex, cells: pd.Series, column: str, where: str, first_line: int | None
) -> pd.DatetimeIndex:
    bad = np.asarray(parsed.isna())
    if not bad.any():
        return parsed
    row = int(np.argmax(bad))
    empty = bool(cells.isna().iloc[row]) or not str(cells.iloc[row]).strip()
    found = "an empty cell" if empty else f"'{cells.iloc[row]}'"
    raise DataError(
        f"cells of column '{column}' that are no date: {int(bad.sum())} of {len(parsed)}, first at "
        f"{place_of(row, first_line)}: {found}",
        where,
        _DATE_MEND,
    )


def mixed_offsets(cells: pd.Series) -> str:
    """The UTC offsets of a column that has several, in words; empty for one or none.

    Args:
        cells: Text or timestamps.
    """
    if isinstance(cells.dtype, pd.DatetimeTZDtype) or not (cells.dtype == object or is_string_dtype(cells.dtype)):
        return ""
    text = cells.astype("string").str.strip()
    offsets = text.str.extract(_OFFSET, expand=False).str.replace(":", "").replace(_ZERO).dropna().unique()
    return ", ".join(sorted(map(str, offsets))) if len(offsets) > 1 else ""


def place_of(row: int, first_line: int | None) -> str:
    """Where a row stands: its line in the file, or its number where there is no file."""
    return f"row {row}" if first_line is None else f"line {row + first_line}"


def to_zone(index: pd.DatetimeIndex, timezone: str | None, where: str) -> pd.DatetimeIndex:
    """Put timestamps into the zone whose calendar counts.

    Args:
        index: Timestamps in file order; UTC where the file gave offsets.
        timezone: Zone name. Timestamps with a zone are converted to it, those without are its local time; None keeps
            all as they are.
        where: File, for messages.

    Raises:
        DataError: A local time does not exist or is ambiguous on a day when the clocks change.
    """
    if timezone is None:
        return index
    if index.tz is not None:
        return index.tz_convert(timezone)
    try:
        return index.tz_localize(timezone, ambiguous="infer", nonexistent="raise")
    except Exception as error:  # pandas 2 raises classes of pytz, pandas 3 ValueError
        raise DataError(
            f"timestamps are no local times of {timezone}: {_first_sentence(error)}",
            where,
            "On the days when clocks change, local time skips or repeats an hour; drop --data.timezone to read the "
            "timestamps as a plain clock, or write them with a UTC offset",
        ) from error


def _first_sentence(error: Exception) -> str:
    return re.split(r"[.,;] ", str(error).replace("\n", " "))[0]
