"""A series from a formula, written to disk and read as a user's own file: for smoke tests."""

from __future__ import annotations

import numpy as np
import pandas as pd

from datamodules.cache import cache_folder, write_if_changed
from datamodules.forecasting.calendar import default_season, frequency_offset
from datamodules.forecasting.config import GeneratedConfig
from datamodules.forecasting.csv import load_csv
from datamodules.forecasting.source import SeriesSource

START = "2024-01-01"
_CYCLES = (1.0, 7.0)  # seasons per wave: hourly data gets a day and a week
_AMPLITUDES = (1.0, 0.4)
_LONGEST_WAVE = 200  # rows; longer seasons would look like a trend in a short series


def load_generated(config: GeneratedConfig) -> SeriesSource:
    """Write the CSV file and read it with the usual shares of the rows."""
    name = f"generated_{config.rows}x{config.variates}_{config.frequency}_{config.noise:g}_{config.series_seed}.csv"
    text = generate(config).to_csv(
        index=False, float_format="%.6f", lineterminator="\n", date_format="%Y-%m-%d %H:%M:%S"
    )
    path = write_if_changed(cache_folder(config.root, "forecasting") / name, text)
    return load_csv(config.as_csv(root=str(path), frequency=config.frequency), view=config)


def generate(config: GeneratedConfig) -> pd.DataFrame:
    """Each column: two waves with phases of its own, a slow trend, noise.

    Args:
        config: Rows, columns, step, noise and seed.

    Returns:
        Columns ``date``, ``x0``, ``x1``, ...
    """
    random = np.random.default_rng(config.series_seed)
    rows = np.arange(config.rows, dtype=np.float64)[:, None]  # T, 1
    season = min(default_season(config.frequency), _LONGEST_WAVE)
    values = random.uniform(-0.5, 0.5, config.variates) * rows / max(config.rows, 1)  # T, N
    for cycle, amplitude in zip(_CYCLES, _AMPLITUDES, strict=True):
        phase = random.uniform(0, 2 * np.pi, config.variates)
        values = values + amplitude * np.sin(2 * np.pi * rows / max(2.0, season * cycle) + phase)
    values = values + config.noise * random.standard_normal((config.rows, config.variates))
    frame = pd.DataFrame(values, columns=[f"x{place}" for place in range(config.variates)])
    frame.insert(0, "date", pd.date_range(START, periods=config.rows, freq=frequency_offset(config.frequency)))
    return frame
