"""How many pixels of each class the images of a split have: counted once, kept on disk.

Shape legend: N images, C classes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from datamodules.cache import cache_folder
from datamodules.guard import CorruptSample
from datamodules.image_reading import upright_size
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.layout import Item, Split
from graftwork.errors import UserError

logger = logging.getLogger(__name__)

One = TypeVar("One")
Found = TypeVar("Found")

MANY = 2000
"""So many images take long enough to be told about."""


class Counts(NamedTuple):
    """Pixels of a split.

    Args:
        pixels: Of each class in each image, [N, C] int64.
        sizes: All pixels of each image, ignored ones too, [N] int64; 0 where the file cannot be read.
    """

    pixels: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def total(self) -> tuple[int, ...]:
        """Pixels of each class."""
        return tuple(self.pixels.sum(0).tolist())

    @property
    def present(self) -> tuple[int, ...]:
        """Pixels of the images in which a class occurs, of each class."""
        return tuple(((self.pixels > 0) * self.sizes[:, None]).sum(0).tolist())


def counted(split: Split, classes: int, *, skip_corrupt: bool = False) -> Counts:
    """Pixels of each class, from disk where the same files were counted before; labels that do not fit are found so.

    Args:
        split: Images and what reads their labels.
        classes: Number of classes.
        skip_corrupt: Pass over files that cannot be decoded.

    Raises:
        CorruptSample: A file cannot be decoded.
        DataError: Labels do not fit an image or the classes; or the counts cannot be kept.
    """
    folder = cache_folder(None, "segmentation") / "counts"
    file = folder / f"{digest_of(split, f'{classes}')}.npz"
    known = _load(file, len(split), classes)
    if known is not None:
        return known
    if len(split) >= MANY:
        logger.info("counting the pixels of %s masks, once; --data.count false goes without", f"{len(split):,}")
    found = count(split, classes, skip_corrupt=skip_corrupt)
    if found.sizes.all():  # a file that is mended later must be counted
        _save(file, found)
    return found


def count(split: Split, classes: int, *, skip_corrupt: bool = False) -> Counts:
    """Pixels of each class, counted now."""

    def one(item: Item) -> tuple[NDArray[np.int64], int]:
        try:
            height, width = upright_size(item.image)
            mask = split.labels.read(item, (height, width)).mask
        except CorruptSample:
            if not skip_corrupt:
                raise
            return np.zeros(classes, dtype=np.int64), 0
        return np.bincount(mask.ravel(), minlength=IGNORED + 1)[:classes], mask.size

    rows = list(in_threads(one, split.items))
    return Counts(np.stack([row for row, _ in rows]), np.array([size for _, size in rows], dtype=np.int64))


def in_threads(function: Callable[[One], Found], values: Iterable[One]) -> Iterator[Found]:
    """What a function gives for each value, in order; decoders let go of the interpreter, so that threads help."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(function, values)
        except UserError:
            pool.shutdown(wait=False, cancel_futures=True)  # said at once, not after all other files
            raise


def digest_of(split: Split, what: str) -> str:
    """A name for something found out about the files of a split; another one when a file changes.

    Args:
        split: The split.
        what: What was found out depends on, beside the files.
    """
    digest = hashlib.blake2b(what.encode() + split.labels.signature(), digest_size=16)
    for item in split.items:
        files = (path for path in (item.image, item.label, item.instances) if path is not None)
        states = [f"{path}\0{_state(path)}" for path in files]
        digest.update(("\0".join(states) + "\n").encode(errors="replace"))
    return digest.hexdigest()


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"


def _load(file: Path, images: int, classes: int) -> Counts | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = Counts(stored["pixels"].astype(np.int64), stored["sizes"].astype(np.int64))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or cut short by a full disk
        return None
    return found if found.pixels.shape == (images, classes) and len(found.sizes) == images else None


def _save(file: Path, counts: Counts) -> None:
    """Keep the counts where that is possible; a full disk is no reason not to train."""
    partial = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        file.parent.mkdir(exist_ok=True)
        with partial.open("wb") as stream:
            np.savez_compressed(stream, pixels=counts.pixels, sizes=counts.sizes)
        partial.replace(file)
    except OSError as error:
        logger.warning("counts of pixels cannot be kept: %s", error)
        partial.unlink(missing_ok=True)
