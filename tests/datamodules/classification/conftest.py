"""Folders of small images for the tests of the image data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datamodules.classification.images import write_image

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write ``count`` images below each of the given folders, all different."""

    def write(*folders: str, count: int = 3, root: str = "data", side: int = 12) -> Path:
        place, number = tmp_path / root, 0
        place.mkdir(exist_ok=True)
        for folder in folders:
            for index in range(count):
                write_image(place / folder / f"{index}.png", number, side)
                number += 1
        return place

    return write
