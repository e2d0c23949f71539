"""Images of any size read part by part, and label maps of any size written part by part.

Shape legend: H x W image, h x w part of it.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.core.run.atomic import TMP_SUFFIX, cannot_write
from datamodules.guard import CorruptSample
from datamodules.image_reading import from_array, read_image, upright_size
from graftwork.errors import DataError, ShapeError, UserError

Span = tuple[int, int]
"""First pixel of a part along an axis, and the one after the last."""

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INVERTED, _GREY, _COLOUR, _LUMA_CHROMA = 0, 1, 2, 6
_UNASSOCIATED = 2
_KEPT_BYTES = 64 << 20
"""Of decoded blocks of a TIFF file: the parts of a row of tiles share them."""


class PixelSource(Protocol):
    """An image that is read part by part."""

    @property
    def height(self) -> int:
        """Its rows."""

    @property
    def width(self) -> int:
        """Its columns."""

    def read(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        """Pixels of some rows and columns, [h, w, channels] uint8."""


class ArraySource:
    """An array in memory, or mapped from a file.

    Args:
        pixels: [H, W] or [H, W, 1, 3 or 4]: uint8, uint16, or floats from 0 to 1.
        channels: 3 for colour, 1 for grey.

    Raises:
        ShapeError: Another shape.
    """

    def __init__(self, pixels: Any, channels: int = 3) -> None:
        if np.ndim(pixels) not in (2, 3) or 0 in np.shape(pixels):
            raise ShapeError(f"expected an image [H, W] or [H, W, C], got {list(np.shape(pixels))}")
        self.pixels, self.channels = pixels, channels
        self.height, self.width = (int(side) for side in np.shape(pixels)[:2])

    def read(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        """Pixels of some rows and columns, [h, w, channels] uint8.

        Raises:
            DataError: Values of another type or range.
        """
        return _pixels(from_array(self.pixels[slice(*rows), slice(*columns)], self.channels))


class PillowSource:
    """An image file of a format that is decoded in one piece, at three bytes a pixel.

    Args:
        path: The file.
        channels: 3 for colour, 1 for grey.

    Raises:
        CorruptSample: It cannot be decoded.
    """

    def __init__(self, path: Path, channels: int = 3) -> None:
        self.image = whole_image(path, channels)
        self.width, self.height = self.image.size

    def read(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        """Pixels of some rows and columns, [h, w, channels] uint8."""
        return _pixels(self.image.crop((columns[0], rows[0], columns[1], rows[1])))


class TiffSource:
    """A TIFF file of which only the blocks that a part touches are read and decoded; memory-mapped where it is plain.

    Args:
        path: The file; its first page is the image, of a pyramid that is the finest level.
        channels: 3 for colour, 1 for grey.

    Raises:
        CorruptSample: It cannot be read.
        DataError: A kind of TIFF that cannot be read in blocks.
    """

    def __init__(self, path: Path, channels: int = 3) -> None:
        import tifffile

        self.path, self.channels = path, channels
        try:
            self._file = tifffile.TiffFile(path)
            self._page: Any = self._file.pages[0].aspage()
        except Exception as error:  # a dozen kinds, each of which means a damaged file
            raise CorruptSample(f"cannot be read: {error}", str(path)) from error
        reason = _why_not_in_blocks(self._page)
        if reason:
            self._file.close()
            raise DataError(reason, str(path))
        self.height, self.width = int(self._page.imagelength), int(self._page.imagewidth)
        self._mapped: Any = self._page.asarray(out="memmap") if self._page.is_memmappable else None
        self._blocks: OrderedDict[int, NDArray[Any]] = OrderedDict()
        tiled = self._page.is_tiled
        self._block = (
            int(self._page.tilelength if tiled else min(self._page.rowsperstrip, self.height)),
            int(self._page.tilewidth if tiled else self.width),
        )

    def read(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        """Pixels of some rows and columns, [h, w, channels] uint8.

        Raises:
            CorruptSample: Some of its blocks cannot be decoded.
        """
        if self._mapped is not None:
            values = self._mapped[slice(*rows), slice(*columns)]
        else:
            values = self._assembled(rows, columns)
        if int(self._page.photometric) == _INVERTED:
            values = np.iinfo(values.dtype).max - values if values.dtype != bool else ~values
        return _pixels(from_array(values, self.channels, str(self.path)))

    def _assembled(self, rows: Span, columns: Span) -> NDArray[Any]:
        samples = int(self._page.samplesperpixel)
        values = np.zeros((rows[1] - rows[0], columns[1] - columns[0], samples), self._page.dtype)
        across = -(-self.width // self._block[1])
        for down in range(rows[0] // self._block[0], -(-rows[1] // self._block[0])):
            for right in range(columns[0] // self._block[1], -(-columns[1] // self._block[1])):
                block = self._decoded(down * across + right)
                corner = down * self._block[0], right * self._block[1]
                here = [
                    slice(max(span[0] - first, 0), min(span[1] - first, side))
                    for span, first, side in zip((rows, columns), corner, block.shape, strict=False)
                ]
                there = [
                    slice(part.start + first - span[0], part.stop + first - span[0])
                    for part, span, first in zip(here, (rows, columns), corner, strict=True)
                ]
                values[tuple(there)] = block[tuple(here)]
        return values

    def _decoded(self, index: int) -> NDArray[Any]:
        """A block, [h, w, samples]."""
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        page, handle = self._page, self._file.filehandle
        try:
            handle.seek(page.dataoffsets[index])
            found = page.decode(handle.read(page.databytecounts[index]), index, jpegtables=page.jpegtables)[0]
        except Exception as error:  # the decoders raise a dozen kinds, each of which means a damaged file
            raise CorruptSample(f"block {index} cannot be decoded: {error}", str(self.path)) from error
        shape = (*self._block, int(page.samplesperpixel))
        block = np.zeros(shape, page.dtype) if found is None else found[0]  # files leave empty blocks out
        self._blocks[index] = block
        while len(self._blocks) > 1 and sum(kept.nbytes for kept in self._blocks.values()) > _KEPT_BYTES:
            self._blocks.popitem(last=False)
        return block


def open_image(path: str | Path, channels: int = 3) -> PixelSource:
    """An image file, to be read part by part.

    Args:
        path: The file.
        channels: 3 for colour, 1 for grey.

    Returns:
        Of TIFF files blocks are read as they are needed; other formats are decoded in one piece, at ``channels`` bytes
        a pixel.

    Raises:
        CorruptSample: It cannot be read.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise CorruptSample(f"cannot be read: {error.strerror or error}", str(path)) from error
    if head in _TIFF_HEADS:
        with contextlib.suppress(ImportError, DataError):
            return TiffSource(path, channels)
    return PillowSource(path, channels)


