"""Fixtures and settings of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

# no deadline: a busy machine is no failure; the same examples every time, so that a red run can be repeated
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with benchmark files and goldens beside the repository; tests that need it are skipped without."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared beside the repository")
    return SHARED
