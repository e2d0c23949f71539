"""Small images for tests, written as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    """Smooth colour whose values depend on the number; [height, width, 3] uint8."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    waves = rng.uniform(0.1, 0.9, (3, 2))
    values = [0.5 + 0.45 * np.sin(rows * down + columns * across) for down, across in waves]
    return np.rint(255 * np.stack(values, axis=2)).astype(np.uint8)


def write(path: Path, number: int = 0, height: int = 24, width: int = 32) -> Path:
    """Write a small image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, height, width)).save(path)
    return path


def write_array(path: Path, values: np.ndarray) -> Path:
    """Write an array of pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path
