"""Classes of a user's own folder, and what reads its labels: from text files, annotations or shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datamodules.segmentation.classes import ClassTable, checked_names, colour_map, read_names, read_palette
from datamodules.segmentation.coco import CocoFile, InstanceAnnotations, PanopticMasks, class_table, with_background
from datamodules.segmentation.config import FolderConfig
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labelme import LabelMeShapes, names_in
from datamodules.segmentation.labels import ColourMasks, IndexMasks, LabelReader, index_table
from datamodules.segmentation.layout import Item
from graftwork.errors import DataError
from graftwork.names import nearest


class Reading(NamedTuple):
    """Classes, and what reads the labels of each split."""

    classes: ClassTable
    readers: Mapping[str, LabelReader]


def reading_of(
    kind: str,
    root: Path,
    items: Mapping[str, tuple[Item, ...]],
    annotations: Mapping[str, CocoFile],
    config: FolderConfig,
) -> Reading:
    """Classes and readers for one kind of masks.

    Args:
        kind: As the option ``masks`` names it; not ``auto``.
        root: Where the files of classes and colours lie.
        items: Images of each split.
        annotations: File in COCO's format of each split, for panoptic and instances.
        config: The dataset.

    Raises:
        DataError: Classes are not named, or files do not agree on them.
    """
    named = root / config.classes
    names = read_names(named) if named.is_file() else []
    if kind in ("panoptic", "instances"):
        return _from_annotations(annotations, names, config)
    if kind == "labelme":
        return _from_shapes(items, names, config)
    palette = root / config.palette
    entries = read_palette(palette) if palette.is_file() else []
    if kind == "colour" and not entries:
        mend = "Expected a line for every class, such as 128 64 128 road"
        raise DataError("no such file, which masks of colours need", str(palette), mend)
    _agree(names, [name for _, name in entries], named, palette)
    if not names and not entries:
        mend = "Expected a name per line, in the order of the numbers in masks, from 0"
        raise DataError("no such file; classes need names", str(named), mend)
    listed = tuple(names or (name for _, name in entries))
    every = ClassTable(listed, tuple(colour for colour, _ in entries) or colour_map(len(listed)))
    numbers, classes, known = index_table(every, config.ignore_id)
    things = tuple(_thing_labels(list(classes.names), config))
    reader: LabelReader
    if kind == "colour":
        labels = {colour: numbers[place] for place, (colour, _) in enumerate(entries)}
        reader = ColourMasks(labels, config.palette, things)
    else:
        lines = {colour: place for place, (colour, _) in enumerate(entries)}
        reader = IndexMasks(numbers, known, things, lines=lines if config.masks == "auto" else None)
    return Reading(replace(classes, things=things), dict.fromkeys(items, reader))


def _agree(names: list[str], coloured: list[str], named: Path, palette: Path) -> None:
    """Stop where both files name classes and differ."""
    if names and coloured and names != coloured:
        both = zip(names, coloured, strict=False)
        place, first, second = next(
            ((place, one, other) for place, (one, other) in enumerate(both) if one != other),
            (min(len(names), len(coloured)), "", ""),
        )
        what = f"'{first}' and '{second}'" if first else f"{len(names)} and {len(coloured)} classes"
        text = f"does not agree with {palette.name} on class {place}: {what}"
        raise DataError(text, str(named), "Both must name the same classes in the same order; or remove this one")


def _from_annotations(annotations: Mapping[str, CocoFile], names: list[str], config: FolderConfig) -> Reading:
    training = annotations["train"]
    _same_categories(annotations)
    known = {str(category["name"]) for category in training.categories}
    covers_all = training.panoptic or config.background in known
    table, labels = class_table(training, [name for name in names if covers_all or name != config.background])
    if training.panoptic:
        return Reading(table, {split: PanopticMasks(file, labels) for split, file in annotations.items()})
    table, labels, background = with_background(table, labels, config.background)
    readers = {split: InstanceAnnotations(file, labels, background) for split, file in annotations.items()}
    things = tuple(label for label in table.things if label != background)
    return Reading(ClassTable(table.names, table.palette, things), readers)


def _same_categories(annotations: Mapping[str, CocoFile]) -> None:
    """Stop where a split numbers its categories in another way than training."""
    expected = {category["id"]: category["name"] for category in annotations["train"].categories}
    for file in annotations.values():
        for category in file.categories:
            if expected.get(category["id"]) != category["name"]:
                text = f"category {category['id']} is '{category['name']}', in {annotations['train'].path} it is "
                wanted = expected.get(category["id"])
                text += f"'{wanted}'" if wanted is not None else "missing"
                raise DataError(text, str(file.path), "Number the categories of all splits in the same way")


def _from_shapes(items: Mapping[str, tuple[Item, ...]], names: list[str], config: FolderConfig) -> Reading:
    listed = names or names_in([item.label for item in items["train"]])
    if config.background and config.background not in listed:
        listed = [config.background, *listed]
    checked_names(listed, config.classes if names else str(items["train"][0].label.parent))
    things = tuple(_thing_labels(listed, config))
    background = listed.index(config.background) if config.background else IGNORED
    reader = LabelMeShapes({name: label for label, name in enumerate(listed)}, background, things)
    return Reading(ClassTable.named(listed, things), dict.fromkeys(items, reader))


def _thing_labels(names: list[str], config: FolderConfig) -> Iterator[int]:
    for name in config.things:
        if name not in names:
            close = nearest(name, names)
            hint = f"Did you mean '{close[0]}'?" if close else f"Expected some of {', '.join(names)}"
            raise DataError(f"there is no class '{name}'", "data.things", hint)
        yield names.index(name)
