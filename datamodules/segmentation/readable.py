"""Which images of a split can be read: found out once before a run, so that an evaluation has no image twice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from datamodules.cache import cache_folder
from datamodules.findings import listed, several
from datamodules.guard import CorruptSample
from datamodules.image_reading import read_image
from datamodules.segmentation.counts import MANY, digest_of, in_threads
from datamodules.segmentation.info import SegmentationInfo
from datamodules.segmentation.layout import Item, Split
from graftwork.errors import DataError

logger = logging.getLogger(__name__)


def readable(split: Split, info: SegmentationInfo, name: str) -> tuple[Split, Sequence[str]]:
    """A split without the images that cannot be decoded, themselves or their labels.

    Every file is read, unless the same ones were sound before.

    Args:
        split: Images to evaluate on.
        info: Channels, and whether segments are wanted.
        name: Of the split, for messages.

    Returns:
        The split, the same one if nothing is wrong with it, and the corrupt files.

    Raises:
        DataError: Labels do not fit an image or the classes; or every image is corrupt.
    """
    sound = cache_folder(None, "segmentation") / "sound" / digest_of(split, f"{info.channels} {info.panoptic}")
    if sound.is_file():
        return split, ()
    if len(split) >= MANY:
        logger.info("%s: reading %s images, once, to leave out corrupt ones", name, f"{len(split):,}")

    def corrupt(item: Item) -> str:
        try:
            image = read_image(item.image, info.channels)
            split.labels.read(item, (image.height, image.width), info.panoptic)
        except CorruptSample as error:
            return error.where
        return ""

    files = list(in_threads(corrupt, split.items))
    kept = tuple(item for item, file in zip(split.items, files, strict=True) if not file)
    broken = [file for file in files if file]
    if not kept:
        raise DataError(f"every image of {name} is corrupt", broken[0], "Check the files with doctor")
    if broken:
        logger.warning("%s goes without %s: %s", name, several(len(broken), "corrupt image"), listed(broken))
        return Split(kept, split.labels), broken
    with contextlib.suppress(OSError):  # a full disk is no reason not to train
        sound.parent.mkdir(exist_ok=True)
        sound.touch()
    return split, ()
