"""Reading images: whole files with all they hold, and plain pixels for training.

Shape legend: H, W sides; C channels, 3 for colour and 1 for grey.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.superres.image_decoding import Values, decode, image_size
from datamodules.superres.image_metadata import Metadata

__all__ = ["ImageFile", "Metadata", "image_size", "load_pixels", "read_image", "to_float"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, by BT.601 in full range."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image and what its file says beside.

    Args:
        pixels: [H, W, C] float32 from 0 to 1, upright.
        alpha: Opacity, [H, W] float32 from 0 to 1; None if every pixel is opaque.
        bits: 8 or 16 bits per channel in the file.
        mode: How the file had it, as Pillow names it: ``RGB``, ``L``, ``P``, ``CMYK``, ``RGB;16``.
        metadata: Colour profile, EXIF and resolution, for :func:`~datamodules.superres.image_encoding.write_image`.
    """

    pixels: NDArray[np.float32]
    alpha: NDArray[np.float32] | None = None
    bits: int = 8
    mode: str = "RGB"
    metadata: Metadata = field(default_factory=Metadata)


def read_image(path: str | Path) -> ImageFile:
    """Read an image file of 8 or 16 bits: grey, colour, palette or CMYK, with or without opacity.

    Args:
        path: The file.

    Returns:
        The image, turned upright by its EXIF orientation.

    Raises:
        CorruptSample: The file is missing, cut short, no image, an animation, or of a kind without a fixed range; the
            message names it.
        MissingPackageError: It has 16 bits per channel, and the package that reads those is not installed.
    """
    found = decode(Path(path))
    alpha = None if found.alpha is None else to_float(found.alpha)
    return ImageFile(to_float(found.values), alpha, 8 * found.values.itemsize, found.mode, found.metadata)


def load_pixels(path: Path, channels: int) -> Values:
    """The pixels of an image file, for training and evaluation.

    Args:
        path: The file.
        channels: 3 for colour, where a grey file gets three equal channels; 1 for grey, where colour becomes full-range
            luma.

    Returns:
        [H, W, channels] uint8 or uint16, as the file has it; transparent parts are white.

    Raises:
        CorruptSample: It cannot be decoded.
        MissingPackageError: It has 16 bits per channel, and the package that reads those is not installed.
    """
    found = decode(path)
    values: Any = found.values
    if found.alpha is not None:
        values = _on_white(values, found.alpha)
    if values.shape[2] == channels:
        return values
    if channels == 3:
        return np.repeat(values, 3, axis=2)
    return np.round(values @ np.array(LUMA))[..., None].astype(values.dtype)


def to_float(values: Values) -> NDArray[np.float32]:
    """Whole numbers of 8 or 16 bits to float32 from 0 to 1."""
    return np.divide(values, np.iinfo(values.dtype).max, dtype=np.float32)


def _on_white(values: Values, alpha: Values) -> Values:
    full = np.iinfo(values.dtype).max
    share = alpha[..., None] / full
    return np.round(values * share + full * (1 - share)).astype(values.dtype)
