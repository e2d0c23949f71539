"""Options of the forecasting data, by dataset. Standard library only: help and checks need neither torch nor pandas."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from graftwork.components import Registry
from graftwork.errors import all_problems
from graftwork.names import unknown_text

if TYPE_CHECKING:
    from datamodules.forecasting.datamodule import ForecastingData
    from datamodules.forecasting.source import SeriesSource

Features = Literal["M", "S", "MS"]
Marks = Literal["timeF", "integer", "none"]
Variant = Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2"]


@dataclass(kw_only=True)
class SeriesConfig:
    """What every series dataset has: windows, columns, calendar marks, loaders."""

    root: str | None = None
    """File or folder with the data."""
    look_back: int = 96
    """Rows the model sees."""
    horizon: int = 96
    """Rows the model forecasts."""
    features: Features = "M"
    """M: all columns forecast all columns; S: the target alone; MS: all columns forecast the target."""
    target: str | None = None
    """Column that S and MS forecast, moved last; 'OT' where the file has it, else the last column."""
    marks: Marks = "timeF"
    """Calendar features: scaled to [-0.5, 0.5] (timeF), numbers of month, day, weekday, ... (integer), or none."""
    batch_size: int = 32
    """Windows per training batch."""
    eval_batch_size: int = 256
    """Windows per validation and test batch; scores do not depend on it."""
    num_workers: int = 0
    """Loader processes; windows are slices of one tensor, so 0 is the fastest here."""
    season: int | None = None
    """Rows per season of the seasonal-naive baseline; from the frequency if omitted (hourly 24, 15 min 96, daily 7)."""
    scale: bool = True
    """Standardise every column with mean and standard deviation of its training rows."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        for name in ("look_back", "horizon", "batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        if self.num_workers < 0:
            yield f"num_workers={self.num_workers} must be 0 (load in the main process) or more"
        if self.season is not None and self.season < 1:
            yield f"season={self.season} must be at least 1, or be left out to follow the frequency"

    def check(self) -> None:
        """Stop with every problem at once.

        Raises:
            ConfigError: There is a problem; the message lists all of them.
        """
        if problems := list(self.problems()):
            raise all_problems(problems)

    def load(self) -> SeriesSource:
        """Read the data and cut its splits."""
        raise NotImplementedError(f"{type(self).__name__} must say how its data is loaded")

    def build(self, seed: int) -> ForecastingData:
        """The datamodule of this data.

        Args:
            seed: Seed of the order of the training windows.
        """
        from datamodules.forecasting.datamodule import ForecastingData

        return ForecastingData(self, seed)

    def as_csv(self, **changes: Any) -> CsvConfig:
        """The same windows and columns over a CSV file or a data frame.

        Args:
            changes: Fields of :class:`CsvConfig` that differ.
        """
        shared = {field.name: getattr(self, field.name) for field in fields(SeriesConfig)}
        return CsvConfig(**{**shared, **changes})


@dataclass(kw_only=True)
class CsvConfig(SeriesConfig):
    """Own data: a CSV file with a date column and one numeric column per variate."""

    date_column: str = "date"
    """Column with the timestamps."""
    date_format: str | None = None
    """Format of the timestamps, such as '%d.%m.%Y %H:%M'; recognised if omitted."""
    columns: tuple[str, ...] = ()
    """Columns to use; all but the date column if empty."""
    frequency: str | None = None
    """Step of the series: h, 15min, D, B, W, MS, ...; inferred from the timestamps if omitted."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of the rows for training, validation and test, in this order."""
    split_dates: tuple[str, str] | None = None
    """First validation date and first test date; replaces 'split'."""
    on_missing: Literal["error", "forward_fill", "interpolate", "drop_columns"] = "error"
    """What to do about empty cells; forward_fill looks back only, interpolate also uses the next known value."""
    on_irregular: Literal["error", "resample"] = "error"
    """What to do about repeated, missing or uneven timestamps; resample takes means on a regular grid."""
    timezone: str | None = None
    """Zone of the calendar, such as Europe/Berlin. Timestamps with an offset are converted to it (to UTC if omitted),
    those without are taken as its local time."""
    delimiter: str | None = None
    """Character between cells; recognised if omitted."""
    decimal: Literal[".", ","] | None = None
    """Decimal character; recognised if omitted."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds with each other."""
        yield from super().problems()
        if self.split_dates is None:
            yield from _split_problems(self.split)
        else:
            yield from _split_date_problems(*self.split_dates)
        if self.target is not None and self.columns and self.target not in self.columns:
            yield f"target={self.target} is not among columns={list(self.columns)}; add it to columns"
        if self.date_column in self.columns:
            yield f"columns={list(self.columns)} holds date_column={self.date_column}; leave it out of columns"
        if self.delimiter is not None and self.delimiter == self.decimal:
            yield f"delimiter={self.delimiter!r} and decimal={self.decimal!r} cannot be the same character"
        if self.delimiter is not None and len(self.delimiter) != 1:
            yield f"delimiter={self.delimiter!r} must be one character"
        if self.timezone is not None:
            yield from _timezone_problems(self.timezone)

    def load(self) -> SeriesSource:
        """Read the file and cut its splits."""
        from datamodules.forecasting.csv import load_csv

        return load_csv(self)


