"""How close an image is to its original, as papers measure it: PSNR, SSIM and PSNR-B on 8-bit images.

Images are arrays [H, W] or [H, W, C], or tensors [..., C, H, W]; of type uint8, or floating point from 0 to 1, which is
rounded to 8 bits first. One number comes out for each image, [...] float64. Inputs are left as they are.

Shape legend: C channels (3 colour, 1 grey), H and W sides.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.superres.banded import BandedMatrix
from graftwork.errors import DataError, ShapeError

Images: TypeAlias = NDArray[Any] | Tensor
Colour = Literal["y", "rgb"]

PEAK = 255.0
WINDOW, DEVIATION = 11, 1.5
"""Side of the Gaussian window of SSIM and its deviation, in pixels."""

STABILITY = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
"""Constants c1 and c2 of SSIM."""

WITHOUT_DOUBLE = ("mps",)
"""Kinds of devices that know no float64, as Apple's GPUs: images that lie there are scored on the CPU."""

BLOCK = 8
"""Side of the blocks of JPEG, in pixels."""

_FROM_RGB = (
    (65.481, 128.553, 24.966, 16.0),
    (-37.797, -74.203, 112.0, 128.0),
    (112.0, -93.786, -18.214, 128.0),
)
_WINDOW_ROWS = 32  # of a block of the banded matrix: the fastest of 16 to 128
_STRIP = 64  # rows of an image at a time: the fastest of 32 to 256


def eight_bit(images: Images) -> Tensor:
    """Cut to 0..1 and round to 8 bits, halves to the even neighbour, as published scores do.

    Args:
        images: Floating point from 0 to 1; uint8 stays as it is.

    Returns:
        Tensor [..., C, H, W] uint8, where the images are or on the CPU, see :data:`WITHOUT_DOUBLE`.

    Raises:
        DataError: Another type of pixels.
        ShapeError: No images.
    """
    pixels = _tensor(images)
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise DataError(f"pixels of type {pixels.dtype}", mend="Expected uint8, or floating point from 0 to 1")
    # float32 as in the published scores: in double precision other values would be ties
    return pixels.detach().float().clamp(0, 1).nan_to_num_(0.0).mul_(PEAK).round_().to(torch.uint8)


def ycbcr(images: Images) -> Tensor:
    """Luma and both chroma channels by BT.601 in studio range, not rounded.

    Args:
        images: Colour images.

    Returns:
        [..., 3, H, W] float64 on the scale from 0 to 255: luma from 16 to 235, chroma from 16 to 240.

    Raises:
        ShapeError: The images have not three channels.

    Source: ITU-R BT.601, as MATLAB's rgb2ycbcr without its rounding.
    """
    pixels = eight_bit(images)
    _refuse_other_than_colour(pixels)
    table = torch.tensor(_FROM_RGB, dtype=torch.float64, device=pixels.device)
    return torch.einsum("oc,...chw->...ohw", table[:, :3], pixels.double() / PEAK) + table[:, 3, None, None]


def luma(images: Images) -> Tensor:
    """The first channel of :func:`ycbcr`, [..., 1, H, W]; grey images are taken as they are.

    A grey file that was read as colour has luma from 16 to 235 and scores 1.32 dB more than the same file as grey:
    published scores of Set14 differ by 0.09 dB for its one grey image.
    """
    pixels = eight_bit(images)
    if pixels.shape[-3] == 1:
        return pixels.double()
    _refuse_other_than_colour(pixels)
    red, green, blue, offset = _FROM_RGB[0]
    planes = pixels.unbind(-3)
    sums = planes[0].double().mul_(red).add_(planes[1].double(), alpha=green).add_(planes[2].double(), alpha=blue)
    return sums.div_(PEAK).add_(offset).unsqueeze(-3)


