"""Polygons and run-length codes to masks.

Shape legend: H, W sides of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

Box = tuple[slice, slice]
"""Rows and columns of a part of an image."""

FARTHEST = 1e9
"""Pixels from the corner of an image. What lies farther away, or is no number, comes from a damaged file."""


class Patch(NamedTuple):
    """Some pixels of an image: ``image[patch.box][patch.inside]``.

    Args:
        box: Part of the image, as small as the pixels allow or a little larger.
        inside: Which of its pixels are meant, [rows, columns] of the box.
    """

    box: Box
    inside: Mask


def polygon_patch(polygons: Sequence[Sequence[tuple[float, float]]], height: int, width: int) -> Patch:
    """Pixels whose centre lies in one of some polygons.

    Args:
        polygons: Corners of each, as (x, y) from the upper left corner of the image; a pixel is one wide. What lies
            outside of the image is cut off; where a polygon crosses itself, what is covered twice is outside.
        height: Of the image.
        width: Of the image.

    Raises:
        ValueError: A corner is no pair of numbers, not finite, or very far away.
    """
    filled = [_checked(corners) for corners in polygons if len(corners) >= 3]
    box = _box(np.concatenate(filled), height, width) if filled else (slice(0, 0), slice(0, 0))
    inside = _nothing(box)
    for corners in filled:
        inside |= _filled(corners, box)
    return Patch(box, inside)


def _checked(corners: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Corners, [corners, 2], if they are numbers that can be reckoned with."""
    points = np.asarray(corners, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"corners of shape {list(points.shape)} are no pairs")
    if not (np.abs(points) <= FARTHEST).all():  # NaN too
        raise ValueError("a corner is not finite, or very far away")
    return points


def _box(points: NDArray[np.float64], height: int, width: int) -> Box:
    """Part of the image around some points; a pixel wider on each side than they are, for what rounding moves."""
    (left, top), (right, bottom) = np.floor(points.min(0)) - 1, np.ceil(points.max(0)) + 1
    rows, columns = np.clip([top, bottom], 0, height), np.clip([left, right], 0, width)
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))


def _nothing(box: Box) -> Mask:
    rows, columns = box
    return np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)


def _filled(corners: NDArray[np.float64], box: Box) -> Mask:
    """One polygon: a pixel is inside where an odd number of edges crosses its row to the left of its centre."""
    (top, bottom), (left, right) = ((part.start, part.stop) for part in box)
    crossings = np.zeros((bottom - top, right - left + 1), dtype=np.int32)
    for (x, y), (to_x, to_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # rows whose centre is between both ends; each end belongs to one of its two edges
        low, high = sorted((y, to_y))
        first, last = max(top, int(np.ceil(low - 0.5))), min(bottom, int(np.ceil(high - 0.5)))
        if first < last:
            rows = np.arange(first, last)
            at = x + (rows + 0.5 - y) * (to_x - x) / (to_y - y)
            crossings[rows - top, np.ceil(at - 0.5).clip(left, right).astype(np.int64) - left] += 1
    return np.asarray(crossings[:, :-1].cumsum(1) % 2 == 1)


def disc_patch(centre: tuple[float, float], rim: tuple[float, float], height: int, width: int) -> Patch:
    """Pixels whose centre lies in a circle.

    Args:
        centre: As (x, y).
        rim: A point on the circle.
        height: Of the image.
        width: Of the image.

    Raises:
        ValueError: A point is not finite, or very far away.
    """
    (x, y), (rim_x, rim_y) = _checked([centre, rim])
    radius = np.hypot(rim_x - x, rim_y - y)
    box = _box(np.array([[x - radius, y - radius], [x + radius, y + radius]]), height, width)
    rows, columns = np.ogrid[box]
    return Patch(box, np.asarray(np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius))


def patch_of(mask: Mask) -> Patch:
    """What a mask of the whole image covers, cut out of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Patch((slice(0, 0), slice(0, 0)), mask[:0, :0])
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return Patch(box, mask[box].copy())  # a view would keep the whole mask


def patch_at(mask: Mask, top: int, left: int, height: int, width: int) -> Patch:
    """A mask of a part of an image at its place; what lies outside of the image is cut off."""
    rows = np.clip([top, top + mask.shape[0]], 0, height).tolist()
    columns = np.clip([left, left + mask.shape[1]], 0, width).tolist()
    inside = mask[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
    return Patch((slice(*rows), slice(*columns)), inside)


def flat_polygons(coordinates: Sequence[Sequence[float]]) -> list[list[tuple[float, float]]]:
    """COCO's polygons, ``[[x1, y1, x2, y2, ...], ...]``, as lists of corners."""
    return [[(float(x), float(y)) for x, y in zip(flat[::2], flat[1::2], strict=False)] for flat in coordinates]


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
