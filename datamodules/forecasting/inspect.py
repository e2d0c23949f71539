"""What ``doctor`` says about forecasting data: file, columns, timestamps, season, splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.findings import Finding
from datamodules.forecasting.borders import SPLITS
from datamodules.forecasting.config import CsvConfig, EttConfig, SeriesConfig
from datamodules.forecasting.csv import FIRST_LINE, find_file, read_frame
from datamodules.forecasting.dates import OFFSETS_TEXT, mixed_offsets
from datamodules.forecasting.ett import COLUMNS, find_variant, is_published
from datamodules.forecasting.frame import to_table
from datamodules.forecasting.grid import examine_grid, infer_frequency
from datamodules.forecasting.series import constant_columns
from datamodules.forecasting.source import SeriesSource, load
from graftwork.errors import UserError

_MOST_COLUMNS = 30
_WIDE = 5.0  # standard deviation of the test rows, in those of the training rows
_CHOOSE = "Choose columns with --data.columns"


def inspect_series(config: SeriesConfig) -> list[Finding]:
    """Check a dataset as far as it can be read; never raises for what the user can mend.

    Args:
        config: The dataset and its windows.

    Returns:
        Findings about the file, its columns, its timestamps, the season and the splits, in this order.
    """
    findings: list[Finding] = []
    try:
        config.check()
        if (table := _raw_table(config)) is not None:
            findings += [*_column_findings(table[0], table[2]), *_time_findings(*table[:3])]
            findings += _offset_findings(table[1], table[3])
        for finding in _source_findings(load(config)):
            findings.append(finding)  # those before an error stay
    except UserError as error:
        stop = f"{error.where}: {error.what}" if error.where else error.what
        return [*findings, Finding("error", stop, error.mend)]
    return findings


def _raw_table(config: SeriesConfig) -> tuple[pd.DataFrame, CsvConfig, Path, str] | None:
    """The user's file before any policy; None for data that is made here."""
    if isinstance(config, EttConfig):
        path = find_variant(config.root, config.variant)
        rules = config.as_csv(columns=COLUMNS, frequency="h" if config.variant.startswith("ETTh") else "15min")
    elif isinstance(config, CsvConfig):
        path, rules = find_file(config.root), config
    else:
        return None
    frame = read_frame(path, rules)
    table = to_table(frame, rules, str(path), FIRST_LINE)
    return table, rules, path, mixed_offsets(frame[rules.date_column])


def _offset_findings(rules: CsvConfig, offsets: str) -> Iterator[Finding]:
    if offsets and rules.timezone is None:
        what, mend = OFFSETS_TEXT.format(rules.date_column, offsets).split("; ")
        yield Finding("warning", what, mend[0].upper() + mend[1:])


def _column_findings(table: pd.DataFrame, path: Path) -> Iterator[Finding]:
    yield Finding("ok", f"{path}: {len(table)} rows, {table.shape[1]} columns, {table.index[0]} to {table.index[-1]}")
    for name in table.columns[:_MOST_COLUMNS]:
        yield _column_finding(str(name), table[name].to_numpy(dtype=np.float64))
    if table.shape[1] > _MOST_COLUMNS:
        empty = int(table.iloc[:, _MOST_COLUMNS:].isna().to_numpy().sum())
        rest = f"{table.shape[1] - _MOST_COLUMNS} more columns, empty cells: {empty}"
        yield Finding("warning" if empty else "ok", rest, "Set --data.on_missing" if empty else "")


def _column_finding(name: str, values: NDArray[np.float64]) -> Finding:
    known = values[~np.isnan(values)]
    if not len(known):
        return Finding("error", f"column '{name}' has no number", _CHOOSE)
    text = f"column '{name}': {known.min():.6g} to {known.max():.6g}, mean {known.mean():.6g}"
    if len(known) < len(values):
        share = (len(values) - len(known)) / len(values)
        return Finding(
            "warning", f"{text}, empty cells: {len(values) - len(known)} ({share:.1%})", "Set --data.on_missing"
        )
    if constant_columns(known[:, None])[0]:
        return Finding("warning", f"{text}, constant", f"It teaches nothing. {_CHOOSE}")
    return Finding("ok", text)


