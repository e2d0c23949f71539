"""COCO 2017 panoptic: 80 things, which come first, and 53 stuff classes.

``annotations/panoptic_{train,val}2017.json``, ``annotations/panoptic_{train,val}2017/*.png`` (or beside), and
``{train,val}2017/*.jpg``. Scores are reported on val2017, which is the test split too.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.segmentation.coco import CocoFile, PanopticMasks, class_table, read_coco, stem_of
from datamodules.segmentation.config import CocoPanopticConfig
from datamodules.segmentation.layout import Item, Layout, Split, find_root, needed_folder
from datamodules.segmentation.listing import all_there
from graftwork.errors import DataError

TREE = (
    "root/train2017/*.jpg, root/val2017/*.jpg, root/annotations/panoptic_train2017.json and panoptic_val2017.json, "
    "root/annotations/panoptic_train2017/*.png and panoptic_val2017/*.png"
)
SOURCE = (
    "Source: cocodataset.org, 2017 train and val images, panoptic annotations; annotations CC BY 4.0, images by the "
    "terms of Flickr (Lin et al. 2014, Kirillov et al. 2019)."
)


def find_coco_panoptic(config: CocoPanopticConfig) -> Layout:
    """Images, numbers of segments and annotations of both splits.

    Raises:
        DataError: A folder, a file of annotations, or an image or a mask that it lists is missing.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    read = {split: _annotations(root, split) for split in ("train", "val")}
    classes, labels = class_table(read["train"], things_first=True)
    splits = {split: _split(root, split, file, labels) for split, file in read.items()}
    return Layout(root, classes, {**splits, "test": splits["val"]})


def _annotations(root: Path, split: str) -> CocoFile:
    path = root / "annotations" / f"panoptic_{split}2017.json"
    if not path.is_file():
        raise DataError("no such file", str(path), f"Expected {TREE}. {SOURCE}")
    return read_coco(path)


def _split(root: Path, split: str, file: CocoFile, labels: dict[int, int]) -> Split:
    images = needed_folder(root / f"{split}2017", TREE, SOURCE)
    name = f"panoptic_{split}2017"
    masks = next((path for path in (root / "annotations" / name, root / name) if path.is_dir()), None)
    masks = needed_folder(masks or root / "annotations" / name, TREE, SOURCE)
    reader = PanopticMasks(file, labels)
    items = tuple(
        Item(stem_of(name), images / name, masks / f"{stem_of(name)}.png")
        for name in sorted(file.files.values())
        if stem_of(name) in reader.segments
    )
    if not items:
        raise DataError("lists no images", str(file.path), f"Expected {TREE}. {SOURCE}")
    all_there(items, file.path, f"Unpack them again, or remove them from the list. {SOURCE}")
    return Split(items, reader)
