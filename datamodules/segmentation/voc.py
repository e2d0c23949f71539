"""Pascal VOC 2012: background and 20 classes of objects.

``JPEGImages/*.jpg``, ``SegmentationClass/*.png``, ``SegmentationObject/*.png`` where they are, and lists of names in
``ImageSets/Segmentation``. The border of objects, 255, is ignored. Labels of the test images are kept by the authors:
scores are reported on val, which is the test split too.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.segmentation.classes import ClassTable, colour_map, read_text
from datamodules.segmentation.config import VocConfig
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import IndexMasks, index_table
from datamodules.segmentation.layout import Item, Layout, Split, find_root, needed_folder
from graftwork.errors import DataError

TREE = (
    "root/JPEGImages/*.jpg, root/SegmentationClass/*.png, root/ImageSets/Segmentation/train.txt and val.txt; root is "
    "the folder VOC2012 of VOCdevkit"
)
SOURCE = "Source: host.robots.ox.ac.uk/pascal/VOC/voc2012, VOCtrainval_11-May-2012.tar; images by the terms of Flickr."
NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
CLASSES = ClassTable(NAMES, ((0, 0, 0), *colour_map(len(NAMES) - 1)), tuple(range(1, len(NAMES))))


def find_voc(config: VocConfig) -> Layout:
    """Images and masks of the lists; objects are told apart where all have a file that does.

    Raises:
        DataError: A folder, a list, an image or a mask is missing.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    needed_folder(root / "JPEGImages", TREE, SOURCE)
    items = {"train": _items(root, config.train_list), "val": _items(root, "val")}
    told = all(item.instances is not None for found in items.values() for item in found)
    numbers, classes, known = index_table(CLASSES, IGNORED)
    reader = IndexMasks(numbers, known, classes.things if told else ())
    splits = {split: Split(found, reader) for split, found in items.items()}
    return Layout(root, classes, {**splits, "test": splits["val"]})


def _items(root: Path, name: str) -> tuple[Item, ...]:
    listing = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not listing.is_file():
        raise DataError("no such list of names", str(listing), f"Expected {TREE}. {SOURCE}")
    items = []
    for stem in read_text(listing).split():
        image, label = root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png"
        for path in (image, label):
            if not path.is_file():
                raise DataError(f"no such file, which {listing.name} names", str(path), f"Expected {TREE}. {SOURCE}")
        instances = root / "SegmentationObject" / f"{stem}.png"
        items.append(Item(stem, image, label, instances if instances.is_file() else None))
    if not items:
        raise DataError("names no images", str(listing), SOURCE)
    return tuple(items)
