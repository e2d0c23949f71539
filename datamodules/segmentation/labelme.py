"""Labels as the program LabelMe writes them: a JSON file per image with named shapes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.image_reading import first_line
from datamodules.segmentation.coco import read_json
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import LabelReader, Labels, Size, check_size, with_segments
from datamodules.segmentation.layout import Item
from datamodules.segmentation.polygons import Patch, disc_patch, patch_at, polygon_patch
from graftwork.errors import DataError
from graftwork.names import nearest

IGNORE, BACKGROUND = "__ignore__", "_background_"
"""Names that LabelMe keeps for pixels without a class, and for the background."""

_SHAPES = ("polygon", "rectangle", "circle", "mask")


class LabelMeShapes(LabelReader):
    """Polygons, rectangles, circles and masks; later ones lie on earlier ones.

    Args:
        labels: Name to label.
        background: Label of pixels of no shape; 255 ignores them.
        things: Labels whose objects are told apart: shapes, or those of one ``group_id``.
    """

    def __init__(self, labels: Mapping[str, int], background: int, things: Sequence[int] = ()) -> None:
        self.labels = {IGNORE: IGNORED, BACKGROUND: background, **labels}
        self.background, self.things = background, tuple(things)
        self.tells_segments = bool(things)

    def read(self, item: Item, size: Size, segments: bool = False) -> Labels:
        """Labels of an image."""
        _, found = read_json(item.label)
        shapes = shapes_of(found, item.label)
        written = (found.get("imageHeight"), found.get("imageWidth"))
        if all(isinstance(side, int) and 0 < side < 1 << 31 for side in written):
            check_size(np.broadcast_to(False, written), size, item.label, item.image)
        mask = np.full(size, self.background, dtype=np.uint8)
        objects = np.zeros(size, dtype=np.int64)
        groups: dict[str, int] = {}
        for number, shape in enumerate(shapes, 1):
            box, inside = _patch(shape, size, item.label)
            group = shape.get("group_id")
            mask[box][inside] = self._label(str(shape["label"]), item.label)
            # people write numbers and names there: each stands for itself alone
            together = number if group is None else groups.setdefault(repr(group), len(shapes) + 1 + len(groups))
            objects[box][inside] = together
        return with_segments(mask, objects, self.things) if segments else Labels(mask)

    def signature(self) -> bytes:
        """Names and labels."""
        return repr((sorted(self.labels.items()), self.background)).encode()

    def _label(self, name: str, path: Path) -> int:
        if name not in self.labels:
            close = nearest(name, list(self.labels))
            hint = f"Did you mean '{close[0]}'?" if close else "Add it to the file of classes"
            raise DataError(f"has a shape of the class '{name}', which is not among the classes", str(path), hint)
        return self.labels[name]


def _patch(shape: Mapping[str, Any], size: Size, path: Path) -> Patch:
    """Pixels of a shape.

    Raises:
        DataError: It has no inside, or cannot be read.
    """
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind not in _SHAPES:
        mend = f"Only {', '.join(_SHAPES)} have an inside; draw it as one of them, or remove it"
        raise DataError(f"'{shape['label']}' is drawn as a {kind}", str(path), mend)
    try:
        corners = [(float(x), float(y)) for x, y in points]  # type: ignore[union-attr]  # None is caught below
        if kind == "mask":
            start, end = corners
            return _pasted(shape.get("mask"), start, end, size)
        if kind == "circle":
            centre, rim = corners
            return disc_patch(centre, rim, *size)
        if kind == "rectangle":
            (left, top), (right, bottom) = corners
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return polygon_patch([corners], *size)
    except (TypeError, ValueError, OverflowError) as error:
        text = f"a {kind} of '{shape['label']}' cannot be read: {first_line(error)}"
        raise DataError(text, str(path), "Draw it again") from error


def _pasted(text: Any, start: tuple[float, float], end: tuple[float, float], size: Size) -> Patch:
    """A PNG file in base64 code, as LabelMe's tools with a model behind them write it, laid on its box.

    Args:
        text: The code; pixels above 0 are inside.
        start: Upper left pixel of the box, as (x, y).
        end: Lower right pixel; versions of LabelMe differ on whether the box ends before or behind it.
        size: Of the image; what lies outside of it is cut off.

    Raises:
        ValueError: There is no such file, or it has another size than the box.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            pixels = np.asarray(image)
    except Exception as error:  # the decoders raise a dozen kinds, each of which means a damaged file
        raise ValueError(f"its mask is no PNG file in base64 code: {first_line(error)}") from error
    left, top, right, bottom = (int(np.floor(side + 0.5)) for side in (*start, *end))
    height, width = bottom - top, right - left
    if pixels.ndim != 2 or pixels.shape[0] - height not in (0, 1) or pixels.shape[1] - width not in (0, 1):
        shape = " x ".join(map(str, pixels.shape))
        raise ValueError(f"its mask has {shape} pixels (height x width), its box {height + 1} x {width + 1}")
    return patch_at(pixels > 0, top, left, *size)


def shapes_of(found: Any, path: Path) -> list[dict[str, Any]]:
    """The shapes of a file's content.

    Raises:
        DataError: It has none, not even an empty list.
    """
    shapes = found.get("shapes") if isinstance(found, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) and "label" in shape for shape in shapes):
        raise DataError("has no list of shapes with labels", str(path), "Expected a file as LabelMe writes it")
    return shapes


def names_in(files: Sequence[Path]) -> list[str]:
    """Names of all shapes of some files, sorted; those that LabelMe keeps for itself are left out.

    Raises:
        DataError: A file cannot be read.
    """
    found = {str(shape["label"]) for file in files for shape in shapes_of(read_json(file)[1], file)}
    return sorted(found - {IGNORE, BACKGROUND})
