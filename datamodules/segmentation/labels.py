"""From mask files to labels: class numbers, colours, and segments where objects are told apart.

Shape legend: H, W sides of the image; S segments.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.guard import CorruptSample
from datamodules.image_reading import undecodable
from datamodules.segmentation.classes import ClassTable, Colour
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.layout import Item
from graftwork.errors import DataError

Size = tuple[int, int]
"""Height and width, in pixels."""

MEND = "Replace or remove the file, or go on without it by --data.on_corrupt skip"
_IDS = 1 << 16
_UNKNOWN = 1 << 15
_TABLE = 1 << 20
_GREY_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I;16N", "I")


class Labels(NamedTuple):
    """What is where in an image.

    Args:
        mask: Label of every pixel, [H, W] uint8; 255 is ignored.
        segments: Number of the segment of every pixel, [H, W] int32; -1 is void. None where none were asked for.
        classes: Label of segment 0, 1, ...
        crowd: Whether a segment is a group of objects that were not told apart.
    """

    mask: NDArray[np.uint8]
    segments: NDArray[np.int32] | None = None
    classes: tuple[int, ...] = ()
    crowd: tuple[bool, ...] = ()


class LabelReader:
    """Base of what reads the labels of an image.

    Attributes:
        tells_segments: Whether objects can be told apart.
    """

    tells_segments = False

    def read(self, item: Item, size: Size, segments: bool = False) -> Labels:
        """Labels of an image.

        Args:
            item: The image.
            size: Its height and width.
            segments: Whether to give segments, too.

        Raises:
            CorruptSample: A file cannot be decoded.
            DataError: It does not fit the image or the classes; the message names it.
        """
        raise NotImplementedError(f"{type(self).__name__} must read labels")

    def signature(self) -> bytes:
        """What labels depend on beside the file of an item."""
        return b""


class IndexMasks(LabelReader):
    """Masks whose pixels are numbers.

    Args:
        table: Number to label; numbers that are not in it are refused.
        known: Which numbers are allowed, for messages.
        things: Labels whose objects are told apart by the items' ``instances``; empty where they are not.
        other: Label of all numbers that are not in ``table``; None refuses them.
        lines: Number of the class of each colour of ``palette.txt``. Masks whose own palette gives these colours to
            other numbers are refused; none are if it is empty.
    """

    def __init__(
        self,
        table: Mapping[int, int],
        known: str = "",
        things: Sequence[int] = (),
        other: int | None = None,
        lines: Mapping[Colour, int] | None = None,
    ) -> None:
        self.table = np.full(_IDS, _UNKNOWN if other is None else other, dtype=np.uint16)
        self.table[[*table]] = [*table.values()]
        self.known, self.things, self.lines = known, tuple(things), dict(lines or {})
        self.tells_segments = bool(things)

    def read(self, item: Item, size: Size, segments: bool = False) -> Labels:
        """Labels of an image; where segments are asked for, from its file of instances, too."""
        image = open_mask(item.label)
        if colours_elsewhere(image, self.lines):
            text = "its palette gives the colours of palette.txt to other numbers than the lines there"
            mend = "Set --data.masks colour to go by the colours, or --data.masks index to go by the numbers"
            raise DataError(text, str(item.label), mend)
        ids = ids_of(image, item.label)
        check_size(ids, size, item.label, item.image)
        mask = self.table[ids]
        if (mask == _UNKNOWN).any():
            raise unknown_ids(ids, mask == _UNKNOWN, item.label, self.known)
        return self.segmented(mask.astype(np.uint8), item) if segments else Labels(mask.astype(np.uint8))

    def segmented(self, mask: NDArray[np.uint8], item: Item) -> Labels:
        """The mask with its segments; a subclass says how files of instances are to be read."""
        return told_apart(mask, item, self.things)

    def signature(self) -> bytes:
        """The table."""
        return self.table.tobytes()


class ColourMasks(LabelReader):
    """Masks whose pixels are colours.

    Args:
        palette: Colour to label.
        where: The file that gives the colours, for messages.
        things: Labels whose objects are told apart by the items' ``instances``; empty where they are not.
    """

    def __init__(self, palette: Mapping[Colour, int], where: str, things: Sequence[int] = ()) -> None:
        self.things, self.tells_segments = tuple(things), bool(things)
        codes = {red << 16 | green << 8 | blue: label for (red, green, blue), label in palette.items()}
        self.codes = np.array(sorted(codes), dtype=np.int64)
        self.labels = np.array([codes[code] for code in sorted(codes)], dtype=np.uint8)
        self.where = where

    def read(self, item: Item, size: Size, segments: bool = False) -> Labels:
        """Labels of an image."""
        pixels = np.asarray(open_mask(item.label).convert("RGB")).astype(np.int32)  # H, W, 3
        codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        check_size(codes, size, item.label, item.image)
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        strange = self.codes[places] != codes
        if strange.any():
            raise self._unknown(codes[strange], item.label)
        mask = self.labels[places]
        return told_apart(mask, item, self.things) if segments else Labels(mask)

    def signature(self) -> bytes:
        """Colours and labels."""
        return self.codes.tobytes() + self.labels.tobytes()

    def _unknown(self, codes: NDArray[np.int64], path: Path) -> DataError:
        code = int(codes[0])
        colour = f"{code >> 16} {code >> 8 & 255} {code & 255}"
        text = f"{len(codes):,} pixels have colours that {self.where} does not name, such as {colour}"
        mend = f"Add a line '{colour} name'; colours at edges come from resizing or JPEG: save masks as PNG, unscaled"
        return DataError(text, str(path), mend)


def told_apart(mask: NDArray[np.uint8], item: Item, things: Sequence[int]) -> Labels:
    """A mask with segments by the file of instances of an item; objects of one class have one segment without it.

    Raises:
        CorruptSample: The file cannot be decoded.
        DataError: It has another size than the image.
    """
    if item.instances is None:
        return with_segments(mask, np.zeros(mask.shape, dtype=np.int64), things)
    objects = read_ids(item.instances)
    check_size(objects, mask.shape, item.instances, item.image)
    return with_segments(mask, objects.astype(np.int64), things)


def with_segments(mask: NDArray[np.uint8], objects: NDArray[np.int64], things: Sequence[int], void: int = -1) -> Labels:
    """Segments from labels and numbers of objects.

    Args:
        mask: Label of every pixel, [H, W].
        objects: Number of the object of every pixel, [H, W]; looked at for things alone.
        things: Labels whose objects are told apart; all other classes have one segment each.
        void: Number of the object that is a crowd; -1 for none.
    """
    apart = np.isin(mask, things)
    keys = np.where(apart, objects + 1, 0) << 8 | mask
    found, inverse = distinct(keys)
    kept = (found & 255) != IGNORED
    numbers = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    crowd = ((found >> 8) == void + 1) & np.isin(found & 255, things)
    return Labels(
        mask,
        numbers[inverse],
        tuple((found[kept] & 255).tolist()),
        tuple((crowd[kept] & (void >= 0)).tolist()),
    )


def distinct(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values of an array of small numbers from 0, sorted, and the place of each element among them.

    As ``np.unique`` gives them, without sorting an image of millions of pixels.
    """
    largest = int(keys.max(initial=0))
    if largest >= _TABLE:
        found, inverse = np.unique(keys, return_inverse=True)
        return found, inverse.reshape(keys.shape)
    seen = np.zeros(largest + 1, dtype=bool)
    seen[keys] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[keys]


