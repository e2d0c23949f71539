"""Annotations in COCO's format: panoptic (PNG files of numbers) and instances (polygons and run-length codes).

Shape legend: H, W sides of the image; S segments.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.findings import several
from datamodules.guard import CorruptSample
from datamodules.segmentation.classes import MOST_CLASSES, ClassTable, Colour, checked_names, colour_map
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import MEND, LabelReader, Labels, Size, check_size, from_segments, open_mask
from datamodules.segmentation.layout import Item
from datamodules.segmentation.polygons import Patch, flat_polygons, patch_of, polygon_patch, run_length_mask
from graftwork.errors import DataError


@dataclass(frozen=True)
class CocoFile:
    """A JSON file of annotations.

    Args:
        path: The file.
        categories: Its classes, as they stand there.
        files: Name of each image's file, by the number of the image.
        annotations: Annotations of each image: one with ``segments_info`` (panoptic), or any number (instances).
        panoptic: Which of both.
        digest: Of its content.
    """

    path: Path
    categories: tuple[dict[str, Any], ...]
    files: Mapping[int, str]
    annotations: Mapping[int, list[dict[str, Any]]]
    panoptic: bool
    digest: bytes

    def by_name(self) -> dict[str, list[dict[str, Any]]]:
        """Annotations by :func:`stem_of` the image's file; images without any have an empty list."""
        return {stem_of(name): self.annotations.get(number, []) for number, name in self.files.items()}


def stem_of(name: str) -> str:
    """Name of a file with its folders, but without its ending: the name of the item."""
    return PurePosixPath(name).with_suffix("").as_posix()


