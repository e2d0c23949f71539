"""Small labelled images for tests, written as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_image(path: Path, number: int = 0, height: int = 40, width: int = 48) -> Path:
    """A small image whose pixels depend on its number."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return write_array(path, pixels)


def write_array(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    """An array as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def striped(height: int = 40, width: int = 48, labels: Sequence[int] = (0, 1, 2)) -> NDArray[np.uint8]:
    """Columns of labels, as even as they can be."""
    row = np.array(labels, dtype=np.uint8)[np.arange(width) * len(labels) // width]
    return np.broadcast_to(row, (height, width)).copy()


def write_pairs(
    root: Path, splits: Sequence[str] = ("train", "val"), count: int = 2, names: str = "sky\nroad\ncar\n"
) -> Path:
    """images/<split>/<n>.png with masks/<split>/<n>.png and classes.txt."""
    for place, split in enumerate(splits):
        for number in range(count):
            write_image(root / "images" / split / f"{number}.png", 10 * place + number)
            write_array(root / "masks" / split / f"{number}.png", striped())
    (root / "classes.txt").write_text(names, encoding="utf-8")
    return root


def write_json(path: Path, content: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