def from_segments(
    segments: NDArray[np.int32], classes: Sequence[int], crowd: Sequence[bool], keep: bool = True
) -> Labels:
    """The mask that belongs to segments.

    Args:
        segments: [H, W], -1 is void.
        classes: Label of each; 255 for segments that are ignored, whose pixels become void.
        crowd: Whether each is a crowd.
        keep: Whether segments are wanted beside the mask.
    """
    table = np.array([*classes, IGNORED], dtype=np.uint8)  # -1 takes the last one
    mask = table[segments]
    if not keep:
        return Labels(mask)
    used = np.bincount(segments.ravel() + 1, minlength=len(table))[[*range(1, len(table)), 0]] > 0
    used &= table != IGNORED
    numbers = np.where(used, np.cumsum(used) - 1, -1).astype(np.int32)
    chosen = np.flatnonzero(used).tolist()
    return Labels(mask, numbers[segments], tuple(classes[i] for i in chosen), tuple(bool(crowd[i]) for i in chosen))


def open_mask(path: Path) -> Image.Image:
    """A mask file as it is stored, decoded.

    Raises:
        CorruptSample: It is missing, empty, cut short or no image.
        DataError: It is a JPEG file, or has more pixels than Pillow's limit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptSample(f"cannot be read: {error.strerror or error}", str(path), MEND) from error
    if not content:
        raise CorruptSample("is an empty file", str(path), MEND)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            image.load()
    except Exception as error:  # the decoders raise a dozen kinds, each of which means a damaged file
        raise undecodable(error, path) from error
    if image.format == "JPEG":
        raise DataError("is a JPEG file, which changes numbers and colours", str(path), "Save masks as PNG files")
    return image


def read_ids(path: Path) -> NDArray[Any]:
    """Numbers of a mask file of 1, 8 or 16 bits, with or without a palette, [H, W] of an unsigned type.

    Raises:
        CorruptSample: It cannot be decoded.
        DataError: It has colours, or numbers above 65535.
    """
    return ids_of(open_mask(path), path)


def ids_of(image: Image.Image, path: Path) -> NDArray[Any]:
    """Numbers of a decoded mask, as :func:`read_ids` gives them.

    Raises:
        DataError: It has colours, or numbers above 65535.
    """
    if image.mode in _GREY_MODES:
        ids = np.asarray(image)
        if ids.dtype == np.int32 and ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < _IDS:
            text = f"has numbers from {ids.min()} to {ids.max()}, expected 0 to 65535"
            raise DataError(text, str(path), "Save pixels without a class as 255")
        return ids.astype(np.uint8) if ids.dtype == bool else ids.astype(np.uint16) if ids.itemsize > 1 else ids
    if image.mode == "F":
        raise DataError("has floating-point numbers, expected whole ones", str(path), "Save masks as PNG files")
    pixels = np.asarray(image.convert("RGB"))
    if (pixels[..., :1] == pixels).all():  # grey, saved as colour
        return pixels[..., 0]
    mend = (
        "Save masks as PNG files of class numbers, or say in palette.txt which class has which colour: 128 64 128 road"
    )
    raise DataError("is a colour image, expected one of class numbers", str(path), mend)


def colours_elsewhere(image: Image.Image, lines: Mapping[Colour, int]) -> bool:
    """Whether the palette of a mask gives known colours to other numbers than they should have.

    Args:
        image: A decoded mask of any mode.
        lines: The number that each known colour should have.

    Returns:
        True if the numbers below 255 have known colours alone, all different, and some of these should have other
        numbers. Greys from 0 are what programs write where nobody chose colours, and say nothing.
    """
    if not lines or image.mode != "P":
        return False
    flat = [*(image.getpalette("RGB") or []), *[-1] * (3 * 256)]  # palettes may be short
    used = [number for number, count in enumerate(image.histogram()) if count and number != IGNORED]
    colours = [(flat[3 * number], flat[3 * number + 1], flat[3 * number + 2]) for number in used]
    if colours == [(number, number, number) for number in used] or len({*colours}) < len(colours):
        return False
    return all(colour in lines for colour in colours) and [lines[colour] for colour in colours] != used


def check_size(found: NDArray[Any], size: Sequence[int], path: Path, image: Path) -> None:
    """Stop where a mask has another size than its image.

    Raises:
        DataError: It has; both files and sizes are named.
    """
    if found.shape[:2] != tuple(size):
        text = f"has {found.shape[0]} x {found.shape[1]} pixels (height x width), {image} has {size[0]} x {size[1]}"
        raise DataError(text, str(path), "Make the mask for this image, or remove the pair")


def unknown_ids(ids: NDArray[Any], strange: NDArray[np.bool_], path: Path, known: str) -> DataError:
    """The error for numbers that stand for no class."""
    numbers, counts = np.unique(ids[strange], return_counts=True)
    listed = ", ".join(map(str, numbers[:5].tolist())) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    several = "numbers" if len(numbers) > 1 else "number"
    text = f"has {several} {listed} in {int(counts.sum()):,} pixels, expected {known}"
    return DataError(text, str(path), "Name the class in the file of classes, or set --data.ignore_id to the number")


def index_table(classes: ClassTable, ignored: int) -> tuple[dict[int, int], ClassTable, str]:
    """What the numbers of a mask stand for, where one of them is ignored beside 255.

    Args:
        classes: A name for every number, from 0.
        ignored: The ignored number.

    Returns:
        Number to label, the classes without the ignored one, and the allowed numbers in words.

    Raises:
        DataError: No class is left.
    """
    count = len(classes.names)
    kept = [number for number in range(count) if number != ignored]
    if not kept:
        text = f"ignores the number of '{classes.names[0]}', which is the only class"
        raise DataError(text, f"data.ignore_id={ignored}", "Name further classes, or ignore another number")
    table = {number: label for label, number in enumerate(kept)} | {ignored: IGNORED, IGNORED: IGNORED}
    also = sorted({ignored, IGNORED})
    known = f"{kept[0]} to {kept[-1]}, or {' and '.join(map(str, also))} (ignored)"
    return table, classes.without(ignored), known
