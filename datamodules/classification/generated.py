"""Coloured shapes on noise, written to disk and read as a user's own folder: for smoke tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.cache import cache_folder, write_folder
from datamodules.classification.config import GeneratedConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 200, 40)}
SHAPES = ("circle", "square", "cross")
BACKGROUND = 0.45


def class_list(count: int) -> list[tuple[str, str]]:
    """Colour and shape of each class, up to 12: the first four differ in colour, so that they are easy."""
    colours = list(COLOURS)
    return [(colours[number % len(colours)], SHAPES[number % len(SHAPES)]) for number in range(count)]


def write_generated(config: GeneratedConfig) -> Path:
    """The images as ``<colour>_<shape>/<number>.png``."""
    name = f"shapes_{config.images}x{config.classes}_{config.side}px_{config.noise:g}_{config.images_seed}"
    folder = cache_folder(config.root, "classification") / name
    return write_folder(folder, lambda place: _write(place, config), files=config.images)


def _write(folder: Path, config: GeneratedConfig) -> None:
    random = np.random.default_rng(config.images_seed)
    classes = class_list(config.classes)
    for number in range(config.images):
        colour, shape = classes[number % len(classes)]
        place = folder / f"{colour}_{shape}"
        place.mkdir(exist_ok=True)
        Image.fromarray(draw(colour, shape, config.side, config.noise, random)).save(place / f"{number:05d}.png")


def draw(colour: str, shape: str, side: int, noise: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """One shape at a random place, of a random size.

    Args:
        colour: Key of ``COLOURS``.
        shape: One of ``SHAPES``.
        side: Height and width, in pixels.
        noise: Deviation of the noise, on the scale from 0 to 1.
        random: Where it is drawn from.

    Returns:
        [side, side, 3].
    """
    radius = random.uniform(0.22, 0.32) * side
    centre = random.uniform(radius, side - radius, 2)
    rows, columns = np.mgrid[:side, :side] + 0.5
    down, across = np.abs(rows - centre[0]), np.abs(columns - centre[1])
    inside = {
        "circle": np.hypot(down, across) <= radius,
        "square": np.maximum(down, across) <= 0.9 * radius,
        "cross": (np.minimum(down, across) <= 0.35 * radius) & (np.maximum(down, across) <= radius),
    }[shape]
    pixels = np.where(inside[..., None], np.array(COLOURS[colour]) / 255, BACKGROUND)  # side, side, 3
    pixels = pixels + noise * random.standard_normal(pixels.shape)
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
