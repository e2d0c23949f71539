"""Images as bad weather, bad lenses and bad cameras give them, at five severities, to measure robustness.

Each corruption leaves every object where it is, so that labels stay right. It is a pure function of image, seed, number
of the image and severity; random numbers begin with the same draws at all severities.

Severities follow Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", for ImageNet-C, which was made for images of 224 pixels. Ours, so that scores cannot be compared with
published ones: the texture of ``frost`` (generated, not photographed), ``occlusion``, the resampling in ``zoom_blur``
and ``snow``, and that images are not stored as JPEG in between.

Shape legend: C channels, H x W image.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, ShapeError
from graftwork.names import unknown

Draws = np.random.Generator
Corruption = Callable[[Tensor, Draws, int], Tensor]
"""From an image [C, H, W] with values from 0 to 1, its draws, and a severity from 1 to 5, to one of the same shape."""

SEVERITIES = (1, 2, 3, 4, 5)
_PATCHES = 8
_MANY_TAPS = 100


def corrupt(image: Tensor, name: str, severity: int, *, seed: int = 0, index: int = 0) -> Tensor:
    """Corrupt an image.

    Args:
        image: [C, H, W] with 1 or 3 channels and values from 0 to 1.
        name: One of :data:`CORRUPTIONS`.
        severity: From 1 to 5.
        seed: Seed of the evaluation.
        index: Number of the image in its split.

    Returns:
        [C, H, W] float32 from 0 to 1, on the image's device.

    Raises:
        ConfigError: No such corruption or severity.
        ShapeError: Something that is no such image.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ConfigError(f"severity={severity} must be from 1 to 5")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ShapeError(f"expected an image [1 or 3, H, W], got {list(image.shape)}")
    draws = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
    changed = CORRUPTIONS[name](image.detach().float().cpu().clamp(0, 1), draws, severity)
    return changed.float().clamp(0, 1).to(image.device)


def corrupt_batch(
    batch: Mapping[str, Any], info: SegmentationInfo, name: str, severity: int, seed: int = 0
) -> dict[str, Any]:
    """Corrupt the images of an evaluation batch, each at its own size; what was filled up stays as it is.

    Args:
        batch: ``image`` [B, C, H, W] less the mean, by the deviation; ``index`` [B]; ``size`` [B, 2] if filled up.
        info: Mean and deviation.
        name: One of :data:`CORRUPTIONS`.
        severity: From 1 to 5.
        seed: Seed of the evaluation.

    Returns:
        The batch with other images.
    """
    images: Tensor = batch["image"].clone()
    mean, std = (torch.tensor(values).to(images)[:, None, None] for values in (info.mean, info.std))
    sizes = batch["size"].tolist() if "size" in batch else [list(images.shape[2:])] * len(images)
    for image, index, (height, width) in zip(images, batch["index"].tolist(), sizes, strict=True):
        part = image[:, :height, :width]
        changed = corrupt(part * std + mean, name, severity, seed=seed, index=int(index))
        part.copy_((changed.to(part) - mean) / std)
    return {**batch, "image": images}


# -- noise ------------------------------------------------------------------------------------------------------------