def psnr(restored: Images, original: Images, *, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Peak signal-to-noise ratio of 8-bit images.

    Args:
        restored: What is scored.
        original: The truth, of the same shape.
        border: Pixels left out on each side, before colours are converted.
        colour: ``y`` scores the luma, ``rgb`` the mean squared error over all channels.

    Returns:
        [...] float64, in dB; infinite for equal images.

    Raises:
        ShapeError: The shapes differ, or the border leaves nothing.
    """
    ours, truth = _planes(restored, original, border, colour)
    return _decibel((ours - truth).square_().mean(dim=(-3, -2, -1)))


def ssim(restored: Images, original: Images, *, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Structural similarity of 8-bit images.

    Gaussian window of 11 pixels and deviation 1.5, where it lies inside the image; variances are biased. Of colour
    images the mean over channels.

    Args:
        restored: What is scored.
        original: The truth, of the same shape.
        border: Pixels left out on each side, before colours are converted.
        colour: ``y`` scores the luma, ``rgb`` each channel.

    Returns:
        [...] float64, at most 1.

    Raises:
        ShapeError: The shapes differ, or a side is shorter than the window without its border.

    Source: Wang et al. 2004, equation 13.
    """
    ours, truth = _planes(restored, original, border, colour)
    height, width = ours.shape[-2:]
    if min(height, width) < WINDOW:
        raise ShapeError(f"ssim needs sides of {WINDOW} pixels and more without the border, got {height} x {width}")
    scores = [_similarity(a, b) for a, b in zip(ours.flatten(0, -3), truth.flatten(0, -3), strict=True)]
    return torch.stack(scores).view(ours.shape[:-2]).mean(-1) if scores else ours.new_zeros(ours.shape[:-3])


def psnr_b(restored: Images, original: Images, *, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """PSNR that also counts the blocking of JPEG: steps at the borders of 8 x 8 blocks beyond those within.

    Args:
        restored: What is scored.
        original: The truth, of the same shape.
        border: Pixels left out on each side; the grid of blocks begins after it.
        colour: ``y`` scores the luma, ``rgb`` all channels.

    Returns:
        [...] float64, in dB; at most the PSNR.

    Raises:
        ShapeError: The shapes differ, or the border leaves nothing.

    Source: Yim and Bovik 2011, equations 4 to 9. Differs: means are over the pairs of pixels there are, where common
    code divides by the number in an image whose sides are multiples of 8; for those both agree.
    """
    ours, truth = _planes(restored, original, border, colour)
    error = (ours - truth).square().mean(dim=(-3, -2, -1))
    return _decibel(error + blocking(ours))


def blocking(images: Tensor) -> Tensor:
    """Blocking effect factor of images [..., C, H, W]: mean squared step at block borders beyond that elsewhere, [...].

    Source: Yim and Bovik 2011, equations 5 to 8.
    """
    height, width = images.shape[-2:]
    at_border, elsewhere = [images.new_zeros(*images.shape[:-3], 1)] * 2
    border_pairs = other_pairs = 0
    for axis, side in ((-1, width), (-2, height)):
        steps = images.diff(dim=axis).square().movedim(axis, -1)  # ..., C, other side, side - 1
        on_grid = torch.arange(1, side, device=images.device) % BLOCK == 0
        at_border = at_border + steps[..., on_grid].flatten(-3).sum(-1, keepdim=True)
        elsewhere = elsewhere + steps[..., ~on_grid].flatten(-3).sum(-1, keepdim=True)
        per_line = steps.shape[-3] * steps.shape[-2]
        border_pairs += int(on_grid.sum()) * per_line
        other_pairs += int((~on_grid).sum()) * per_line
    if not border_pairs or not other_pairs or min(height, width) < 2:
        return images.new_zeros(images.shape[:-3])
    excess = (at_border / border_pairs - elsewhere / other_pairs).squeeze(-1).clamp(min=0)
    return excess * math.log2(BLOCK) / math.log2(min(height, width))


def _similarity(ours: Tensor, truth: Tensor) -> Tensor:
    """Mean structural similarity of two planes [H, W], strip by strip: what a strip needs stays in the processor."""
    height, width = (side - WINDOW + 1 for side in ours.shape)
    total = ours.new_zeros(())
    for top in range(0, height, _STRIP):
        rows = slice(top, min(top + _STRIP, height) + WINDOW - 1)
        total = total + _similarity_map(ours[rows], truth[rows]).sum()
    return total / (height * width)


def _similarity_map(ours: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity around each pixel whose window lies inside: [H, W] to [H - 10, W - 10]."""
    # the variances come as their sum alone: four filtered planes do in place of five
    moments = torch.stack([ours, truth, ours * ours + truth * truth, ours * truth])
    height, width = ours.shape
    mean, mean_truth, squares, product = _gauss(width).along_columns(_gauss(height).along_rows(moments))
    brightness, both = mean * mean + mean_truth * mean_truth, mean * mean_truth
    c1, c2 = STABILITY
    alike = (2 * both + c1) * (2 * (product - both) + c2)
    return alike / ((brightness + c1) * (squares - brightness + c2))


@functools.lru_cache(maxsize=64)
def _gauss(length: int) -> BandedMatrix:
    """The window of SSIM along one axis, where it lies inside the image: N to N - 10."""
    places = np.arange(length - WINDOW + 1)[:, None] + np.arange(WINDOW)
    bell = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * DEVIATION**2))
    return BandedMatrix(places, np.broadcast_to(bell / bell.sum(), places.shape), _WINDOW_ROWS)


def _refuse_other_than_colour(pixels: Tensor) -> None:
    if pixels.shape[-3] != 3:
        raise ShapeError(f"luma needs 3 colour channels, got {pixels.shape[-3]}")


def _decibel(error: Tensor) -> Tensor:
    return 10 * torch.log10(PEAK**2 / error)


def _planes(restored: Images, original: Images, border: int, colour: Colour) -> tuple[Tensor, Tensor]:
    """Both images as float64 from 0 to 255, [..., C, H, W], without the border."""
    ours, truth = eight_bit(restored), eight_bit(original)
    if ours.shape != truth.shape:
        raise ShapeError(f"images of different shapes cannot be compared: {list(ours.shape)} and {list(truth.shape)}")
    height, width = ours.shape[-2:]
    if border < 0 or min(height, width) <= 2 * border:
        raise ShapeError(f"border={border} leaves nothing of an image of {height} x {width} pixels")
    inner = (..., slice(border, height - border), slice(border, width - border))
    both = ours[inner], truth[inner].to(ours.device)
    return (luma(both[0]), luma(both[1])) if colour == "y" else (both[0].double(), both[1].double())


def _tensor(images: Images) -> Tensor:
    if isinstance(images, Tensor):
        if images.ndim < 3:
            raise ShapeError(f"expected a tensor [..., C, H, W], got {list(images.shape)}")
        return images.cpu() if images.device.type in WITHOUT_DOUBLE else images
    if images.ndim not in (2, 3):
        raise ShapeError(f"expected an array [H, W] or [H, W, C], got {list(images.shape)}")
    channels_last = images[..., None] if images.ndim == 2 else images
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(channels_last, 2, 0)))
