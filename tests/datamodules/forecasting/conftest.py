"""Small CSV files for the tests of the forecasting data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from datamodules.forecasting.config import CsvConfig
from datamodules.forecasting.csv import read_series
from datamodules.forecasting.series import Series

Read = Callable[..., Series]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write the given text (or bytes) as a CSV file and read it; keywords are options of ``CsvConfig``."""

    def write_and_read(content: str | bytes, name: str = "data.csv", **options: object) -> Series:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_series(path, CsvConfig(**options))  # type: ignore[arg-type]

    return write_and_read


def rows(frequency: str = "h", count: int = 6, start: str = "2024-01-01", zone: str | None = None) -> list[str]:
    """Lines ``date,a,b`` with a = 0, 1, ... and b = 10, 11, ...; without the header."""
    dates = pd.date_range(start, periods=count, freq=frequency, tz=zone)
    return [f"{date},{i},{10 + i}" for i, date in enumerate(dates)]


@pytest.fixture
def lines() -> Callable[..., list[str]]:
    """See :func:`rows`."""
    return rows


def table(body: list[str], header: str = "date,a,b") -> str:
    """A CSV text."""
    return "\n".join([header, *body]) + "\n"


@pytest.fixture
def text() -> Callable[..., str]:
    """See :func:`table`."""
    return table
