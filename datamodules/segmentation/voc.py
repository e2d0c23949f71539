"""Pascal VOC 2012: background and 20 classes of objects.

``JPEGImages/*.jpg``, ``SegmentationClass/*.png``, ``SegmentationObject/*.png`` where they are, and lists of names in
``ImageSets/Segmentation``. Masks that the first folder of masks lacks, as those of the extended training set
(Hariharan et al. 2011), are read from ``SegmentationClassAug``. The border of objects, 255, is ignored. Labels of the
test images are kept by the authors: scores are reported on val, which is the test split too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from datamodules.segmentation.classes import ClassTable, colour_map, read_text
from datamodules.segmentation.config import VocConfig
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import IndexMasks, index_table
from datamodules.segmentation.layout import Item, Layout, Split, find_root, needed_folder
from datamodules.segmentation.listing import objects_told
from graftwork.errors import DataError

logger = logging.getLogger(__name__)

TREE = (
    "root/JPEGImages/*.jpg, root/SegmentationClass/*.png (the extended set: root/SegmentationClassAug/*.png), "
    "root/ImageSets/Segmentation/train.txt and val.txt; root is the folder VOC2012 of VOCdevkit"
)
SOURCE = "Source: host.robots.ox.ac.uk/pascal/VOC/voc2012, VOCtrainval_11-May-2012.tar; images by the terms of Flickr."
NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
CLASSES = ClassTable(NAMES, ((0, 0, 0), *colour_map(len(NAMES) - 1)), tuple(range(1, len(NAMES))))
MASKS = ("SegmentationClass", "SegmentationClassAug")
"""Folders of masks; the first one that has a mask gives it."""

OWN_LISTS = ("train", "trainval", "val")
"""Lists of the challenge, whose images all have files of objects."""


def find_voc(config: VocConfig) -> Layout:
    """Images and masks of the lists; objects are told apart where there are files that do.

    Raises:
        DataError: A folder, a list, an image or a mask is missing, or some files of objects are.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    needed_folder(root / "JPEGImages", TREE, SOURCE)
    items = {"train": _items(root, config.train_list), "val": _items(root, "val")}
    told = config.panoptic is not False and _told(root, config.train_list, items)
    numbers, classes, known = index_table(CLASSES, IGNORED)
    reader = IndexMasks(numbers, known, classes.things if told else ())
    splits = {split: Split(found, reader) for split, found in items.items()}
    return Layout(root, classes, {**splits, "test": splits["val"]})


def _told(root: Path, train_list: str, items: Mapping[str, tuple[Item, ...]]) -> bool:
    """Whether objects are told apart; the extended training set has masks without them, which is no mistake."""
    every = [item for found in items.values() for item in found]
    without = sum(item.instances is None for item in items["train"])
    if without and train_list not in OWN_LISTS:
        if any(item.instances is not None for item in every):
            text = "%s: %s of %s images have no file in SegmentationObject, so that objects are not told apart"
            logger.warning(text, train_list, f"{without:,}", f"{len(items['train']):,}")
        return False
    folder = root / "SegmentationObject"
    return objects_told(every, lambda item: folder / f"{item.name}.png", "Unpack VOCtrainval_11-May-2012.tar again")


def _items(root: Path, name: str) -> tuple[Item, ...]:
    listing = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not listing.is_file():
        raise DataError("no such list of names", str(listing), f"Expected {TREE}. {SOURCE}")
    items = []
    for stem in read_text(listing).split():
        image, masks = root / "JPEGImages" / f"{stem}.jpg", [root / folder / f"{stem}.png" for folder in MASKS]
        label = next((path for path in masks if path.is_file()), masks[0])
        for path in (image, label):
            if not path.is_file():
                raise DataError(f"no such file, which {listing.name} names", str(path), f"Expected {TREE}. {SOURCE}")
        instances = root / "SegmentationObject" / f"{stem}.png"
        items.append(Item(stem, image, label, instances if instances.is_file() else None))
    if not items:
        raise DataError("names no images", str(listing), SOURCE)
    return tuple(items)
