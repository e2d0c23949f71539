"""Fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with benchmark files and goldens beside the repository; tests that need it are skipped without."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared beside the repository")
    return SHARED
