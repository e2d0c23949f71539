"""Data frames and arrays to series: columns, numbers, timestamps, each checked with an error that says the mend."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from datamodules.forecasting.calendar import frequency_offset
from datamodules.forecasting.config import CsvConfig, SeriesConfig
from datamodules.forecasting.dates import OFFSETS_TEXT, mixed_offsets, parse_timestamps, place_of, to_zone
from datamodules.forecasting.grid import infer_frequency, regularise
from datamodules.forecasting.missing import describe_cells, fill_missing
from datamodules.forecasting.series import Series, target_name
from graftwork.errors import DataError, ShapeError
from graftwork.names import unknown_text

logger = logging.getLogger(__name__)

_DECIMAL_COMMA = re.compile(r"^\s*[+-]?\d+,\d+\s*$")


def series_from_frame(frame: pd.DataFrame, config: SeriesConfig | None = None, where: str = "data frame") -> Series:
    """A data frame as the model's input.

    Args:
        frame: A date column (or a DatetimeIndex) and numeric columns.
        config: Columns, features and policies; the defaults of :class:`CsvConfig` if omitted.
        where: Name of the data, for messages.

    Returns:
        The series with the columns that ``config.features`` reads, target last.

    Raises:
        DataError: Anything about the data that would make a forecast wrong; the message says what to mend.
    """
    rules = config if isinstance(config, CsvConfig) else (config or CsvConfig()).as_csv()
    return complete(to_table(frame, rules, where), rules, where)


def series_from_array(
    values: ArrayLike,
    frequency: str = "h",
    start: str | pd.Timestamp | None = None,
    names: Sequence[str] | None = None,
    where: str = "array",
) -> Series:
    """An array as the model's input.

    Args:
        values: [T, N] or [T], in the units of the training data, columns in the order of training.
        frequency: Step of the rows.
        start: Timestamp of the first row. Without it the calendar is made up (from 2000-01-01 on).
        names: [N] column names; ``x0``, ``x1``, ... if omitted.
        where: Name of the data, for messages.

    Raises:
        ShapeError: Not one or two axes, or no rows or columns.
        DataError: No array of real numbers, a value that is not finite, or a start that is no timestamp.
    """
    array = _floats(values, where)
    shape = list(array.shape)
    array = array[:, None] if array.ndim == 1 else array
    if names is not None and (array.ndim != 2 or len(names) != array.shape[1]):
        raise ShapeError(f"array {shape}; expected [T, {len(names)}] with columns {', '.join(names)}", where)
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"array {shape}; expected [T, N] or [T] with rows and columns", where)
    if start is None:
        logger.info("%s: no start given, its calendar features are those of 2000-01-01 on", where)
    index = _index_from(start, len(array), frequency)
    columns = tuple(names) if names is not None else tuple(f"x{place}" for place in range(array.shape[1]))
    series = Series(array, index, columns, frequency)
    if not np.isfinite(array).all():
        raise DataError(
            f"values that are not finite: {describe_cells(~np.isfinite(array), index, columns)}", where, "Fill them in"
        )
    return series


def _floats(values: ArrayLike, where: str) -> NDArray[np.float64]:
    kind = type(values).__name__
    mend = "Give real numbers as an array [T, N], or a data frame with a date column"
    try:
        raw = np.asarray(values)
        # objects such as Decimal may be numbers; text, dates and complex numbers are not
        if raw.dtype.kind in "biufO" and values is not None:
            return raw.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{kind} is no array of numbers: {str(error).splitlines()[0]}", where, mend) from error
    raise DataError(f"{kind} is no array of real numbers: its cells are {raw.dtype}", where, mend)


def _index_from(start: str | pd.Timestamp | None, rows: int, frequency: str) -> pd.DatetimeIndex:
    offset = frequency_offset(frequency)
    mend = "Give a date such as '2024-01-31 13:00'"
    if not isinstance(start, str | date | np.datetime64 | None):
        raise DataError(f"start={start!r} is no timestamp", mend=mend)
    try:
        first = pd.Timestamp("2000-01-01" if start is None else start)
        if first is not pd.NaT:
            return pd.date_range(first, periods=rows, freq=offset)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"start={start!r} is no timestamp that {rows} rows can follow", mend=mend) from error
    raise DataError(f"start={start!r} is no timestamp", mend=mend)


def to_table(frame: pd.DataFrame, config: CsvConfig, where: str, first_line: int | None = None) -> pd.DataFrame:
    """Columns checked, cells as numbers, dates as a sorted index; gaps and empty cells are left in.

    Args:
        frame: A date column (or a DatetimeIndex) and other columns.
        config: Names and formats.
        where: File, for messages.
        first_line: Line of the first row in its file, for messages.

    Returns:
        float64 columns over timestamps in increasing order.

    Raises:
        DataError: Missing, repeated, textual or infinite columns, unreadable dates.
    """
    frame = frame_to_read(frame, config.date_column)
    _check_columns(frame, config, where)
    names = list(config.columns) or [name for name in frame.columns if name != config.date_column]
    numbers = {name: _numbers(frame[name], name, where, first_line) for name in names}
    dates = parse_timestamps(frame[config.date_column], config.date_column, where, config.date_format, first_line)
    if config.timezone is None and (offsets := mixed_offsets(frame[config.date_column])):
        logger.warning("%s: %s", where, OFFSETS_TEXT.format(config.date_column, offsets))
    table = pd.DataFrame(numbers).set_axis(to_zone(dates, config.timezone, where))
    infinite = np.isinf(table.to_numpy())
    if infinite.any():
        cells = describe_cells(infinite, pd.DatetimeIndex(table.index), names)
        raise DataError(
            f"infinite values in {cells}", where, "Replace them by numbers, or by empty cells and --data.on_missing"
        )
    if not table.index.is_monotonic_increasing:
        row = int(np.argmax(np.diff(table.index.to_numpy()) < np.timedelta64(0))) + 1
        place, now, before = place_of(row, first_line), table.index[row], table.index[row - 1]
        logger.warning("%s: rows are not in time order, first at %s: %s after %s; sorted", where, place, now, before)
        table = table.sort_index(kind="stable")
    return table


def complete(table: pd.DataFrame, config: CsvConfig, where: str) -> Series:
    """A checked table as a series: regular in time, without empty cells, target last.

    Args:
        table: What :func:`to_table` gave.
        config: Frequency, features and policies.
        where: File, for messages.

    Raises:
        DataError: Irregular timestamps or empty cells that no policy covers, or an unknown target.
    """
    target = target_name(list(table.columns), config.target)
    if target not in table.columns:
        raise DataError(unknown_text("target column", target, table.columns), where, "Set --data.target")
    if config.features == "S":  # other columns are not read, whatever their state
        table = table[[target]]
    index = pd.DatetimeIndex(table.index)
    frequency = frequency_offset(config.frequency or infer_frequency(index, where)).freqstr
    table = fill_missing(regularise(table, frequency, config.on_irregular, where), config.on_missing, target, where)
    names = tuple(str(name) for name in table.columns)
    values = np.ascontiguousarray(table.to_numpy(dtype=np.float64))
    series = Series(values, pd.DatetimeIndex(table.index), names, frequency)
    return series.with_features(config.features, target)


def frame_to_read(frame: pd.DataFrame, date_column: str) -> pd.DataFrame:
    """A frame with text as column names, and with its time index, if it has one, as the date column.

    Args:
        frame: Any frame; it is left as it is.
        date_column: Name of the column that a time index becomes.
    """
    frame, index = frame.set_axis([str(name) for name in frame.columns], axis=1), frame.index
    if date_column in frame.columns or not isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        return frame.reset_index(drop=True)
    stamps = index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index
    plain = frame.reset_index(drop=True)
    plain.insert(0, date_column, stamps)
    return plain


def _check_columns(frame: pd.DataFrame, config: CsvConfig, where: str) -> None:
    names = [str(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        places = [str(place) for place, name in enumerate(names, start=1) if name == repeated[0]]
        raise DataError(
            f"column '{repeated[0]}' occurs {len(places)} times (columns {', '.join(places)})",
            where,
            "Rename or remove one",
        )
    if config.date_column not in frame.columns:
        raise DataError(
            unknown_text("date column", config.date_column, names),
            where,
            "Name the column of the timestamps with --data.date_column; the first line of a file must be column names",
        )
    for name in config.columns:
        if name not in frame.columns:
            raise DataError(unknown_text("column", name, names), where, "Mend --data.columns")
    if len(names) < 2:
        raise DataError(
            f"only the date column '{config.date_column}' found, no column with values",
            where,
            "Add numeric columns, or name the character between cells with --data.delimiter",
        )
    if frame.empty:
        raise DataError("column names but no rows", where, "Give a file with data")


def _numbers(cells: pd.Series, name: str, where: str, first_line: int | None) -> Any:
    """A column as float64, empty cells as NaN."""
    dtype = cells.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return cells.to_numpy(dtype=np.float64, na_value=np.nan)
    text = cells.astype("string").str.strip()
    text = text.mask(text == "")
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.isnan(numbers) & text.notna().to_numpy()
    if not bad.any():
        return numbers
    row = int(np.argmax(bad))
    mend = "Mend the cell, or choose the numeric columns with --data.columns"
    if _DECIMAL_COMMA.match(str(text.iloc[row])):
        mend = "If the comma is the decimal character: --data.decimal ','"
    raise DataError(
        f"cells of column '{name}' that are no number: {int(bad.sum())} of {len(bad)}, first at "
        f"{place_of(row, first_line)}: '{text.iloc[row]}'",
        where,
        mend,
    )
