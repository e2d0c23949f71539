"""A user's own images with masks.

``images/train/*.jpg`` with ``masks/train/*.png``, or ``train/images`` with ``train/masks``, or ``images`` and ``masks``
alone, shared out by the names of the images. Beside: ``classes.txt``, ``palette.txt`` where masks are colours. JSON
files of COCO's format lie in the folder of masks or in its split's folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datamodules.image_files import images_below, is_hidden
from datamodules.segmentation.classes import read_palette
from datamodules.segmentation.coco import CocoFile, read_coco, stem_of
from datamodules.segmentation.config import FolderConfig
from datamodules.segmentation.folder_labels import reading_of
from datamodules.segmentation.labels import colours_elsewhere, open_mask
from datamodules.segmentation.layout import Item, Layout, Split, by_stem, cut, find_root, folder_names, matched
from graftwork.errors import DataError

TREE = (
    "root/images/train/*.jpg with root/masks/train/*.png and root/classes.txt (the same for val and test), or "
    "root/train/images with root/train/masks, or root/images with root/masks"
)
SPLITS = ("train", "val", "test")
ALIASES = {"val": ("val", "valid", "validation")}
MASK_ENDINGS = ("_mask", "_labels", "_label", "_gt")
"""Masks may be named as their image with one of these behind."""

COCO_FILES = ("panoptic.json", "instances.json", "annotations.json", "_annotations.coco.json")


class Place(NamedTuple):
    """Folders of a split.

    Args:
        images: Of the images.
        masks: Of the masks.
        instances: Of files that tell objects apart; they need not be there.
        annotations: File in COCO's format, where there is one.
    """

    images: Path
    masks: Path
    instances: Path
    annotations: Path | None


def find_folder(config: FolderConfig) -> Layout:
    """Find images and masks of each split.

    Raises:
        DataError: There is no such folder, it has no images, an image lacks its mask, or classes are not named.
    """
    config.check()
    root = find_root(config.root, TREE)
    places = split_places(root, config)
    kind, training = (config.masks, None) if config.masks != "auto" else kind_of(places["train"], root, config)
    items: dict[str, tuple[Item, ...]] = {}
    unused: list[Path] = []
    unlisted: list[Path] = []
    annotations: dict[str, CocoFile] = {}
    for split, place in places.items():
        if kind in ("panoptic", "instances"):
            annotations[split] = training if training and split == "train" else _annotations(place, kind)
            items[split], left = _listed_items(place, annotations[split])
            unlisted += left
        else:
            items[split], left = _paired(place, ".json" if kind == "labelme" else "")
            unused += left
            if config.things and kind != "labelme":
                items[split] = _with_instances(place, items[split])
    reading = reading_of(kind, root, items, annotations, config)
    splits = {split: Split(found, reading.readers[split]) for split, found in items.items()}
    flat = "train" in places and places["train"].images == root / config.images_folder
    shares = {"val": config.val_share, "test": config.test_share if flat and len(places) == 1 else 0.0}
    missing = {split: share for split, share in shares.items() if split not in splits and share > 0}
    splits |= cut(splits["train"], missing)
    cut_out = tuple(split for split in missing if split in splits)
    return Layout(root, reading.classes, splits, cut_out, tuple(unused), tuple(unlisted))


def split_places(root: Path, config: FolderConfig) -> dict[str, Place]:
    """Folders of each split that has images.

    Raises:
        DataError: There are none, or none for training, or one that was asked for is missing.
    """
    images, masks = root / config.images_folder, root / config.masks_folder
    found: dict[str, Place] = {}
    for split in SPLITS:
        name = getattr(config, f"{split}_folder")
        names = ALIASES.get(split, (split,)) if name == split else (name,)
        for candidate in names:
            inner, outer = images / candidate, root / candidate / config.images_folder
            if inner.is_dir():
                instances = root / config.instances_folder / candidate
                found[split] = _place(inner, masks / candidate, instances, root, candidate)
            elif outer.is_dir():
                beside = root / candidate
                instances = beside / config.instances_folder
                found[split] = _place(outer, beside / config.masks_folder, instances, beside, candidate)
            if split in found:
                break
        if split not in found and name != split:
            raise DataError(f"no such folder: {images / name}", f"data.{split}_folder", f"Expected {TREE}")
    if not found and images.is_dir():
        return {"train": _place(images, masks, root / config.instances_folder, root, "train")}
    if "train" not in found:
        what = f"has images for {', '.join(found)} but none for training" if found else "has no folder of images"
        raise DataError(f"{what}; found {folder_names(root)}", str(root), f"Expected {TREE}")
    return found


def _place(images: Path, masks: Path, instances: Path, beside: Path, split: str) -> Place:
    names = (*COCO_FILES, f"{split}.json", f"panoptic_{split}.json", f"instances_{split}.json")
    folders = dict.fromkeys((masks, images, beside, beside / "annotations"))
    candidates = (folder / name for folder in folders for name in names)
    return Place(images, masks, instances, next((path for path in candidates if path.is_file()), None))


def kind_of(place: Place, root: Path, config: FolderConfig) -> tuple[str, CocoFile | None]:
    """What masks are, by the files of the training split.

    Returns:
        The kind as the option ``masks`` names it, and the annotations if it took reading them to know.

    Raises:
        DataError: There are no masks, or annotations cannot be read.
    """
    if place.annotations is not None:
        annotations = read_coco(place.annotations)
        return "panoptic" if annotations.panoptic else "instances", annotations
    masks = images_below(place.masks) if place.masks.is_dir() and place.masks != place.images else []
    if not masks and place.masks.is_dir() and _files_below(place.masks, ".json"):
        return "labelme", None
    if not masks:
        what = "no masks" if place.masks.is_dir() else "no such folder of masks"
        raise DataError(what, str(place.masks), f"Expected {TREE}")
    palette = root / config.palette
    if not palette.is_file():
        return "index", None
    lines = {colour: number for number, (colour, _) in enumerate(read_palette(palette))}
    image = open_mask(place.masks / masks[0])
    coloured = image.mode in ("RGB", "RGBA", "CMYK") or colours_elsewhere(image, lines)
    return "colour" if coloured else "index", None


def _paired(place: Place, ending: str) -> tuple[tuple[Item, ...], list[Path]]:
    """Images with their masks, and masks without an image."""
    inside = place.images == place.masks
    images = by_stem(place.images, images_below(place.images))
    if not images:
        raise DataError("no images", str(place.images), f"Expected {TREE}")
    if not place.masks.is_dir():
        raise DataError("no such folder of masks", str(place.masks), f"Expected {TREE}")
    files = _files_below(place.masks, ending) if ending else images_below(place.masks)
    masks = by_stem(place.masks, files)
    short = by_stem(place.masks, [file for stem, file in masks.items() if stem not in images], MASK_ENDINGS)
    found = matched(place.images, images, place.masks, {**short, **masks}, ending or ".png")
    used = {item.label for item in found}
    return found, [] if inside else [place.masks / file for file in files if place.masks / file not in used]


def _with_instances(place: Place, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Images with the files that tell their objects apart.

    Raises:
        DataError: An image has none.
    """
    if not place.instances.is_dir():
        mend = "Put a PNG file of object numbers there for every image, or name no --data.things"
        raise DataError("no such folder, which data.things needs", str(place.instances), mend)
    files = by_stem(place.instances, images_below(place.instances))
    missing = [item.name for item in items if item.name not in files]
    if missing:
        text = f"{len(missing):,} of {len(items):,} images have no file here, first '{missing[0]}'"
        raise DataError(text, str(place.instances), f"Expected {missing[0]}.png, named as the image")
    return tuple(replace(item, instances=place.instances / files[item.name]) for item in items)


