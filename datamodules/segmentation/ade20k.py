"""ADE20K as the scene parsing challenge of 2016 has it: 150 classes, numbers in PNG files counted from 1.

``images/{training,validation}/ADE_*.jpg`` with ``annotations/{training,validation}/ADE_*.png``; 0 is anything else and
ignored. With ``ade20k_panoptic_{train,val}`` and their JSON files beside, objects of the 100 things are told apart.
Scores are reported on validation, which is the test split too.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.image_files import images_below
from datamodules.segmentation.camvid import paired
from datamodules.segmentation.classes import ClassTable, read_text
from datamodules.segmentation.coco import PanopticMasks, class_table, read_coco
from datamodules.segmentation.config import Ade20kConfig
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.labels import IndexMasks
from datamodules.segmentation.layout import Item, Layout, Split, by_stem, find_root, needed_folder
from datamodules.segmentation.listing import all_there
from graftwork.errors import DataError

TREE = (
    "root/images/training/ADE_train_00000001.jpg, root/annotations/training/ADE_train_00000001.png, the same for "
    "validation, root/objectInfo150.txt; for panoptic also root/ade20k_panoptic_train.json with its folder"
)
SOURCE = (
    "Source: ADEChallengeData2016.zip at sceneparsing.csail.mit.edu; images for research alone, annotations BSD-3 "
    "(Zhou et al. 2017)."
)
CLASSES = 150
FOLDERS = {"train": ("training", "train"), "val": ("validation", "val")}


def find_ade20k(config: Ade20kConfig) -> Layout:
    """Images and masks of both splits.

    Raises:
        DataError: A folder, an image or a mask is missing, or the file of classes is not as expected.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    panoptic = {split: root / f"ade20k_panoptic_{short}.json" for split, (_, short) in FOLDERS.items()}
    if config.panoptic is not False and all(path.is_file() for path in panoptic.values()):
        return _panoptic(root, panoptic)
    classes = ClassTable.named(class_names(root / "objectInfo150.txt"))
    table = {number + 1: number for number in range(CLASSES)} | {0: IGNORED, IGNORED: IGNORED}
    reader = IndexMasks(table, f"1 to {CLASSES}, or 0 (ignored)")
    splits = {
        split: Split(
            paired(
                needed_folder(root / "images" / long, TREE, SOURCE),
                needed_folder(root / "annotations" / long, TREE, SOURCE),
            ),
            reader,
        )
        for split, (long, _) in FOLDERS.items()
    }
    return Layout(root, classes, {**splits, "test": splits["val"]})


def class_names(file: Path) -> list[str]:
    """Short names of the classes, from the table that comes with the data.

    Args:
        file: ``objectInfo150.txt``: a head, then number, three shares and the names, separated by tabs; the first of
            the names is taken.

    Raises:
        DataError: It is missing, or has not 150 rows.
    """
    if not file.is_file():
        raise DataError("no such file, which names the classes", str(file), f"Expected {TREE}. {SOURCE}")
    rows = [line.split("\t") for line in read_text(file).splitlines()[1:] if line.strip()]
    names = [row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdecimal()]
    if len(names) != CLASSES:
        raise DataError(f"names {len(names)} classes, expected {CLASSES}", str(file), SOURCE)
    # a few words stand for two classes each
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} {number}" if name in twice else name for number, name in enumerate(names)]


def _panoptic(root: Path, files: dict[str, Path]) -> Layout:
    read = {split: read_coco(path) for split, path in files.items()}
    classes, labels = class_table(read["train"])
    splits = {}
    for split, file in read.items():
        images = needed_folder(root / "images" / FOLDERS[split][0], TREE, SOURCE)
        masks = needed_folder(files[split].with_suffix(""), TREE, SOURCE)
        below = by_stem(images, images_below(images))
        reader = PanopticMasks(file, labels)
        items = tuple(
            Item(name, images / below.get(name, f"{name}.jpg"), masks / f"{name}.png")
            for name in sorted(reader.segments)
        )
        if not items:
            raise DataError("lists no images", str(files[split]), f"Expected {TREE}. {SOURCE}")
        all_there(items, files[split], f"Unpack them again, or remove them from the list. {SOURCE}")
        splits[split] = Split(items, reader)
    return Layout(root, classes, {**splits, "test": splits["val"]})
