"""Cityscapes with fine annotations: 19 classes, of which the 8 of people and vehicles are things.

``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` with ``gtFine/{train,val}/<city>/*_gtFine_labelIds.png`` and
``*_gtFine_instanceIds.png``. Label ids are mapped to classes while reading, so that no ``labelTrainIds`` files are
needed. The labels of the test images are kept by the authors: scores are reported on val, which is the test split too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.image_files import images_below
from datamodules.segmentation.classes import ClassTable
from datamodules.segmentation.config import CityscapesConfig
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import IndexMasks, Labels, check_size, read_ids, with_segments
from datamodules.segmentation.layout import Item, Layout, Split, find_root, needed_folder
from datamodules.segmentation.listing import objects_told
from graftwork.errors import DataError

TREE = (
    "root/leftImg8bit/train/<city>/*_leftImg8bit.png with root/gtFine/train/<city>/*_gtFine_labelIds.png and "
    "*_gtFine_instanceIds.png, the same for val"
)
SOURCE = (
    "Source: cityscapes-dataset.com, leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; for research alone "
    "(Cordts et al. 2016)."
)
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label id of class 0, 1, ...; pixels of all other ids are ignored."""

_PER_CLASS = 1000
CLASSES = ClassTable(
    (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
        *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    (
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153)),
        *((250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60)),
        *((255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ),
    tuple(range(11, 19)),
)


class CityscapesMasks(IndexMasks):
    """Label ids, and instance ids that are 1000 times the label id and a number, or the label id for groups."""

    def __init__(self, things: tuple[int, ...]) -> None:
        super().__init__({number: label for label, number in enumerate(IDS)}, things=things, other=IGNORED)

    def segmented(self, mask: NDArray[np.uint8], item: Item) -> Labels:
        """The mask with its segments; groups that nobody could tell apart are crowds."""
        if item.instances is None:
            return with_segments(mask, np.zeros(mask.shape, dtype=np.int64), self.things, void=0)
        ids = read_ids(item.instances).astype(np.int64)
        check_size(ids, mask.shape, item.instances, item.image)
        objects = np.where(ids >= _PER_CLASS, ids % _PER_CLASS + 1, 0)
        return with_segments(mask, objects, self.things, void=0)


def find_cityscapes(config: CityscapesConfig) -> Layout:
    """Images and masks of both splits; objects are told apart where there are files of instances.

    Raises:
        DataError: A folder or a mask is missing, or some of the files of instances are.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    items = {split: _items(root, split) for split in ("train", "val")}
    every = (item for found in items.values() for item in found)
    mend = "Unpack gtFine_trainvaltest.zip again"
    told = config.panoptic is not False and objects_told(every, lambda item: _instances(item.label), mend)
    reader = CityscapesMasks(CLASSES.things if told else ())
    splits = {split: Split(found, reader) for split, found in items.items()}
    return Layout(root, CLASSES, {**splits, "test": splits["val"]})


def _items(root: Path, split: str) -> tuple[Item, ...]:
    images = needed_folder(root / "leftImg8bit" / split, TREE, SOURCE)
    labels = needed_folder(root / "gtFine" / split, TREE, SOURCE)
    items = []
    for file in images_below(images):
        base = file.rpartition(".")[0].removesuffix("_leftImg8bit")
        label = labels / f"{base}_gtFine_labelIds.png"
        if not label.is_file():
            raise DataError(f"no such file for the image {images / file}", str(label), f"Expected {TREE}. {SOURCE}")
        instances = _instances(label)
        name = base.rpartition("/")[2]
        items.append(Item(name, images / file, label, instances if instances.is_file() else None))
    if not items:
        raise DataError("no images", str(images), f"Expected {TREE}. {SOURCE}")
    return tuple(items)


def _instances(label: Path) -> Path:
    """The file that tells apart the objects of a file of label ids."""
    return label.with_name(label.name.removesuffix("labelIds.png") + "instanceIds.png")
