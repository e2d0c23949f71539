"""The regular time grid of a series: its step, its gaps, and resampling onto it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from datamodules.forecasting.calendar import frequency_offset, local_times, normalise_frequency, tick_length
from graftwork.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_GRID_MEND = "Mend the rows, or set --data.on_irregular resample, or name the right step with --data.frequency"
_ZONE_MEND = {  # (timestamps with a zone, steps of a day or more)
    (True, True): "; days begin at midnight of their zone, name it with --data.timezone",
    (False, False): "; if this is local time with daylight saving, name its zone with --data.timezone",
}
_MOST_GRID_ROWS_PER_ROW = 100


def infer_frequency(index: pd.DatetimeIndex, where: str) -> str:
    """The step that most timestamps keep.

    Args:
        index: Timestamps, any order, may repeat.
        where: File, for messages.

    Returns:
        pandas alias: ``"h"``, ``"15min"``, ``"B"``, ``"W-MON"``, ``"MS"``, ...

    Raises:
        DataError: Fewer than three different timestamps, or no step fits.
    """
    unique = index.unique().sort_values()
    if len(unique) < 3:
        raise DataError(
            f"{len(unique)} different timestamps are too few to tell the step", where, "Give it: --data.frequency h"
        )
    exact = pd.infer_freq(unique)
    if exact is not None:
        try:
            normalise_frequency(exact)
            return exact
        except ConfigError:  # such as 'third Friday of the month'
            pass
    if (likely := _likely_frequency(unique)) is not None:
        return likely
    steps = unique.to_series().diff().dropna().astype(str).value_counts()
    common = ", ".join(f"{step} ({count} times)" for step, count in steps.head(3).items())
    raise DataError(f"no regular step found; most common: {common}", where, "Give it: --data.frequency h")


def _likely_frequency(unique: pd.DatetimeIndex) -> str | None:
    """The step of a series with gaps, from its most common difference."""
    step = pd.Series(unique[1:] - unique[:-1]).mode().iloc[0]
    if step < pd.Timedelta(hours=23):  # a day of the wall clock may have 23 hours
        return to_offset(step).freqstr
    clock = unique.tz_localize(None)
    days = round(pd.Series(clock[1:] - clock[:-1]).mode().iloc[0] / pd.Timedelta(days=1))
    if days == 1:
        return "D" if (clock.dayofweek >= 5).any() else "B"
    if days == 7:
        return "W-" + clock.day_name()[0][:3].upper()
    if days < 28:
        return f"{days}D"
    edge = "S" if (clock.day == 1).all() else "E" if clock.is_month_end.all() else None
    unit = "M" if days <= 31 else "Q" if 89 <= days <= 92 else "Y" if days in (365, 366) else None
    if edge is None or unit is None:
        return None
    month = clock.month_name()[0][:3].upper()
    return f"{unit}{edge}" if unit == "M" else f"{unit}{edge}-{month}"


@dataclass(frozen=True)
class GridReport:
    """How timestamps differ from a regular grid.

    Args:
        repeated: Timestamps that occur again, each counted once per repetition.
        missing: Grid points without a row.
        uneven: Timestamps that are no grid point.
        gaps: Runs of missing grid points.
        text: The first difference of each kind in words; empty for a regular series.
    """

    repeated: int
    missing: int
    uneven: int
    gaps: int
    text: str

    @property
    def regular(self) -> bool:
        """Whether there is nothing to mend."""
        return not (self.repeated or self.missing or self.uneven)


def regular_grid(index: pd.DatetimeIndex, frequency: str, where: str) -> pd.DatetimeIndex:
    """All timestamps of a step between the first and the last.

    Args:
        index: Sorted timestamps. Steps of a day or more are counted on the wall clock of their zone.
        frequency: pandas alias of the step.
        where: File, for messages.

    Raises:
        DataError: The grid would be absurdly long: the step is wrong.
    """
    offset = frequency_offset(frequency)
    step = tick_length(offset)
    if step is not None:
        if (index[-1] - index[0]) / step > _MOST_GRID_ROWS_PER_ROW * (len(index) + 10):
            raise DataError(
                f"{index[0]} to {index[-1]} takes {(index[-1] - index[0]) / step:.0f} steps of {frequency}, found are "
                f"{len(index)} rows",
                where,
                "Name the right step with --data.frequency",
            )
        return pd.date_range(index[0], index[-1], freq=offset)
    clock = index.tz_localize(None)
    return local_times(pd.date_range(clock[0], clock[-1], freq=offset), index.tz)


def examine_grid(index: pd.DatetimeIndex, frequency: str, where: str) -> GridReport:
    """Compare sorted timestamps with the regular grid of a step.

    Args:
        index: Sorted timestamps, may repeat.
        frequency: pandas alias of the step.
        where: File, for messages.
    """
    grid = regular_grid(index, frequency, where)
    repeated = index[index.duplicated()]
    missing, uneven = grid.difference(index), index.unique().difference(grid)
    places = grid.get_indexer(missing)
    gaps = int((np.diff(places) > 1).sum()) + 1 if len(places) else 0
    return GridReport(len(repeated), len(missing), len(uneven), gaps, _describe(index, repeated, missing, uneven, gaps))


def fits_grid(index: pd.Index, frequency: str) -> bool:
    """Whether sorted timestamps stand on the regular grid of a step, each once and none left out."""
    try:
        return examine_grid(pd.DatetimeIndex(index), frequency, "").regular
    except DataError:  # a grid of absurd length
        return False


def _describe(
    index: pd.DatetimeIndex,
    repeated: pd.DatetimeIndex,
    missing: pd.DatetimeIndex,
    uneven: pd.DatetimeIndex,
    gaps: int,
) -> str:
    parts = []
    if len(repeated):
        parts.append(f"repeated timestamps: {len(repeated)}, first {repeated[0]}")
    if len(uneven):
        parts.append(f"timestamps off the grid: {len(uneven)}, first {uneven[0]}")
    if len(missing):
        before = index[int(index.searchsorted(missing[0])) - 1]
        after = index[min(int(index.searchsorted(missing[0])), len(index) - 1)]
        parts.append(f"missing timestamps: {len(missing)} (gaps: {gaps}), first after {before} (next row {after})")
    return "; ".join(parts)


def regularise(table: pd.DataFrame, frequency: str, policy: str, where: str) -> pd.DataFrame:
    """Make sure that rows stand on a regular grid.

    Args:
        table: Numeric columns over sorted timestamps.
        frequency: pandas alias of the step.
        policy: ``"error"``, or ``"resample"`` for means of the rows of each step; steps without a row stay empty.
        where: File, for messages.

    Raises:
        DataError: Under ``"error"``, with the first repeated, uneven and missing timestamp.
    """
    index = pd.DatetimeIndex(table.index)
    report = examine_grid(index, frequency, where)
    if report.regular:
        return table
    if policy == "error":
        calendar_step = tick_length(frequency_offset(frequency)) is None
        zone = _ZONE_MEND.get((index.tz is not None, calendar_step), "")
        raise DataError(f"timestamps are not regular at step {frequency}: {report.text}", where, _GRID_MEND + zone)
    logger.warning("%s: resampled to step %s: %s", where, frequency, report.text)
    offset = frequency_offset(frequency)
    if tick_length(offset) is not None:
        return table.resample(offset, origin="start").mean()
    means = table.set_axis(index.tz_localize(None)).resample(offset).mean()
    return means.set_axis(local_times(pd.DatetimeIndex(means.index), index.tz))
