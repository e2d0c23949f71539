"""Writing images of 8 or 16 bits with opacity, colour profile, EXIF and resolution, each file whole or not at all.

Shape legend: H, W sides; C channels, 3 for colour and 1 for grey.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.superres.image_metadata import Metadata
from graftwork.errors import DataError, ShapeError, missing_package

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
"""Ending of a file to its format."""

DEEP, TRANSPARENT = ("PNG", "TIFF"), ("PNG", "TIFF", "WEBP")
LONGEST = {"JPEG": 65500, "WEBP": 16383}
"""Pixels that a side may have, where a format is limited."""

_WITH_PROFILE = ("PNG", "JPEG", "TIFF", "WEBP")
_WITH_DPI = ("PNG", "JPEG", "TIFF", "BMP")
_INCH_M = 0.0254
_TEXT_TAGS = (270, 271, 272, 315, 33432)

_STRIP = 1 << 20
"""Pixels that are rounded at a time."""


def write_image(
    path: str | Path,
    pixels: NDArray[Any],
    *,
    alpha: NDArray[Any] | None = None,
    bits: int = 8,
    metadata: Metadata | None = None,
    quality: int = 95,
) -> Path:
    """Write an image in the format that the ending of its name says.

    Args:
        path: Where to; its folder is made. PNG and TIFF hold 16 bits, these and WebP opacity.
        pixels: [H, W], [H, W, 1] or [H, W, 3] floating point; cut to 0..1 and rounded, halves to even.
        alpha: Opacity from 0 to 1, [H, W].
        bits: 8 or 16 bits per channel.
        metadata: What :func:`~datamodules.superres.image.read_image` found. BMP and PPM hold none of it, a TIFF file of
            16 bits holds the descriptions of EXIF alone.
        quality: Of JPEG, from 1 to 100; colours are not subsampled. All other formats lose nothing.

    Returns:
        The path.

    Raises:
        DataError: The format is not known or cannot hold the image (see :func:`format_of`), or the file cannot be
            written.
        ShapeError: The pixels are no image, or the opacity has another size.
        MissingPackageError: 16 bits are asked for, and the package that writes them is not installed.
    """
    path, extra = Path(path), metadata or Metadata()
    kind = format_of(path, np.shape(pixels)[:2], bits=bits, transparent=alpha is not None)
    values = _values(pixels, alpha, bits)
    if bits == 16:
        content = _png16(values, extra) if kind == "PNG" else _tiff16(values, extra, alpha is not None)
    else:
        content = _by_pillow(path, values, kind, extra, quality)
    _write(path, content)
    return path


def format_of(path: Path, sides: Sequence[int], *, bits: int, transparent: bool) -> str:
    """The format that the ending of a file's name says, where it can hold an image: to ask before the work is done.

    Args:
        path: The file to write.
        sides: Height and width of the image, in pixels.
        bits: Per channel.
        transparent: Whether the image has opacity.

    Returns:
        Pillow's name of the format.

    Raises:
        DataError: The format is not known or cannot hold such an image; the message names one that can.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        raise DataError(f"the ending '{path.suffix}' is that of no image format", str(path), f"Use one of {known}")
    if bits not in (8, 16):
        raise DataError(f"bits={bits} must be 8 or 16", str(path))
    if bits == 16 and kind not in DEEP:
        raise DataError(f"{kind} files cannot hold 16 bits per channel", str(path), "Name it .png or .tif")
    if transparent and kind not in TRANSPARENT:
        raise DataError(f"{kind} files cannot hold opacity", str(path), "Name it .png, .tif or .webp")
    longest = max(sides, default=0)
    if longest > LONGEST.get(kind, longest):
        what = f"cannot be written as {kind}: a side of {longest} pixels is longer than {LONGEST[kind]}"
        raise DataError(what, str(path), "Name it .png or .tif")
    return kind


