"""Decoded images on disk, so that each file is decoded once and a patch costs as much as its own pixels.

Shape legend: H, W sides; C channels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.cache import cache_folder
from datamodules.superres.image import image_size, load_pixels
from datamodules.superres.image_decoding import Values
from datamodules.superres.pairs import Pair
from graftwork.errors import UserError

logger = logging.getLogger(__name__)

OPEN_FILES = 64
"""Decoded images that a process keeps mapped into its memory."""

_SIZED = 64  # images whose size is looked at to foretell that of all
_SHARE = 0.5  # of the free space that decoded images may take unasked


class PixelStore:
    """Pixels of image files, decoded on first use and mapped into memory from then on.

    A file that changes is decoded anew: its path, size and time of change name the copy. Processes beside this one may
    share the folder.

    Args:
        folder: Where decoded images are kept; None decodes at every call.
        channels: 3 for colour, 1 for grey.
    """

    def __init__(self, folder: Path | None, channels: int) -> None:
        self.folder, self.channels = folder, channels
        self._open: OrderedDict[str, Values] = OrderedDict()

    def pixels(self, path: Path) -> Values:
        """The pixels of a file, [H, W, C] uint8 or uint16; not to be written to.

        Raises:
            CorruptSample: It cannot be decoded.
        """
        if self.folder is None:
            return load_pixels(path, self.channels)
        name = self._name(path)
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        found = self._mapped(path, self.folder / name)
        self._open[name] = found
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped files: a loader process opens its own."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _name(self, path: Path) -> str:
        try:
            facts = path.stat()
        except OSError:
            return ""  # decoding will say what is wrong
        text = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{self.channels}"
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest() + ".npy"

    def _mapped(self, path: Path, copy: Path) -> Values:
        try:
            return np.load(copy, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # not there yet, or damaged
            pixels = load_pixels(path, self.channels)
        return np.load(copy, mmap_mode="r") if self._keep(pixels, copy) else pixels

    def _keep(self, pixels: Values, copy: Path) -> bool:
        """Write a decoded image in one step; a full disk ends the keeping, not the training."""
        partial = copy.with_name(f".{copy.name}.{os.getpid()}")
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                np.save(stream, pixels)
            partial.replace(copy)
        except OSError as error:
            partial.unlink(missing_ok=True)
            logger.warning("decoded images cannot be kept in %s (%s): going on without", self.folder, error.strerror)
            self.folder = None
            return False
        return True


def store_folder(cache: str, pairs: Sequence[Pair], channels: int) -> Path | None:
    """Where the decoded images of a split are kept.

    Args:
        cache: A folder, ``off``, or ``auto``: one below the temporary folder where the images take less than half of
            its free space.
        pairs: Images of the split.
        channels: 3 for colour, 1 for grey.

    Returns:
        The folder, or None to keep nothing.
    """
    if cache == "off":
        return None
    if cache != "auto":
        return Path(cache).expanduser()
    folder = cache_folder(None, "superres") / "decoded"
    needed, free = decoded_bytes(pairs, channels), shutil.disk_usage(folder.parent).free
    if needed > _SHARE * free:
        logger.warning(
            "decoded images would take about %.1f GB of %.1f GB free in %s: every patch decodes its file; "
            "--data.cache FOLDER names a place with more room",
            needed / 1e9,
            free / 1e9,
            folder.parent,
        )
        return None
    logger.info("decoded images are kept in %s, about %.2f GB", folder, needed / 1e9)
    return folder


def decoded_bytes(pairs: Sequence[Pair], channels: int) -> int:
    """About how much the decoded files of a split take, from the sizes of some of them."""
    some = pairs[:: max(1, -(-len(pairs) // _SIZED))]
    sizes = [_bytes(path, channels) for pair in some for path in (pair.original, pair.degraded) if path is not None]
    return round(sum(sizes) * len(pairs) / max(len(some), 1))


def _bytes(path: Path, channels: int) -> int:
    try:
        height, width = image_size(path)
    except UserError:  # decoding will tell
        return 0
    return height * width * channels
