"""Image files of any kind to whole numbers of 8 or 16 bits, upright, with opacity apart.

Pillow decodes everything but images of 16 bits per channel, which it would cut to 8: imagecodecs and tifffile do those.

Shape legend: H, W sides; C channels, 3 for colour and 1 for grey.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from datamodules.guard import CorruptSample
from datamodules.image_reading import first_line
from datamodules.superres.image_metadata import Metadata, metadata_of, orientation_of
from graftwork.errors import UserError, missing_package

MEND = "Replace or remove the file, or go on without it by --data.on_corrupt skip"
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")
"""Formats whose further pictures are an animation; in TIFF and in photographs of telephones they are previews."""

_TIFF_HEADS = (b"II*\0", b"MM\0*")
_INVERTED_GREY, _COLOUR, _SEPARATED = 0, 2, 5
_ASSOCIATED, _PLANAR = 1, 2

Values: TypeAlias = NDArray[Any]
"""Whole numbers: uint8 or uint16."""


class Decoded(NamedTuple):
    """An image as whole numbers.

    Args:
        values: [H, W, C] uint8 or uint16.
        alpha: Opacity of the same type, [H, W]; None if every pixel is opaque.
        mode: How the file had it, as Pillow names it, with ``;16`` for 16 bits: ``RGB``, ``P``, ``CMYK``, ``RGB;16``.
        metadata: What else the file says.
    """

    values: Values
    alpha: Values | None
    mode: str
    metadata: Metadata


def decode(path: Path) -> Decoded:
    """Decode an image file.

    Args:
        path: The file. Of several pages of a TIFF the first is taken.

    Returns:
        The picture, turned upright. Palettes and other colour spaces become RGB; CMYK by its profile where it has one.

    Raises:
        CorruptSample: The file is missing, cut short, no image, an animation, or of a kind without a fixed range.
        MissingPackageError: It has 16 bits per channel, and the package that reads those is not installed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptSample(f"cannot be read: {error.strerror or error}", str(path)) from error
    if not content:
        raise CorruptSample("is an empty file", str(path), MEND)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on palettes, and on images of more than 90 million pixels
            return _decoded(content, str(path))
    except UserError:
        raise
    except Exception as error:  # the decoders raise a dozen kinds, each of which means a damaged file
        raise CorruptSample(f"cannot be decoded: {first_line(error)}", str(path), MEND) from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as :func:`decode` would give it, from the head of its file.

    Raises:
        CorruptSample: The head cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            turned = orientation_of(image) > 4 and image.format != "TIFF"  # there Pillow gives the size upright
            return (width, height) if turned else (height, width)
    except Exception as error:
        raise CorruptSample(f"cannot be read: {first_line(error)}", str(path), MEND) from error


def _decoded(content: bytes, where: str) -> Decoded:
    try:
        image: Any = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[:4] in _TIFF_HEADS:  # of 16 bits with opacity, for instance, which Pillow does not know
            return _tiff16(content, None)
        raise
    if image.format in _MOVING and getattr(image, "n_frames", 1) > 1:
        text = f"is an animation of {image.n_frames} pictures, expected a single one"
        raise CorruptSample(text, where, "Save the pictures as files of their own")
    if image.format == "PNG" and content[24] == 16:  # IHDR, the first chunk, has the bit depth there
        return _png16(content, image)
    if image.format == "TIFF" and image.tag_v2.get(258, (1,))[0] == 16 and image.mode not in ("I", "F"):
        return _tiff16(content, image)
    return _by_pillow(image, where)


def _by_pillow(image: Image.Image, where: str) -> Decoded:
    mode = image.mode
    image.load()
    turn = orientation_of(image)  # after loading: Pillow turns TIFF files itself
    if mode in _SIXTEEN_BIT or (mode == "I" and image.format == "PPM"):
        values: Any = np.asarray(image)
        return _finished(values.astype(np.uint16)[..., None], None, "L;16", metadata_of(image), turn)
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating-point numbers"
        raise CorruptSample(f"its pixels are {kind}, which have no fixed range", where, "Save it with 8 or 16 bits")
    metadata = metadata_of(image, keep_profile=mode not in ("CMYK", "LAB", "YCbCr", "HSV"))
    values = np.asarray(_plain(image))
    values = values[..., None] if values.ndim == 2 else values
    opacity = values[..., -1] if values.shape[2] in (2, 4) else None
    return _finished(values[..., : 3 if values.shape[2] > 2 else 1], opacity, mode, metadata, turn)