def _time_findings(table: pd.DataFrame, rules: CsvConfig, path: Path) -> Iterator[Finding]:
    index = pd.DatetimeIndex(table.index)
    frequency = rules.frequency or infer_frequency(index, str(path))
    report = examine_grid(index, frequency, str(path))
    zone = f", zone {index.tz}" if index.tz is not None else ""
    if report.regular:
        yield Finding("ok", f"timestamps are regular, step {frequency}{zone}")
    else:
        yield Finding(
            "warning", f"step {frequency}{zone}: {report.text}", "Set --data.on_irregular resample, or mend the rows"
        )


def _source_findings(source: SeriesSource) -> Iterator[Finding]:
    config = source.config
    if isinstance(config, EttConfig):
        yield _published_finding(source.where, config.variant)
    for split in SPLITS:
        span = source.borders.span(split)
        first, last = source.series.index[span.start], source.series.index[span.stop - 1]
        yield Finding("ok", f"{split}: {source.window_count(split)} windows over {len(span)} rows, {first} to {last}")
    shifts = list(_shift_findings(source))  # stops at numbers too large for what follows
    training = source.series.values[source.borders.train.slice]
    strengths = seasonal_strength(training, source.season)
    if strengths is None:
        yield Finding("warning", f"season {source.season}: training holds fewer than two seasons", "Set --data.season")
    else:
        pairs = sorted(zip(strengths.tolist(), source.series.names, strict=True), reverse=True)[:8]
        text = ", ".join(f"{name} {strength:.2f}" for strength, name in pairs)
        yield Finding("ok", f"strength of season {source.season} (0 none, 1 perfect): {text}")
    if source.season > config.look_back:
        what = (
            f"season {source.season} is longer than look_back {config.look_back}, so the model never sees a whole one"
        )
        yield Finding("warning", what, "Raise --data.look_back, or set a shorter --data.season")
    yield from shifts


def _published_finding(where: str, variant: str) -> Finding:
    published = is_published(Path(where), variant)
    if published is None:
        return Finding("ok", f"{variant}: no checksum known to compare with")
    if published:
        return Finding("ok", f"{variant}: the published file, byte for byte")
    return Finding(
        "warning", f"{variant}: not the published bytes", "Fetch the file again if scores are to be compared"
    )


def _shift_findings(source: SeriesSource) -> Iterator[Finding]:
    """Columns whose evaluation rows look nothing like the training rows: they would drown every other in the score."""
    scaled = source.scaled
    for split in SPLITS[1:]:
        spread = np.sqrt((scaled[source.borders.span(split).slice] ** 2).mean(axis=0))
        for name, size in zip(source.series.names, spread.tolist(), strict=True):
            if source.config.scale and size > _WIDE:
                what = f"column '{name}' lies {size:.1f} training deviations off the training mean in {split}"
                yield Finding("warning", what, f"It rules the score. {_CHOOSE}")


def seasonal_strength(values: NDArray[np.float64], season: int) -> NDArray[np.float64] | None:
    """How much of what a trend leaves is a repeating season.

    Args:
        values: [T, N].
        season: Rows per season.

    Returns:
        [N] in [0, 1]: ``max(0, 1 - var(remainder) / var(values - trend))``; None for fewer than two seasons, or a
        season of 1.

    Source: Wang, Smith and Hyndman 2006. Differs: the trend is a moving mean, the season the mean of each phase.
    """
    rows = len(values)
    if season < 2 or rows < 2 * season + 1:
        return None
    total = np.cumsum(np.vstack([np.zeros(values.shape[1]), values - values.mean(axis=0)]), axis=0)
    trend = (total[season:] - total[:-season]) / season  # [T - season + 1, N]
    centre = (values - values.mean(axis=0))[season // 2 : season // 2 + len(trend)] - trend
    phases = np.arange(len(centre)) % season
    means = np.zeros((season, values.shape[1]))
    np.add.at(means, phases, centre)
    remainder = centre - (means / np.bincount(phases, minlength=season)[:, None])[phases]
    variance = centre.var(axis=0)
    strength = 1 - remainder.var(axis=0) / np.where(variance > 0, variance, 1)
    return np.where(variance > 0, np.clip(strength, 0, 1), 0.0)
