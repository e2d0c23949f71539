"""From decoded images and labels to training crops: pure functions of a generator of random numbers.

Where a crop lies is drawn first; then only that part of the image is resampled, which gives the pixels that resampling
all of it would, up to rounding. Masks take the value at the centre of each new pixel, so that they stay where the
image is.

Shape legend: C channels, H, W sides of an image, h, w those of a view of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.segmentation.config import AugmentConfig
from datamodules.segmentation.info import IGNORED, SegmentationInfo
from datamodules.segmentation.labels import Size

VOID = -1
"""Number of the segment that void pixels belong to."""


class View(NamedTuple):
    """A part of an image, resampled.

    Args:
        box: Left, top, right and bottom edge in the image, in its pixels.
        size: Height and width to resample it to.
        mirrored: Whether left and right are exchanged.
    """

    box: tuple[float, float, float, float]
    size: Size
    mirrored: bool = False

    def of_image(self, image: Image.Image) -> Image.Image:
        """What the view shows of an image, bilinear and smoothed where it is shrunk."""
        return self._of(image, Image.Resampling.BILINEAR)

    def of_numbers(self, numbers: NDArray[np.generic]) -> NDArray[np.generic]:
        """What the view shows of [H, W] of uint8 or int32, [h, w] of the nearest pixels."""
        return np.array(self._of(Image.fromarray(numbers), Image.Resampling.NEAREST))

    def _of(self, image: Image.Image, how: Image.Resampling) -> Image.Image:
        shown = image.resize(self.size[::-1], how, box=self.box)
        return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else shown


def draw_view(random: np.random.Generator, mask: NDArray[np.uint8], augment: AugmentConfig, crop: Size) -> View:
    """A random scale, a random crop that no class fills, and whether it is mirrored.

    Args:
        random: Where it is drawn from.
        mask: Labels of the image, [H, W].
        augment: What is drawn, from which ranges.
        crop: Height and width of crops; a view of a smaller image shows all of it and is smaller.

    Source: the recipes of mmsegmentation: resize to a range, random crop with ``cat_max_ratio``, flip.
    """
    size = scaled_size(mask.shape, augment, float(random.uniform(*augment.scale)))
    for attempt in range(augment.redraws + 1):
        view = _draw_crop(random, mask.shape, size, crop)
        if attempt == augment.redraws or augment.max_share >= 1 or _is_mixed(view, mask, augment.max_share):
            break
    return view._replace(mirrored=bool(random.random() < augment.flip))


def scaled_size(size: tuple[int, ...], augment: AugmentConfig, factor: float) -> Size:
    """Height and width of a whole image once it is resized and scaled.

    Args:
        size: Height and width of the image.
        augment: The range it is resized to, if any.
        factor: Of both sides.
    """
    height, width = size[:2]
    if all(augment.resize):
        longer, shorter = max(augment.resize), min(augment.resize)
        factor *= min(longer / max(height, width), shorter / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _draw_crop(random: np.random.Generator, own: tuple[int, ...], size: Size, crop: Size) -> View:
    height, width = (min(side, most) for side, most in zip(size, crop, strict=True))
    top, left = int(random.integers(size[0] - height + 1)), int(random.integers(size[1] - width + 1))
    down, across = own[0] / size[0], own[1] / size[1]
    # whole sides end at the image's own edge: a float just above it is refused
    right, bottom = min((left + width) * across, own[1]), min((top + height) * down, own[0])
    return View((left * across, top * down, right, bottom), (height, width))


def _is_mixed(view: View, mask: NDArray[np.uint8], most: float) -> bool:
    """Whether more than one class is in view and none has more than a share of the pixels that count."""
    counts = np.bincount(view.of_numbers(mask).ravel(), minlength=IGNORED + 1)[:IGNORED]
    return bool((counts > 0).sum() > 1 and counts.max() < most * counts.sum())


def change_colour(image: Image.Image, random: np.random.Generator, augment: AugmentConfig) -> Image.Image:
    """Random brightness, contrast, saturation and hue; contrast before the last two or after, by chance.

    Args:
        image: Of mode RGB, or L, which has no saturation and hue.
        random: Where it is drawn from; always the same number of draws.
        augment: Ranges.

    Source: Liu et al. 2016 (SSD), section 3.6 of the appendix, in the order of mmsegmentation.
    """
    wanted = random.random(5) < 0.5
    shift = float(random.uniform(-augment.brightness, augment.brightness))
    contrast, saturation = float(random.uniform(*augment.contrast)), float(random.uniform(*augment.saturation))
    turn = float(random.uniform(-augment.hue, augment.hue))
    bright, contrasted, contrast_first, saturated, turned = wanted.tolist()
    if bright:
        image = _mapped(image, np.arange(256) + shift)
    if contrasted and contrast_first:
        image = _mapped(image, np.arange(256) * contrast)
    if image.mode == "RGB" and (saturated or turned):
        hue, colour, value = image.convert("HSV").split()
        if saturated:
            colour = _mapped(colour, np.arange(256) * saturation)
        if turned:
            hue = hue.point(((np.arange(256) + round(turn * 256 / 180)) % 256).tolist())
        image = Image.merge("HSV", (hue, colour, value)).convert("RGB")
    return _mapped(image, np.arange(256) * contrast) if contrasted and not contrast_first else image


def _mapped(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    table = np.rint(values).clip(0, 255).astype(int).tolist()
    return image.point(table * len(image.getbands()))


class Scaling:
    """Bytes to numbers: to the scale from 0 to 1, less the mean, by the deviation of every channel.

    Args:
        info: Mean and deviation.
    """

    def __init__(self, info: SegmentationInfo) -> None:
        self.mean, self.std = (255 * torch.tensor(values)[:, None, None] for values in (info.mean, info.std))

    def __call__(self, image: Image.Image, padded: Size | None = None) -> Tensor:
        """[C, H, W] float32 of an image of mode RGB or L.

        Args:
            image: The image.
            padded: Height and width of the result, if larger; what is added at the bottom and on the right is 0.
        """
        pixels = torch.from_numpy(np.array(image))  # H, W or H, W, C
        channels_first = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        scaled = channels_first.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)
        if padded is None or tuple(scaled.shape[1:]) == tuple(padded):
            return scaled
        canvas = scaled.new_zeros(scaled.shape[0], *padded)
        canvas[:, : scaled.shape[1], : scaled.shape[2]] = scaled
        return canvas


def restored(images: Tensor, info: SegmentationInfo) -> Tensor:
    """The inverse of the scaling: [..., C, H, W] back to the scale from 0 to 1, cut to that range."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (info.mean, info.std))
    return (images.float() * std + mean).clamp(0, 1)


def padded(numbers: NDArray[np.generic], size: Size, value: int) -> NDArray[np.generic]:
    """[h, w] with ``value`` added at the bottom and on the right."""
    height, width = numbers.shape
    if (height, width) == tuple(size):
        return numbers
    return np.pad(numbers, ((0, size[0] - height), (0, size[1] - width)), constant_values=value)