def _plain(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as L, LA, RGB or RGBA."""
    transparent = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
    if image.mode in ("L", "LA", "RGB", "RGBA") and not transparent:
        return image
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        try:
            profile, screen = io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(profile), screen, outputMode="RGB")
            return found if found is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")  # a broken profile is no reason to lose the picture
    grey = image.mode in ("1", "L", "La")
    return image.convert(("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB"))


def _png16(content: bytes, image: Image.Image) -> Decoded:
    values = _codecs().png_decode(content)
    values = values[..., None] if values.ndim == 2 else values
    colour = values.shape[2] > 2
    opacity = values[..., -1] if values.shape[2] in (2, 4) else None
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[values.shape[2]] + ";16"
    return _finished(values[..., : 3 if colour else 1], opacity, mode, metadata_of(image), orientation_of(image))


def _tiff16(content: bytes, image: Image.Image | None) -> Decoded:
    with _tiff().TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        values = page.asarray()
    if values.dtype != np.uint16:
        raise ValueError(f"pixels of type {values.dtype}")
    kind = int(page.photometric)
    if values.ndim == 3 and int(page.planarconfig) == _PLANAR:
        values = np.moveaxis(values, 0, 2)
    values = values[..., None] if values.ndim == 2 else values
    colours = {_COLOUR: 3, _SEPARATED: 4}.get(kind, 1)
    opacity = values[..., colours] if values.shape[2] > colours and page.extrasamples[:1] in ((1,), (2,)) else None
    pixels = values[..., :colours]
    if opacity is not None and int(page.extrasamples[0]) == _ASSOCIATED:
        pixels = _divided(pixels, opacity)
    if kind == _INVERTED_GREY:
        pixels = 65535 - pixels
    if kind == _SEPARATED:
        pixels = np.round((65535.0 - pixels[..., :3]) * (1 - pixels[..., 3:] / 65535)).astype(np.uint16)
    mode = {3: "RGB", 4: "CMYK"}.get(colours, "L") + ("A" if opacity is not None else "") + ";16"
    if image is None:
        profile = page.tags.get(34675)
        return _finished(pixels, opacity, mode, Metadata(profile and bytes(profile.value)), 1)
    metadata = metadata_of(image, keep_profile=kind != _SEPARATED)
    return _finished(pixels, opacity, mode, metadata, orientation_of(image))


def _divided(pixels: NDArray[np.uint16], opacity: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Colours that were multiplied by their opacity, as they were before."""
    share = np.maximum(opacity, 1)[..., None] / 65535
    return np.clip(np.round(pixels / share), 0, 65535).astype(np.uint16)


def _finished(values: Values, alpha: Values | None, mode: str, metadata: Metadata, orientation: int) -> Decoded:
    full = np.iinfo(values.dtype).max
    opaque = alpha is None or bool((alpha == full).all())
    upright = _upright(values, orientation)
    return Decoded(upright, None if alpha is None or opaque else _upright(alpha, orientation), mode, metadata)


def _upright(values: Values, orientation: int) -> Values:
    """[H, W, ...] as it is to be seen; EXIF orientations 5 to 8 exchange the sides."""
    if orientation > 4:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _codecs() -> Any:
    try:
        import imagecodecs
    except ImportError as error:
        raise missing_package("imagecodecs", "vision", "an image of 16 bits per channel") from error
    return imagecodecs


def _tiff() -> Any:
    _codecs()  # what compressed files are unpacked with
    try:
        import tifffile
    except ImportError as error:
        raise missing_package("tifffile", "vision", "an image of 16 bits per channel") from error
    return tifffile
