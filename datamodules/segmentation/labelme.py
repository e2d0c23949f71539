"""Labels as the program LabelMe writes them: a JSON file per image with named shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.segmentation.coco import read_json
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import LabelReader, Labels, Size, check_size, with_segments
from datamodules.segmentation.layout import Item
from datamodules.segmentation.polygons import disc_mask, polygon_mask
from graftwork.errors import DataError
from graftwork.names import nearest

IGNORE, BACKGROUND = "__ignore__", "_background_"
"""Names that LabelMe keeps for pixels without a class, and for the background."""

_SHAPES = ("polygon", "rectangle", "circle")


class LabelMeShapes(LabelReader):
    """Polygons, rectangles and circles; later ones lie on earlier ones.

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
        if all(isinstance(side, int) for side in written):
            check_size(np.empty(written, dtype=bool), size, item.label, item.image)
        mask = np.full(size, self.background, dtype=np.uint8)
        objects = np.zeros(size, dtype=np.int64)
        for number, shape in enumerate(shapes, 1):
            inside = self._inside(shape, size, item.label)
            group = shape.get("group_id")
            mask[inside] = self._label(str(shape["label"]), item.label)
            objects[inside] = number if group is None else len(shapes) + 1 + int(group)
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

    def _inside(self, shape: Mapping[str, Any], size: Size, path: Path) -> NDArray[np.bool_]:
        kind, points = shape.get("shape_type", "polygon"), shape.get("points")
        try:
            corners = [(float(x), float(y)) for x, y in points]  # type: ignore[union-attr]  # None is caught below
            if kind == "rectangle":
                (left, top), (right, bottom) = corners
                corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            if kind == "circle":
                centre, rim = corners
                return disc_mask(centre, float(np.hypot(rim[0] - centre[0], rim[1] - centre[1])), *size)
        except (TypeError, ValueError) as error:
            raise DataError(f"a {kind} of '{shape['label']}' has no readable points", str(path), "Draw it again") from (
                error
            )
        if kind not in _SHAPES:
            mend = f"Only {', '.join(_SHAPES)} have an inside; draw it as one of them, or remove it"
            raise DataError(f"'{shape['label']}' is drawn as a {kind}", str(path), mend)
        return polygon_mask([corners], *size)


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
