"""Files that a dataset names, and whether they are there: by one look at each folder, because they are many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from datamodules.segmentation.layout import Item
from graftwork.errors import DataError


def absent(paths: Sequence[Path]) -> list[Path]:
    """Those of some files that are not there."""
    there = {file for folder in {path.parent for path in paths} if folder.is_dir() for file in folder.iterdir()}
    return [path for path in paths if path not in there]


def all_there(items: Sequence[Item], listing: Path, mend: str) -> None:
    """Stop where an image or a mask that a list names is missing.

    Args:
        items: What the list names.
        listing: The list.
        mend: What to do about it.

    Raises:
        DataError: Some are missing; the message has their number and the first one.
    """
    for kind, paths in (("images", [item.image for item in items]), ("masks", [item.label for item in items])):
        if missing := absent(paths):
            text = f"{len(missing):,} of {len(paths):,} listed {kind} are missing, first {missing[0]}"
            raise DataError(text, str(listing), mend)


def objects_told(items: Iterable[Item], file_of: Callable[[Item], Path], mend: str) -> bool:
    """Whether images have files that tell their objects apart: all of them, or none.

    Args:
        items: The images.
        file_of: Where the file of an image is expected.
        mend: What to do about missing ones, beside going without.

    Raises:
        DataError: Some have one and others have not; the message has the number and the first missing file.
    """
    every = tuple(items)
    without = [item for item in every if item.instances is None]
    if 0 < len(without) < len(every):
        text = f"no such file; {len(without):,} of {len(every):,} images have none that tells objects apart"
        raise DataError(text, str(file_of(without[0])), f"{mend}, or set --data.panoptic false to go without")
    return not without
