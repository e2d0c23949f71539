"""From the channels of an image to those that a network takes, and back: grey, colour and mosaics.

Shape legend: H, W sides of an image, C its channels, 1 or 3; D channels of the network; s scale; p side of a pattern.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.superres.bicubic import imresize
from datamodules.superres.degradations.mosaic import masked, pattern_mask
from datamodules.superres.image import LUMA
from datamodules.superres.info import RestorationInfo
from graftwork.errors import DataError

Pixels = NDArray[np.float32]

_LUMA = np.array(LUMA, dtype=np.float32)


def as_input(pixels: Pixels, info: RestorationInfo, where: str = "image") -> Pixels:
    """What a network restores of an image.

    Args:
        pixels: [H, W, C].
        info: Channels and pattern that it was trained with.
        where: What to call the image in messages.

    Returns:
        [H, W, D]: grey repeated, or the luma of colour. For a mosaic [H', W', 3] of whole patterns, with zeros where
        the filters let a colour not pass: of one channel each value goes to the colour that was measured there.

    Raises:
        DataError: The image of a mosaic is smaller than the pattern.
    """
    if info.pattern:
        return _measured(pixels, info.pattern, where)
    if pixels.shape[2] == info.channels:
        return pixels
    return pixels.repeat(3, axis=2) if info.channels == 3 else _luma(pixels)


def as_image(restored: Pixels, pixels: Pixels, info: RestorationInfo) -> Pixels:
    """What becomes of an image by what the network gave.

    Args:
        restored: [s * H, s * W, D] from 0 to 1; at least as large for a mosaic.
        pixels: The image, [H, W, C].
        info: As in :func:`as_input`.

    Returns:
        [s * H, s * W, C]; [H, W, 3] for a mosaic. A colour image restored by a grey network keeps its colours.
    """
    if info.pattern:
        height, width = pixels.shape[:2]
        return restored[:height, :width]
    if restored.shape[2] == pixels.shape[2]:
        return restored
    return _luma(restored) if pixels.shape[2] == 1 else _coloured(restored, pixels, info.scale)


def _luma(pixels: Pixels) -> Pixels:
    luma: Pixels = (pixels @ _LUMA)[..., None]
    return luma


def _coloured(luma: Pixels, pixels: Pixels, scale: int) -> Pixels:
    """Restored luma with the chroma of the image, resized bicubically.

    In BT.601 the same amount added to red, green and blue changes luma alone.
    """
    colours = imresize(pixels, scale) if scale > 1 else pixels
    return np.clip(colours + (luma - _luma(colours)), 0, 1)


def _measured(pixels: Pixels, pattern: str, where: str) -> Pixels:
    """[H, W, C] to [H', W', 3]: sides go on to whole patterns by repeating the last one, which keeps its phase."""
    mask = pattern_mask(pattern)
    height, width = pixels.shape[:2]
    if min(height, width) < len(mask):
        what = f"{height} x {width} pixels are less than the pattern '{pattern}' of {len(mask)} x {len(mask)}"
        raise DataError(what, where, "Give a larger part of the mosaic")
    rows, columns = (_whole(side, len(mask)) for side in (height, width))
    colours = np.broadcast_to(pixels, (height, width, 3))
    return masked(colours[rows][:, columns], mask)


def _whole(side: int, period: int) -> NDArray[np.int64]:
    """Positions on an axis, and then some of its last ``period`` again, up to a multiple of it."""
    positions = np.arange(side + -side % period)
    positions[side:] -= period
    return positions