def _files_below(folder: Path, ending: str) -> list[str]:
    paths = (path for path in folder.rglob(f"*{ending}") if path.is_file() and not is_hidden(path.name))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _annotations(place: Place, kind: str) -> CocoFile:
    if place.annotations is None:
        mend = f"Expected {COCO_FILES[0] if kind == 'panoptic' else COCO_FILES[1]} there or beside"
        raise DataError("no file of annotations", str(place.masks), mend)
    found = read_coco(place.annotations)
    if found.panoptic != (kind == "panoptic"):
        mend = f"Set --data.masks {'panoptic' if found.panoptic else 'instances'}"
        raise DataError(f"has no annotations of the kind '{kind}'", str(place.annotations), mend)
    return found


def _listed_items(place: Place, annotations: CocoFile) -> tuple[tuple[Item, ...], list[Path]]:
    """Images of a folder that annotations speak of, and those that they do not list.

    Raises:
        DataError: A listed image is missing, or there are none.
    """
    below = by_stem(place.images, images_below(place.images))
    entries = annotations.by_name()
    items = []
    for number, name in sorted(annotations.files.items(), key=lambda pair: pair[1]):
        stem = stem_of(name)
        file = below.get(stem) or below.get(PurePosixPath(stem).name)
        if file is None:
            text = f"names the image {name}, which {place.images} lacks"
            raise DataError(text, str(annotations.path), "Add it, or remove it from the annotations")
        listed = annotations.annotations.get(number)
        if annotations.panoptic and not listed:
            raise DataError(f"has no annotation of the image {name}", str(annotations.path), "Add it")
        png = str(entries[stem][0].get("file_name", f"{stem}.png")) if annotations.panoptic else ""
        items.append(Item(stem, place.images / file, place.masks / png if png else annotations.path))
    if not items:
        raise DataError("lists no images", str(annotations.path), f"Expected those of {place.images}")
    known = {path for item in items for path in (item.image, item.label)}  # masks may lie among the images
    return tuple(items), [place.images / file for file in below.values() if place.images / file not in known]