def _values(pixels: NDArray[Any], alpha: NDArray[Any] | None, bits: int) -> NDArray[Any]:
    """[H, W] or [H, W, 2 to 4] as whole numbers."""
    image = np.asarray(pixels)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ShapeError(f"expected pixels [H, W], [H, W, 1] or [H, W, 3], got {list(np.shape(pixels))}")
    if image.dtype.kind != "f":
        raise DataError(f"pixels of type {image.dtype}", mend="Expected floating point from 0 to 1")
    if alpha is not None and alpha.shape != image.shape[:2]:
        raise ShapeError(f"opacity {list(alpha.shape)} does not fit pixels {list(image.shape[:2])}")
    channels = image.shape[2] + (alpha is not None)
    values = np.empty((*image.shape[:2], channels), dtype=np.uint16 if bits == 16 else np.uint8)
    # Some rows at a time: float64 of a whole photograph would take more memory than restoring it.
    step = max(1, _STRIP // max(1, image.shape[1]))
    for top in range(0, image.shape[0], step):
        rows = slice(top, top + step)
        values[rows, :, : image.shape[2]] = _whole(image[rows], 2**bits - 1)
        if alpha is not None:
            values[rows, :, -1] = _whole(alpha[rows], 2**bits - 1)
    return values[..., 0] if channels == 1 else values


def _whole(part: NDArray[Any], full: int) -> NDArray[np.float64]:
    """Floating point as whole numbers up to ``full``."""
    found: NDArray[np.float64] = np.rint(np.clip(np.nan_to_num(part).astype(np.float64), 0, 1) * full)
    return found


def _by_pillow(path: Path, values: NDArray[np.uint8], kind: str, extra: Metadata, quality: int) -> bytes:
    options: dict[str, Any] = {}
    if kind in _WITH_PROFILE:
        options |= {"icc_profile": extra.icc} if extra.icc else {}
        options |= {"exif": extra.exif} if extra.exif else {}
    if kind in _WITH_DPI and extra.dpi:
        options["dpi"] = extra.dpi
    if kind == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True}  # exact keeps the colours of what is transparent
    if kind == "TIFF" and not extra.exif:  # libtiff cannot write the folders of EXIF
        options["compression"] = "tiff_adobe_deflate"
    stream = io.BytesIO()
    try:
        Image.fromarray(values).save(stream, kind, **options)
    except (OSError, ValueError) as error:  # sides or metadata beyond what the format allows
        raise DataError(f"cannot be written as {kind}: {error}", str(path), "Name it .png or .tif") from error
    return stream.getvalue()


def _png16(values: NDArray[np.uint16], extra: Metadata) -> bytes:
    try:
        import imagecodecs
    except ImportError as error:
        raise missing_package("imagecodecs", "vision", "writing 16 bits per channel") from error
    content = bytes(imagecodecs.png_encode(values))
    return _with_chunks(content, _png_chunks(extra))


def _png_chunks(extra: Metadata) -> bytes:
    """Metadata as chunks that stand between the head of a PNG file and its pixels."""
    chunks = b""
    if extra.icc:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(extra.icc))
    if extra.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(dpi / _INCH_M) for dpi in extra.dpi), 1))
    if extra.exif:
        chunks += _chunk(b"eXIf", extra.exif.removeprefix(b"Exif\0\0"))
    return chunks


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _with_chunks(png: bytes, chunks: bytes) -> bytes:
    head = 8 + 25  # signature and IHDR, which must come first
    return png[:head] + chunks + png[head:]


def _tiff16(values: NDArray[np.uint16], extra: Metadata, transparent: bool) -> bytes:
    try:
        import tifffile
    except ImportError as error:
        raise missing_package("tifffile", "vision", "writing 16 bits per channel") from error
    colour = values.ndim == 3 and values.shape[2] > 2
    options: dict[str, Any] = {"resolution": extra.dpi, "resolutionunit": "INCH"} if extra.dpi else {}
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        values,
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if values.ndim == 3 else None,
        extrasamples=["unassalpha"] if transparent else None,
        compression="zlib",
        predictor=True,
        metadata=None,
        software=False,
        iccprofile=extra.icc,
        extratags=_text_tags(extra),
        **options,
    )
    return stream.getvalue()


def _text_tags(extra: Metadata) -> list[tuple[Any, ...]]:
    """Descriptions of EXIF as tags of a TIFF file: code, kind (text), count, value, once."""
    if not extra.exif:
        return []
    exif = Image.Exif()
    exif.load(extra.exif)
    return [(tag, 2, None, str(exif[tag]), True) for tag in _TEXT_TAGS if tag in exif]


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot be written: {error.strerror or error}", str(path)) from error