@dataclass(kw_only=True)
class EttConfig(SeriesConfig):
    """Electricity Transformer Temperature, the standard benchmark, with its published split."""

    variant: Variant = "ETTh1"
    """Station and step: h is hourly, m every 15 minutes."""

    def load(self) -> SeriesSource:
        """Read the variant's file and cut its splits."""
        from datamodules.forecasting.ett import load_ett

        return load_ett(self)


@dataclass(kw_only=True)
class SampleConfig(SeriesConfig):
    """The embedded default: two years of hourly motorway traffic and weather; needs no network.

    ``root`` is the folder that the CSV file is written to, a temporary one if omitted.
    """

    def load(self) -> SeriesSource:
        """Write the CSV file where it is missing, then read it as any other."""
        from datamodules.forecasting.sample import load_sample

        return load_sample(self)


@dataclass(kw_only=True)
class GeneratedConfig(SeriesConfig):
    """Waves, trend and noise from a formula, for smoke tests; needs nothing.

    ``root`` is the folder that the CSV file is written to, a temporary one if omitted.
    """

    look_back: int = 48
    """Rows the model sees."""
    horizon: int = 24
    """Rows the model forecasts."""
    rows: int = 600
    """Rows of the series."""
    variates: int = 3
    """Columns of the series."""
    noise: float = 0.1
    """Standard deviation of the noise; the waves have amplitudes of about 1."""
    frequency: str = "h"
    """Step of the series: h, 15min, D, ..."""
    series_seed: int = 0
    """Seed of phases, trends and noise."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        for name in ("rows", "variates"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        if self.noise < 0:
            yield f"noise={self.noise} must be 0 or more"

    def load(self) -> SeriesSource:
        """Write the CSV file, then read it as any other."""
        from datamodules.forecasting.generated import load_generated

        return load_generated(self)


DATASETS = Registry(
    "dataset",
    {"sample": SampleConfig, "ett": EttConfig, "csv": CsvConfig, "generated": GeneratedConfig},
    default="sample",
)


def _split_problems(split: tuple[float, ...]) -> Iterator[str]:
    if len(split) != 3:
        yield f"split={list(split)} must have three shares: training, validation, test"
    elif min(split) <= 0:
        yield f"split={list(split)} must have three shares above 0"
    elif sum(split) > 1 + 1e-9:
        yield f"split={list(split)} sums to {sum(split):g}, more than 1; lower one of the shares"


def _split_date_problems(validation: str, test: str) -> Iterator[str]:
    dates = []
    for name, text in (("validation", validation), ("test", test)):
        try:
            dates.append(datetime.fromisoformat(text))
        except ValueError:
            yield f"split_dates: '{text}' is no {name} date; write it like 2024-01-31 or 2024-01-31 13:00"
    if len(dates) == 2 and dates[0].replace(tzinfo=None) >= dates[1].replace(tzinfo=None):
        yield f"split_dates: validation begins at {validation}, which must be before the test date {test}"


def _timezone_problems(name: str) -> Iterator[str]:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if name not in known:
            yield "timezone: " + unknown_text("time zone", name, known or {"UTC"})
