"""Image files of any mode to 8-bit colour or grey, upright; what cannot be decoded is named."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from datamodules.guard import CorruptSample
from graftwork.errors import DataError

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 274
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def read_image(path: Path, channels: int = 3) -> Image.Image:
    """Decode an image file.

    Args:
        path: The file; of an animation the first picture is taken.
        channels: 3 for colour, 1 for grey.

    Returns:
        Image of mode ``RGB`` or ``L``, turned upright by its EXIF orientation; transparent parts are white, 16-bit grey
        values are divided by 257.

    Raises:
        CorruptSample: The file is missing, cut short, no image, or of a kind that has no fixed range (32-bit integers,
            floating point).
        DataError: It has more pixels than Pillow's limit.
    """
    try:
        content = path.read_bytes()  # closed at once: an image is decoded later, and files are many
    except OSError as error:
        raise CorruptSample(f"cannot be read: {error.strerror or error}", str(path)) from error
    if not content:
        raise CorruptSample("is an empty file", str(path), MEND)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on palettes, and on images of more than 90 million pixels
            stored = Image.open(io.BytesIO(content))
            stored.load()
            image = ImageOps.exif_transpose(stored)
    except Exception as error:  # the decoders raise a dozen kinds, each of which means a damaged file
        raise undecodable(error, path) from error
    if image.mode == "I" and stored.format in ("PNG", "PPM"):  # 16 bits in the file
        image = _eight_bit(image)
    return to_mode(image, channels, str(path))


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` gives it, without decoding its pixels.

    An orientation that a PNG file keeps behind its pixels is not seen: there the sides are those of the stored image.

    Raises:
        CorruptSample: The head cannot be read.
        DataError: It has more pixels than Pillow's limit.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            # getexif of PNG files decodes the pixels to look behind them; that of the base class takes what was read
            exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
            # TIFF files give upright sides already
            turned = image.format != "TIFF" and exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except OSError as error:
        what = "cannot be decoded" if path.is_file() else "cannot be read"
        raise CorruptSample(f"{what}: {error.strerror or first_line(error)}", str(path), MEND) from error
    except Exception as error:  # as above
        raise undecodable(error, path) from error
    return (width, height) if turned else (height, width)


MEND = "Replace or remove the file, or go on without it by --data.on_corrupt skip"


def undecodable(error: Exception, path: Path) -> DataError:
    """What the error of a decoder means: a damaged file, or a sound one of more pixels than Pillow decodes.

    The latter is no :class:`CorruptSample`, because nobody who skips damaged files wants to lose the largest images.
    """
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return DataError(f"has more than {most:,} pixels, the limit of Pillow", str(path), "Cut it into smaller images")
    return CorruptSample(f"cannot be decoded: {first_line(error)}", str(path), MEND)


def to_mode(image: Image.Image, channels: int, where: str = "image") -> Image.Image:
    """An image of any mode as ``RGB`` (``channels`` 3) or ``L`` (``channels`` 1).

    Raises:
        CorruptSample: Its values have no fixed range.
    """
    wanted = "RGB" if channels == 3 else "L"
    if image.mode in SIXTEEN_BIT:
        image = _eight_bit(image)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise CorruptSample(f"its pixels are {kind}, which have no fixed range", where, "Save it with 8 or 16 bits")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        image = _on_white(image)
    return image if image.mode == wanted else image.convert(wanted)


def from_array(array: Any, channels: int, where: str = "array") -> Image.Image:
    """An array of pixels as an image.

    Args:
        array: [H, W] or [H, W, 1, 3 or 4]; uint8, uint16, bool, or floating point from 0 to 1. A fourth channel is
            opacity.
        channels: 3 for colour, 1 for grey.
        where: What to call it in messages.

    Raises:
        DataError: Another shape, type or range; the message names what was found.
    """
    pixels = np.asarray(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in pixels.shape:
        raise DataError(
            f"shape {list(np.shape(array))} is no image", where, "Expected [H, W] or [H, W, C] with 1, 3 or 4 channels"
        )
    return to_mode(Image.fromarray(_bytes(pixels, where)), channels, where)


def _bytes(pixels: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.uint16:
        return np.round(pixels / 257).astype(np.uint8)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind != "f":
        raise DataError(f"pixels of type {pixels.dtype}", where, "Expected uint8, uint16, bool, or floats from 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise DataError(f"floating-point pixels from {low:g} to {high:g}", where, "Expected 0 to 1; divide by 255?")
    return np.round(pixels * 255).astype(np.uint8)


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    opaque = image.convert("RGBA")
    white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, opaque).convert("RGB")


def first_line(error: Exception) -> str:
    """What a decoder says, in one line, without the names of its own objects."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
