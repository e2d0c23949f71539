"""Segments and classes of images in COCO's formats.

Source: the COCO data format, cocodataset.org/#format-data and #format-results: masks as run lengths down the columns,
panoptic segments as colours with id = red + 256 green + 65536 blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def run_lengths(mask: Array) -> list[int]:
    """Lengths of the runs of a mask [H, W], down the columns, the first of pixels outside it."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    if not flat.size:
        return []
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def bounding_box(mask: Array) -> list[int]:
    """First column, first row, width and height of what a mask [H, W] covers; zeros where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def annotation(mask: Array, image: int, category: int, number: int, score: float | None = None) -> dict[str, Any]:
    """A mask as an annotation.

    Args:
        mask: [H, W].
        image: Number of the image.
        category: Number of the class.
        number: Number of the annotation.
        score: Certainty from 0 to 1, where there is one.
    """
    found: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
        "area": int(mask.sum()),
        "bbox": bounding_box(mask),
        "iscrowd": 0,
    }
    return found if score is None else {**found, "score": round(float(score), 6)}


def categories(
    names: Sequence[str], palette: Sequence[tuple[int, int, int]], things: Sequence[int]
) -> list[dict[str, Any]]:
    """The classes, numbered as their labels."""
    return [
        {"id": label, "name": name, "color": list(colour), "isthing": int(label in things), "supercategory": ""}
        for label, (name, colour) in enumerate(zip(names, palette, strict=True))
    ]


def as_colours(segments: Array) -> Array:
    """Numbers of segments [H, W] as the colours of a panoptic PNG file, [H, W, 3] uint8."""
    numbers = np.ascontiguousarray(segments, dtype="<u4")  # its bytes are the colours; images may be large
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(*numbers.shape, 4)[..., :3])


def segments_info(segments: Array, classes: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
    """What a panoptic file says of the segments 1, 2, ... of an image; those without a pixel are left out."""
    found = []
    for number, (label, score) in enumerate(zip(classes, scores, strict=True), start=1):
        mask = segments == number
        if mask.any():
            row = {"id": number, "category_id": int(label), "area": int(mask.sum()), "bbox": bounding_box(mask)}
            found.append({**row, "iscrowd": 0, "score": round(float(score), 6)})
    return found
