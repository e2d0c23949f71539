"""Edges, stripes and gradients drawn on disk and read as a user's own folder: for smoke tests.

Shape legend: S side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.cache import cache_folder, write_folder
from datamodules.superres.config import GeneratedConfig

_EDGES = 6


def write_generated(config: GeneratedConfig) -> Path:
    """The images as ``train/HR/<number>.png``, ``val/HR/...`` and ``test/HR/...``."""
    name = f"edges_{config.images}_{config.side}px_{config.images_seed}"
    folder = cache_folder(config.root, "superres") / name
    counts = {"train": config.images, "val": -(-config.images // 4), "test": -(-config.images // 4)}
    return write_folder(folder, lambda place: _write(place, config, counts), files=sum(counts.values()))


def _write(folder: Path, config: GeneratedConfig, counts: dict[str, int]) -> None:
    random = np.random.default_rng(config.images_seed)
    for split, count in counts.items():
        place = folder / split / "HR"
        place.mkdir(parents=True)
        for number in range(count):
            pixels = np.rint(255 * draw(config.side, random)).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number:03d}.png")


def draw(side: int, random: np.random.Generator) -> NDArray[np.float64]:
    """A picture with what restoration is about: sharp edges, fine stripes, smooth slopes.

    Args:
        side: Height and width, in pixels.
        random: Where it is drawn from.

    Returns:
        [S, S, 3] from 0 to 1.
    """
    rows, columns = np.mgrid[:side, :side] / side
    slope = random.uniform(-0.5, 0.5, (2, 3))
    pixels = 0.5 + rows[..., None] * slope[0] + columns[..., None] * slope[1]  # S, S, 3
    for _ in range(_EDGES):
        angle, place = random.uniform(0, np.pi), random.uniform(0.2, 0.8, 2)
        along = (columns - place[1]) * np.cos(angle) + (rows - place[0]) * np.sin(angle)
        width, wave = random.uniform(0.05, 0.2), random.uniform(4, 9) * np.pi * side / 32
        stripes = np.sin(wave * along) > 0 if random.random() < 0.5 else np.ones_like(along, dtype=bool)
        inside = (np.abs(along) < width) & stripes
        pixels[inside] = random.uniform(0, 1, 3)
    return np.clip(pixels, 0, 1)
