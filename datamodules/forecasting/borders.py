"""Where training ends and evaluation begins: the benchmarks' borders, shares of the rows, or dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from graftwork.errors import DataError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

ETT_MONTH_H = 30 * 24  # the benchmark counts months of 30 days
ETT_MONTHS = (12, 4, 4)


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``stop``, the latter excluded."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    @property
    def slice(self) -> slice:
        """The rows as an index."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class SplitBorders:
    """The rows that each split forecasts; consecutive, in time order, never overlapping.

    Args:
        train: Rows of training; the standardiser sees these alone.
        val: Rows that validation forecasts.
        test: Rows that the test forecasts.
    """

    train: Span
    val: Span
    test: Span

    def span(self, split: SplitName) -> Span:
        """The rows that a split forecasts."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def rows(self, split: SplitName, look_back: int) -> Span:
        """The rows that a split reads: validation and test also look back over the rows before their border."""
        span = self.span(split)
        return span if split == "train" else Span(max(0, span.start - look_back), span.stop)

    def windows(self, split: SplitName, look_back: int, horizon: int) -> int:
        """Number of windows of a split at stride 1."""
        return max(0, len(self.rows(split, look_back)) - look_back - horizon + 1)


def consecutive(train: int, val: int, test: int) -> SplitBorders:
    """Borders of splits of these lengths, from row 0 on."""
    return SplitBorders(Span(0, train), Span(train, train + val), Span(train + val, train + val + test))


def ett_borders(steps_per_hour: int) -> SplitBorders:
    """12, 4 and 4 months of 30 days; later rows are unused.

    Args:
        steps_per_hour: 1 for ETTh, 4 for ETTm.
    """
    train, val, test = (months * ETT_MONTH_H * steps_per_hour for months in ETT_MONTHS)
    return consecutive(train, val, test)


def ratio_borders(rows: int, split: tuple[float, float, float]) -> SplitBorders:
    """Shares of the rows, rounded down; validation takes what rounding leaves.

    Args:
        rows: Rows of the series.
        split: Shares of training, validation and test; where they sum to less than 1 the last rows are unused.
    """
    train, val, test = (int(rows * share) for share in split)
    if sum(split) > 1 - 1e-9:
        val = rows - train - test
    return consecutive(train, val, test)


def date_borders(index: pd.DatetimeIndex, split_dates: tuple[str, str]) -> SplitBorders:
    """Borders at dates.

    Args:
        index: Timestamps of the series.
        split_dates: First validation date and first test date; without an offset they are in the zone of the series.

    Raises:
        DataError: A date is outside the series.
    """
    rows = []
    for text in split_dates:
        date = _in_zone(pd.Timestamp(text), index)
        if not index[0] < date <= index[-1]:
            raise DataError(
                f"split date {text} is outside the series, which runs from {index[0]} to {index[-1]}",
                mend="Set --data.split_dates to two dates inside it, or drop it to split by --data.split",
            )
        rows.append(int(index.searchsorted(date)))
    return consecutive(rows[0], rows[1] - rows[0], len(index) - rows[1])


def require_windows(
    borders: SplitBorders, rows: int, look_back: int, horizon: int, where: str, needed: int = 0
) -> None:
    """Stop where a split has no window or the file ends before its rows.

    Args:
        borders: The splits.
        rows: Rows found.
        look_back: Rows a window looks back.
        horizon: Rows a window forecasts.
        where: File, for the message.
        needed: Fewest rows that would do, where the caller can tell.

    Raises:
        DataError: With the rows found and needed, and the mend.
    """
    if rows < borders.test.stop:
        raise DataError(f"{rows} rows found, the split needs {borders.test.stop}", where, "Use the complete file")
    for split in SPLITS:
        if borders.windows(split, look_back, horizon) == 0:
            raise DataError(_too_few(borders, split, rows, look_back, horizon, needed), where, _MEND)


_MEND = "Use a longer series, or lower --data.look_back or --data.horizon, or change --data.split or --data.split_dates"


def _too_few(borders: SplitBorders, split: SplitName, rows: int, look_back: int, horizon: int, needed: int) -> str:
    found = len(borders.span(split))
    least = (
        f"look_back {look_back} + horizon {horizon} = {look_back + horizon}"
        if split == "train"
        else f"horizon {horizon}"
    )
    text = f"{rows} rows are too few: {split} gets {found} and needs at least {least}"
    return f"{text}; this split needs {needed} rows in all" if needed > rows else text


def rows_needed(split: tuple[float, float, float], look_back: int, horizon: int) -> int:
    """Fewest rows for which :func:`ratio_borders` gives every split a window."""
    least = (look_back + horizon, horizon - 2, horizon)  # validation may get two rows more than its share
    rows = max(look_back + horizon, *(int(count / share) - 2 for count, share in zip(least, split, strict=True)))
    while any(ratio_borders(rows, split).windows(name, look_back, horizon) == 0 for name in SPLITS):
        rows += 1
    return rows


def _in_zone(date: pd.Timestamp, index: pd.DatetimeIndex) -> pd.Timestamp:
    if index.tz is None:
        return date.tz_convert("UTC").tz_localize(None) if date.tz is not None else date
    return date.tz_localize(index.tz) if date.tz is None else date.tz_convert(index.tz)
