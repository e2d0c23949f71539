"""Bicubic resizing as MATLAB's ``imresize`` does it: the low-resolution images of every benchmark come from it.

It differs from other bicubic filters: Keys' kernel has a = -0.5 (torch without antialiasing and OpenCV take -0.75), it
is widened when shrinking, and the image goes on beyond its border as in a mirror (torch and Pillow drop those taps).

Shape legend: C channels, H and W sides of the image, h and w of the result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.superres.banded import BandedMatrix, mirrored
from graftwork.errors import ConfigError, DataError, ShapeError

Rounding = Literal["none", "output", "passes"]
Image = TypeVar("Image", NDArray[Any], Tensor)

LEVELS = 255
_HALF = (torch.float16, torch.bfloat16)
_SHRINKING_ROWS, _ENLARGING_ROWS = 32, 128  # of a block: the fastest of 16 to 256 on patches and on whole images


def imresize(
    image: Image, scale: float | Sequence[float], *, antialias: bool = True, rounding: Rounding = "none"
) -> Image:
    """Enlarge or shrink an image: first its height, then its width.

    Args:
        image: Floating point, from 0 to 1 where ``rounding`` is on. An array is [H, W] or [H, W, C], a tensor
            [..., H, W]; gradients pass.
        scale: Output pixels per input pixel and side, any number above 0; or one for the height and one for the width.
        antialias: Widen the kernel when shrinking.
        rounding: ``none`` returns plain numbers, which may leave the range; ``output`` cuts to 0..1 and rounds half up
            to 8 bits, as writing a file does; ``passes`` does so after each axis, as MATLAB does with 8-bit images (the
            published files of Set5, Set14 and Urban100 were made that way).

    Returns:
        The image with sides ceil(H scale) and ceil(W scale), of the same type.

    Raises:
        ConfigError: A scale is not above 0.
        DataError: The values are integers.
        ShapeError: No image, or an empty one.

    Source: Keys 1981, equation 15 with a = -1/2; borders and antialiasing as in MATLAB's imresize.
    """
    vertical, horizontal = _factors(scale)
    _check(image)
    result: Any = _precise(image) if isinstance(image, Tensor) else _channels_first(image)
    result = _matrix(result.shape[-2], vertical, antialias).along_rows(result)
    if rounding == "passes":
        result = eight_bit(result)
    result = _matrix(result.shape[-1], horizontal, antialias).along_columns(result)
    if rounding != "none":
        result = eight_bit(result)
    if isinstance(image, Tensor):
        result = result.to(image.dtype)
    elif image.ndim == 3:
        result = np.ascontiguousarray(np.moveaxis(result, 0, 2))
    return result


def eight_bit(image: Image) -> Image:
    """Cut to 0..1 and round half up to multiples of 1/255."""
    if isinstance(image, Tensor):
        return (image.clamp(0, 1) * LEVELS + 0.5).floor() / LEVELS
    return np.floor(np.clip(image, 0, 1) * LEVELS + 0.5) / LEVELS


def resize_taps(length: int, scale: float, antialias: bool = True) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which inputs make up each output along one axis.

    Args:
        length: Inputs.
        scale: Outputs per input.
        antialias: Widen the kernel when shrinking.

    Returns:
        Indices and weights, [outputs, taps] each. Indices beyond the border are mirrored back into the image, weights
        of a row sum to 1.
    """
    outputs = math.ceil(length * scale - 1e-9)  # 1/3 and the like must not give one output too many
    shrink = min(scale, 1.0) if antialias else 1.0
    support = 4 / shrink
    centres = (np.arange(outputs) + 0.5) / scale - 0.5
    first = np.floor(centres - support / 2) + 1
    places = first[:, None] + np.arange(math.ceil(support))
    weights = _keys(shrink * (centres[:, None] - places))
    weights /= weights.sum(axis=1, keepdims=True)
    return mirrored(places.astype(np.int64), length), weights


def _keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -1/2."""
    t = np.abs(distance)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def _matrix(length: int, scale: float, antialias: bool) -> BandedMatrix:
    return BandedMatrix(*resize_taps(length, scale, antialias), _SHRINKING_ROWS if scale < 1 else _ENLARGING_ROWS)


def _precise(image: Tensor) -> Tensor:
    """In single precision at least; in double on GPUs, which may multiply single precision with ten bits."""
    return image.double() if image.is_cuda else image.float() if image.dtype in _HALF else image


def _channels_first(image: NDArray[Any]) -> NDArray[Any]:
    pixels = image.astype(np.float32) if image.dtype == np.float16 else image
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def _factors(scale: float | Sequence[float]) -> tuple[float, float]:
    factors = tuple(float(part) for part in scale) if isinstance(scale, Sequence) else (float(scale),) * 2
    if len(factors) != 2 or not all(0 < factor < math.inf for factor in factors):
        raise ConfigError(f"scale={scale} must be a number above 0, or two of them, for height and width")
    return factors[0], factors[1]


def _check(image: NDArray[Any] | Tensor) -> None:
    floating = image.is_floating_point() if isinstance(image, Tensor) else image.dtype.kind == "f"
    if not floating:
        raise DataError(f"pixels of type {image.dtype}", mend="Divide 8-bit images by 255 first")
    tensor = isinstance(image, Tensor)
    if image.ndim < 2 or (not tensor and image.ndim > 3) or 0 in image.shape:
        expected = "[..., H, W]" if tensor else "[H, W] or [H, W, C]"
        raise ShapeError(f"expected an image {expected}, got {list(image.shape)}")