def whole_image(path: Path, channels: int = 3) -> Image.Image:
    """Decode an image file of any size in one piece, see :func:`datamodules.image_reading.read_image`."""
    with _any_size():
        return read_image(path, channels)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file of any size, see :func:`datamodules.image_reading.upright_size`."""
    with _any_size():
        return upright_size(path)


@contextlib.contextmanager
def label_file(path: str | Path, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """A label map that is written part by part and appears at ``path`` when all of it is there.

    Args:
        path: ``.npy`` for an array, ``.tif`` for an image of one channel.
        height: Rows.
        width: Columns.

    Yields:
        [H, W] uint8, mapped to the file.

    Raises:
        UserError: Another ending, or a place that cannot be written to; what was there before is untouched.
    """
    path = Path(path).expanduser()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{TMP_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = _mapped(unfinished, path.suffix.lower(), (height, width))
        yield labels
        labels.flush()
        unfinished.replace(path)
    except OSError as error:
        raise cannot_write(path, error, "--output") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _mapped(path: Path, kind: str, shape: tuple[int, int]) -> Any:
    if kind == ".npy":
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if kind in (".tif", ".tiff"):
        import tifffile

        return tifffile.memmap(path, shape=shape, dtype=np.uint8, photometric="minisblack")
    raise UserError(f"label maps are written as .npy or .tif, not {kind or 'without an ending'}", where="--output")


def _why_not_in_blocks(page: Any) -> str:
    """Why a page is left to decoders that take a file whole; empty if it is not."""
    samples, kind = int(page.samplesperpixel), int(page.photometric)
    colours = {_INVERTED: 1, _GREY: 1, _COLOUR: 3, _LUMA_CHROMA: 3}.get(kind, 0)
    opacity = tuple(int(extra) for extra in page.extrasamples or ())
    if page.dtype not in (np.uint8, np.uint16, bool):
        return f"pixels of type {page.dtype}"
    if not colours or samples != colours + len(opacity) or opacity not in ((), (_UNASSOCIATED,)):
        return f"{samples} samples a pixel of photometric kind {kind}"
    if opacity and colours == 1:
        return "grey with opacity"
    if int(page.planarconfig or 1) != 1 and samples > 1:
        return "channels in planes"
    if int(page.imagedepth or 1) != 1 or page.tags.valueof(274, default=1) != 1:
        return "an image that is turned, or of several layers"
    return ""


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Lift Pillow's limit of 179 million pixels for a file that the user has named."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values
