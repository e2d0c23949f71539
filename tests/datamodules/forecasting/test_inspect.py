"""What doctor says about data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.findings import Finding
from datamodules.forecasting.config import CsvConfig, EttConfig, GeneratedConfig
from datamodules.forecasting.inspect import inspect_series, seasonal_strength

HOURS = np.arange(400)


def findings(folder: Path, frame: pd.DataFrame, **options: object) -> list[Finding]:
    """Findings about a frame written as a CSV file."""
    frame.to_csv(folder / "data.csv", index=False)
    return inspect_series(CsvConfig(root=str(folder), look_back=24, horizon=12, **options))  # type: ignore[arg-type]


def daily_wave() -> pd.DataFrame:
    """A column with a season of 24 rows."""
    index = pd.date_range("2024-01-01", periods=len(HOURS), freq="h")
    return pd.DataFrame({"date": index, "a": np.sin(2 * np.pi * HOURS / 24) + 0.001 * HOURS})


def said(found: list[Finding], level: str) -> str:
    """All findings of a level in one text."""
    return "\n".join(f"{finding.what} | {finding.mend}" for finding in found if finding.level == level)


def test_good_file(tmp_path: Path) -> None:
    found = findings(tmp_path, daily_wave())
    assert {finding.level for finding in found} == {"ok"}
    text = said(found, "ok")
    for part in (
        "400 rows, 1 columns",
        "timestamps are regular, step h",
        "train: 245 windows over 280 rows",
        "test: 69 windows over 80 rows, 2024-01-14 08:00:00 to 2024-01-17 15:00:00",
        "season 24",
        "a 1.00",
    ):
        assert part in text


def test_everything_wrong_at_once(tmp_path: Path) -> None:
    frame = daily_wave().assign(flat=1.0, b=1.0)
    frame.loc[5, "b"] = np.nan
    found = findings(tmp_path, frame.drop(index=[100, 101]))
    warnings = said(found, "warning")
    assert "column 'flat': 1 to 1, mean 1, constant" in warnings
    assert "empty cells: 1 (0.3%) | Set --data.on_missing" in warnings
    assert "missing timestamps: 2 (gaps: 1)" in warnings
    assert "timestamps are not regular" in said(found, "error")


def test_column_that_changes_after_training(tmp_path: Path) -> None:
    frame = daily_wave().assign(rain=np.where(HOURS > 319, 50.0, HOURS % 2))
    assert "column 'rain' lies 99.0 training deviations off the training mean in test" in said(
        findings(tmp_path, frame), "warning"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CsvConfig(root="nowhere.csv"), "no such file"),
        (EttConfig(root="nowhere"), "ETTh1.csv not found"),
        (CsvConfig(root="nowhere.csv", horizon=0), "horizon=0"),
    ],
)
def test_what_stops_a_run_is_an_error(config: CsvConfig, message: str) -> None:
    (finding,) = inspect_series(config)
    assert finding.level == "error"
    assert message in finding.what


def test_too_short_for_the_season(tmp_path: Path) -> None:
    found = inspect_series(GeneratedConfig(root=str(tmp_path), season=400))
    assert "fewer than two seasons" in said(found, "warning")
    assert "longer than look_back 48" in said(found, "warning")


def test_published_file_is_recognised(shared: Path) -> None:
    text = said(inspect_series(EttConfig(root=str(shared / "data"))), "ok")
    assert "published file, byte for byte" in text
    assert "test: 2785 windows" in text


def test_strength_of_a_season() -> None:
    random = np.random.default_rng(0).normal(size=2000)
    wave = np.sin(2 * np.pi * np.arange(2000) / 24)
    strengths = seasonal_strength(np.stack([wave, random, np.ones(2000), wave + random], 1), 24)
    assert strengths is not None
    assert strengths[0] == pytest.approx(1, abs=1e-6)
    assert strengths[1] < 0.05
    assert strengths[2] == 0
    assert 0.2 < strengths[3] < 0.5
    assert seasonal_strength(np.ones((40, 1)), 24) is None


def test_numbers_too_large_are_an_error(tmp_path: Path) -> None:
    huge = daily_wave().assign(huge=1e300 * np.cos(HOURS))
    found = findings(tmp_path, huge)
    assert "column 'huge' has no finite mean and deviation" in said(found, "error")
    late = daily_wave()
    late.loc[390, "a"] = 1e300
    assert "beyond the range of float32: 'a' 1 (first 2024-01-17 06:00:00)" in said(findings(tmp_path, late), "error")


def test_several_offsets_are_a_warning(tmp_path: Path) -> None:
    index = pd.date_range("2024-03-25", periods=len(HOURS), freq="h", tz="Europe/Berlin")
    frame = daily_wave().assign(date=index.map(str))
    text = said(findings(tmp_path, frame), "warning")
    assert "several UTC offsets (+0100, +0200), read as UTC | Set --data.timezone" in text
    assert "offsets" not in said(findings(tmp_path, frame, timezone="Europe/Berlin"), "warning")