def read_coco(path: Path) -> CocoFile:
    """Read a JSON file of annotations.

    Raises:
        DataError: It is missing, no JSON, lacks what the format has, or its images and annotations do not fit.
    """
    content, found = read_json(path)
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    try:
        entries, images = _entries(found, "annotations"), _entries(found, "images")
        for entry in entries:
            if "category_id" in entry:
                entry["category_id"] = _whole(entry, "category_id", "annotation")
            annotations[entry["image_id"]].append(entry)
        numbers = [image["id"] for image in images]
        names = [_file_name(image) for image in images]
        files = dict(zip(numbers, names, strict=True))
        categories = [
            {**entry, "id": _whole(entry, "id", "category"), "name": str(entry["name"])}
            for entry in _entries(found, "categories")
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        mend = "Expected images, annotations and categories as COCO has them"
        raise DataError(f"is no file of COCO annotations: {text}", str(path), mend) from error
    _differ("images have the id", Counter(numbers), path)
    _differ("images have, without its ending, the name", Counter(map(stem_of, names)), path)
    _differ("categories have the id", Counter(category["id"] for category in categories), path)
    _all_belong(annotations, files, path)
    checked_names([category["name"] for category in categories], str(path))
    categories.sort(key=lambda category: category["id"])
    panoptic = any("segments_info" in entry for entry in entries)
    return CocoFile(path, tuple(categories), files, annotations, panoptic, hashlib.blake2b(content).digest())


def _entries(found: Any, key: str) -> list[dict[str, Any]]:
    entries = found.get(key) if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TypeError(f"'{key}' is missing or no list of objects")
    return entries


def _whole(entry: Mapping[str, Any], key: str, what: str) -> int:
    try:
        return int(entry[key])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{key} {entry[key]!r} of {what} {entry.get('id')!r} is no whole number") from error


def _file_name(image: Mapping[str, Any]) -> str:
    name = str(image["file_name"])
    if not PurePosixPath(name).name:
        raise ValueError(f"file_name {name!r} of image {image['id']!r} names no file")
    return name


def _differ(what: str, counts: Counter[Any], path: Path) -> None:
    """Stop where a name or number comes twice: annotations are found by it."""
    twice, count = counts.most_common(1)[0] if counts else ("", 0)
    if count > 1:
        raise DataError(f"{count} {what} {twice!r}", str(path), "Give each one of its own")


def _all_belong(annotations: Mapping[Any, Sequence[Any]], files: Mapping[Any, str], path: Path) -> None:
    """Stop where annotations are of no image: the image that they were meant for would be all background."""
    strange = [number for number in annotations if number not in files]
    if strange:
        count = sum(len(annotations[number]) for number in strange)
        text = f"{several(count, 'annotation', 'belongs', 'belong')} to no image, first image_id {strange[0]!r}"
        mend = "Remove them, or add their images"
        same = next((number for number in files if str(number) == str(strange[0])), None)
        if same is not None:
            mend = f"There is an image with the id {same!r}: write both as numbers"
        raise DataError(text, str(path), mend)


def read_json(path: Path) -> tuple[bytes, Any]:
    """Bytes and content of a JSON file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        content = path.read_bytes()
        return content, json.loads(content)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as JSON: {error}", str(path), "Write or download it again") from error


def class_table(
    file: CocoFile, names: Sequence[str] = (), things_first: bool = False
) -> tuple[ClassTable, dict[int, int]]:
    """Classes of a file of annotations, and the label of each of its categories.

    Args:
        file: The annotations.
        names: Names in the order of their labels; that of the categories' numbers if empty.
        things_first: Give things the first labels, as kMaX-DeepLab and others do on COCO.

    Raises:
        DataError: There is a category that ``names`` lacks, or a name without a category.
    """
    categories = list(file.categories)
    if names:
        categories = _in_order(categories, names, file.path)
    elif things_first:
        categories.sort(key=lambda category: not _is_thing(category, file.panoptic))
    colours = [tuple(category["color"]) if _has_colour(category) else None for category in categories]
    spare = colour_map(len(categories))
    palette: tuple[Colour, ...] = tuple(colour or spare[place] for place, colour in enumerate(colours))
    things = tuple(label for label, category in enumerate(categories) if _is_thing(category, file.panoptic))
    table = ClassTable(tuple(str(category["name"]) for category in categories), palette, things)
    return table, {int(category["id"]): label for label, category in enumerate(categories)}


def _in_order(categories: list[dict[str, Any]], names: Sequence[str], path: Path) -> list[dict[str, Any]]:
    known = {str(category["name"]): category for category in categories}
    if strangers := sorted(set(known) - set(names)):
        raise DataError(
            f"has the category '{strangers[0]}', which the file of classes lacks", str(path), "Add it there"
        )
    if strangers := [name for name in names if name not in known]:
        mend = "Remove it from the file of classes"
        raise DataError(f"has no category '{strangers[0]}', which the file of classes names", str(path), mend)
    return [known[name] for name in names]


def _is_thing(category: Mapping[str, Any], panoptic: bool) -> bool:
    return bool(category.get("isthing", not panoptic))


def _has_colour(category: Mapping[str, Any]) -> bool:
    colour = category.get("color")
    return isinstance(colour, list) and len(colour) == 3 and all(part in range(256) for part in colour)


class PanopticMasks(LabelReader):
    """PNG files whose pixels are numbers of segments, R + 256 G + 65536 B; 0 is void.

    Args:
        file: Annotations, which give the class of each segment.
        labels: Category to label; 255 ignores one.
    """

    tells_segments = True

    def __init__(self, file: CocoFile, labels: Mapping[int, int]) -> None:
        self.path, self.digest, self.labels = file.path, file.digest, dict(labels)
        # arrays, because COCO has a million segments, and loader processes would copy as many objects
        self.segments: dict[str, NDArray[np.int64]] = {}
        for name, entries in file.by_name().items():
            if entries:
                self.segments[name] = _segments_of(entries[0], file.path)

    def read(self, item: Item, size: Size, segments: bool = False) -> Labels:
        """Labels of an image."""
        pixels = np.asarray(open_mask(item.label).convert("RGB")).astype(np.int32)  # H, W, 3
        check_size(pixels, size, item.label, item.image)
        ids = pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16
        numbers, categories, crowd = self.segments[item.name]
        known = np.concatenate([[0], numbers])
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        strange = known[places] != ids
        if strange.any():
            text = f"has the segment {ids[strange][0]}, which {self.path} does not list"
            raise DataError(text, str(item.label), "Both files must be of one version; save PNG files unchanged")
        classes = [self._label(category, item) for category in categories.tolist()]
        return from_segments((places - 1).astype(np.int32), classes, crowd.astype(bool).tolist(), segments)

    def signature(self) -> bytes:
        """Content of the annotations, and labels."""
        return self.digest + repr(sorted(self.labels.items())).encode()

    def _label(self, category: int, item: Item) -> int:
        if category not in self.labels:
            text = f"a segment of {item.name} has the category {category}, which is not listed"
            raise DataError(text, str(self.path), "Add it to categories")
        return self.labels[category]


def _segments_of(annotation: Mapping[str, Any], path: Path) -> NDArray[np.int64]:
    """Numbers, sorted, categories, and whether they are crowds, [3, S]."""
    try:
        rows = sorted(
            (int(info["id"]), int(info["category_id"]), int(bool(info.get("iscrowd", 0))))
            for info in annotation["segments_info"]
        )
        return np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        text = f"segments_info of image {annotation.get('image_id')} is not as expected: {error}"
        raise DataError(text, str(path), "Expected id, category_id and iscrowd") from error


class InstanceAnnotations(LabelReader):
    """Objects as polygons or run-length codes; smaller objects lie on larger ones.

    Args:
        file: Annotations.
        labels: Category to label.
        background: Label of pixels of no object; 255 ignores them.
    """

    tells_segments = True

    def __init__(self, file: CocoFile, labels: Mapping[int, int], background: int) -> None:
        self.path, self.digest = file.path, file.digest
        self.labels, self.background = dict(labels), background
        # as bytes, because loader processes would copy lists and numbers one by one as they look at them
        self.annotations = {name: pickle.dumps(entries) for name, entries in file.by_name().items()}

    def read(self, item: Item, size: Size, segments: bool = False) -> Labels:
        """Labels of an image."""
        classes, crowd = [self.background], [False]
        drawn = np.zeros(size, dtype=np.int32)
        patches = [(self._patch(entry, size, item), entry) for entry in pickle.loads(self.annotations[item.name])]
        patches.sort(key=lambda pair: (not pair[1].get("iscrowd"), -int(pair[0].inside.sum())))
        for (box, inside), entry in patches:
            label = self.labels.get(entry.get("category_id"))
            if label is None:
                text = f"an annotation of {item.name} has the category {entry.get('category_id')}, which is not listed"
                raise DataError(text, str(self.path), "Add it to categories")
            drawn[box][inside] = len(classes)
            classes.append(label)
            crowd.append(bool(entry.get("iscrowd")))
        return from_segments(drawn, classes, crowd, segments)

    def signature(self) -> bytes:
        """Content of the annotations, and labels."""
        return self.digest + repr((sorted(self.labels.items()), self.background)).encode()

    def _patch(self, entry: Mapping[str, Any], size: Size, item: Item) -> Patch:
        shape: Any = entry.get("segmentation")
        try:
            if not isinstance(shape, dict):
                return polygon_patch(flat_polygons(shape), *size)
            mask = run_length_mask(shape)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            text = f"annotation {entry.get('id')} of {item.name} has no readable segmentation: {error}"
            raise CorruptSample(text, str(self.path), MEND) from error
        check_size(mask, size, self.path, item.image)
        return patch_of(mask)


def with_background(table: ClassTable, labels: Mapping[int, int], name: str) -> tuple[ClassTable, dict[int, int], int]:
    """Classes with one for what no polygon covers.

    Args:
        table: Classes of the annotations.
        labels: Category to label.
        name: Of the background; a class of this name is used, else it becomes the first one. Empty to ignore.

    Returns:
        Classes, labels, and the label of the background.

    Raises:
        DataError: There are too many classes.
    """
    if not name:
        return table, dict(labels), IGNORED
    if name in table.names:
        return table, dict(labels), table.names.index(name)
    if len(table.names) >= MOST_CLASSES:
        raise DataError(f"{len(table.names)} classes leave none for '{name}'", "data.background", "Set it to nothing")
    black = (0, 0, 0)
    palette = (black if black not in table.palette else colour_map(255)[-1], *table.palette)
    wider = ClassTable((name, *table.names), palette, tuple(label + 1 for label in table.things))
    return wider, {category: label + 1 for category, label in labels.items()}, 0
