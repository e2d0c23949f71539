"""Polygons and run-length codes to masks.

Shape legend: H, W sides of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def polygon_mask(polygons: Sequence[Sequence[tuple[float, float]]], height: int, width: int) -> Mask:
    """Pixels whose centre lies in one of some polygons, [H, W].

    Args:
        polygons: Corners of each, as (x, y) from the upper left corner of the image; a pixel is one wide. What lies
            outside of the image is cut off; where a polygon crosses itself, what is covered twice is outside.
        height: Of the image.
        width: Of the image.
    """
    inside = np.zeros((height, width), dtype=bool)
    for corners in polygons:
        if len(corners) >= 3:
            inside |= _filled(np.asarray(corners, dtype=np.float64), height, width)
    return inside


def _filled(corners: NDArray[np.float64], height: int, width: int) -> Mask:
    """One polygon: a pixel is inside where an odd number of edges crosses its row to the left of its centre."""
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    for (x, y), (to_x, to_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # rows whose centre is between both ends; each end belongs to one of its two edges
        low, high = sorted((y, to_y))
        first, last = max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5)))
        if first < last:
            rows = np.arange(first, last)
            at = x + (rows + 0.5 - y) * (to_x - x) / (to_y - y)
            crossings[rows, np.ceil(at - 0.5).clip(0, width).astype(np.int64)] += 1
    return np.asarray(crossings[:, :width].cumsum(1) % 2 == 1)


def disc_mask(centre: tuple[float, float], radius: float, height: int, width: int) -> Mask:
    """Pixels whose centre lies in a circle, [H, W]."""
    rows, columns = np.ogrid[:height, :width]
    return np.asarray(np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1]) <= radius)


def flat_polygons(coordinates: Sequence[Sequence[float]]) -> list[list[tuple[float, float]]]:
    """COCO's polygons, ``[[x1, y1, x2, y2, ...], ...]``, as lists of corners."""
    return [list(zip(flat[::2], flat[1::2], strict=False)) for flat in coordinates]


def run_length_mask(code: dict[str, Any]) -> Mask:
    """COCO's run-length code, ``{"size": [H, W], "counts": ...}``, as a mask.

    Args:
        code: Counts are numbers of pixels, outside and inside by turns, down the columns; or text that packs them.

    Raises:
        ValueError: Counts do not add up to the size.
    """
    height, width = code["size"]
    counts = code["counts"]
    runs = _unpacked(counts) if isinstance(counts, str | bytes) else [int(count) for count in counts]
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"runs cover {sum(runs)} pixels of {height} x {width}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _unpacked(packed: str | bytes) -> list[int]:
    """Counts from COCO's text: 6 bits per character, 5 of them of the number; from the third on, differences."""
    text = packed.encode("ascii") if isinstance(packed, str) else packed
    counts: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            if place >= len(text):
                raise ValueError("runs are cut short")
            bits = text[place] - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            place, shift = place + 1, shift + 5
            if not more and bits & 16:
                value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