def gaussian_noise(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Noise of a sensor in low light."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return image + deviation * _normal(draws, image.shape)


def shot_noise(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Noise of few photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return torch.from_numpy(draws.poisson(image.double().numpy() * photons) / photons)


def impulse_noise(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Values that are black or white by mistake."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    chance, white = (torch.from_numpy(draws.random(tuple(image.shape))) for _ in range(2))
    return image.where(chance >= share, (white < 0.5).to(image))


# -- blur -------------------------------------------------------------------------------------------------------------


def defocus_blur(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """A lens out of focus: a disc with a soft edge."""
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    reach = max(8, radius)
    places = torch.arange(-reach, reach + 1.0)
    disc = ((places[:, None] ** 2 + places**2) <= radius**2).float()
    edge = _gaussian(1 if radius <= 8 else 2, softness)
    soft = F.conv2d(disc[None, None], (edge[:, None] * edge)[None, None], padding=len(edge) // 2)[0, 0]
    return _filtered(image, soft / soft.sum())


def motion_blur(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """A camera that moves, in a direction from -45 to 45 degrees."""
    radius, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _filtered(image, _streak(radius, deviation, draws.uniform(-45, 45)))


def zoom_blur(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """A camera that moves towards the scene: the mean of growing views; objects move outwards by a few pixels."""
    most, step = ((0.11, 0.01), (0.16, 0.01), (0.21, 0.02), (0.26, 0.02), (0.31, 0.03))[severity - 1]
    factors = np.arange(1, 1 + most, step)
    return (image + sum(_zoomed(image, float(factor)) for factor in factors)) / (len(factors) + 1)


# -- weather ----------------------------------------------------------------------------------------------------------


def fog(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Fog of uneven density, brighter than the darkest and darker than the brightest pixels."""
    density, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    veil = density * _plasma(draws, image.shape[1], image.shape[2], decay)
    brightest = image.max()
    return (image + veil) * brightest / (brightest + density)


def frost(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Crystals of ice on the lens: ridges of a fractal; the texture is ours, how strong it is is ImageNet-C's."""
    ours, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = image.shape[1:]
    ridges = [1 - (2 * _plasma(draws, height, width, 1.5) - 1).abs() for _ in range(2)]
    return ours * image + ice * (ridges[0] * ridges[1]) ** 2


def snow(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Flakes that fall slantwise, in a whitened scene."""
    mean, deviation, zoom, least, radius, blur, share = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    flakes = _zoomed(mean + deviation * _normal(draws, (1, *image.shape[1:])), zoom)
    flakes = flakes.where(flakes >= least, flakes.new_zeros(())).clamp(0, 1)
    flakes = _filtered(flakes, _streak(radius, blur, draws.uniform(-135, -45)))
    grey = _luma(image)
    whitened = share * image + (1 - share) * torch.maximum(image, grey * 1.5 + 0.5)
    return whitened + flakes + flakes.flip(1, 2)


def brightness(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Glaring light: the value of hue, saturation and value is raised."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = image.amax(0, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, image * (raised / value.clamp(min=1e-12)), raised.expand_as(image))


# -- digital ----------------------------------------------------------------------------------------------------------


def contrast(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Flat light: values move towards the mean of their channel."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = image.mean((1, 2), keepdim=True)
    return mean + share * (image - mean)


def jpeg(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Compression as JPEG of low quality."""
    values = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # H, W, C
    stream = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(
        stream, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1]
    )
    found = torch.from_numpy(np.array(Image.open(stream)))
    return (found[None] if found.ndim == 2 else found.permute(2, 0, 1)).float() / 255


def pixelate(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Too few pixels, enlarged."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[1:]
    few = max(1, int(width * share)), max(1, int(height * share))
    channels = [Image.fromarray(channel.numpy()).resize(few, Image.Resampling.BOX) for channel in image]
    large = [np.array(channel.resize((width, height), Image.Resampling.BOX)) for channel in channels]
    return torch.from_numpy(np.stack(large))


def occlusion(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """Eight grey squares that hide 5 to 40 % of the image, less where they overlap; labels stay those of the scene."""
    share = (0.05, 0.1, 0.2, 0.3, 0.4)[severity - 1]
    height, width = image.shape[1:]
    side = math.sqrt(share * height * width / _PATCHES)
    down, across = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    hidden = torch.zeros(height, width, dtype=torch.bool)
    for top, left in draws.random((_PATCHES, 2)):
        centre = _within(top, height, side), _within(left, width, side)
        hidden |= ((down - centre[0]).abs() < side / 2) & ((across - centre[1]).abs() < side / 2)
    return image.where(~hidden, image.new_tensor(0.5))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "fog": fog,
    "frost": frost,
    "snow": snow,
    "brightness": brightness,
    "contrast": contrast,
    "jpeg": jpeg,
    "pixelate": pixelate,
    "occlusion": occlusion,
}
"""All corruptions by name."""


# -- parts ------------------------------------------------------------------------------------------------------------


def _normal(draws: Draws, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(draws.standard_normal(tuple(shape), dtype=np.float32))


def _within(place: float, length: int, side: float) -> float:
    """A centre so that a square lies in the image, if it is small enough."""
    room = max(0.0, length - side)
    return (length - room) / 2 + place * room


def _luma(image: Tensor) -> Tensor:
    """Grey values by BT.601, [1, H, W]."""
    if image.shape[0] == 1:
        return image
    return (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)


def _gaussian(reach: int, deviation: float) -> Tensor:
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / deviation) ** 2)
    return weights / weights.sum()


def _streak(radius: int, deviation: float, degrees: float) -> Tensor:
    """The path of a point that moves for 2 ``radius`` pixels and fades away, as a square kernel that sums to 1."""
    length = 2 * radius + 1
    steps = torch.arange(float(length))
    weights = torch.exp(-0.5 * (steps / deviation) ** 2)
    angle = math.radians(degrees)
    kernel = torch.zeros(2 * length - 1, 2 * length - 1)
    rows = (steps * math.sin(angle)).round().long() + length - 1
    columns = (steps * math.cos(angle)).round().long() + length - 1
    kernel.index_put_((rows, columns), weights, accumulate=True)
    return kernel / kernel.sum()


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel under a square kernel of odd side; the image goes on mirrored where it is large enough."""
    rows, columns = (torch.nonzero(kernel.sum(axis))[:, 0] for axis in (1, 0))
    reach = len(kernel) // 2
    need = max(reach - int(rows[0]), int(rows[-1]) - reach, reach - int(columns[0]), int(columns[-1]) - reach)
    kernel = kernel[reach - need : reach + need + 1, reach - need : reach + need + 1]  # without what weighs nothing
    mode = "reflect" if need < min(image.shape[1:]) else "replicate"
    padded = F.pad(image[:, None], (need,) * 4, mode=mode)  # C, 1, H + 2 need, W + 2 need
    taps = kernel.nonzero().tolist()
    if len(taps) > _MANY_TAPS:
        return F.conv2d(padded, kernel.to(image)[None, None])[:, 0]
    total = torch.zeros_like(image)
    for row, column in taps:  # of a streak's square most weighs nothing
        part = padded[:, 0, row : row + image.shape[1], column : column + image.shape[2]]
        total.add_(part, alpha=float(kernel[row, column]))
    return total


def _zoomed(image: Tensor, factor: float) -> Tensor:
    """The middle of an image, enlarged to its size."""
    theta = torch.tensor([[[1 / factor, 0, 0], [0, 1 / factor, 0]]], dtype=image.dtype)
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _plasma(draws: Draws, height: int, width: int, decay: float) -> Tensor:
    """A fractal of midpoint displacement, [1, H, W] from 0 to 1; octave by octave it shrinks by ``decay`` squared."""
    side = 1 << max(1, math.ceil(math.log2(max(height, width))))
    heights: NDArray[np.float64] = np.zeros((side, side))
    step, spread = side, 1.0
    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        around = corners + np.roll(corners, -1, 0)
        around = around + np.roll(around, -1, 1)
        middles = around / 4 + spread * draws.uniform(-1, 1, corners.shape)
        heights[half::step, half::step] = middles
        beside = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        heights[::step, half::step] = beside / 4 + spread * draws.uniform(-1, 1, corners.shape)
        below = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        heights[half::step, ::step] = below / 4 + spread * draws.uniform(-1, 1, corners.shape)
        step, spread = half, spread / decay**2
    heights -= heights.min()
    heights /= max(heights.max(), 1e-12)
    return torch.from_numpy(heights[:height, :width].astype(np.float32))[None]
