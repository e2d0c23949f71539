"""Seeing images whole or in windows that overlap, at several scales, and mirrored.

Shape legend: B batch, C classes, H x W image, h x w window, G windows seen at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.config import InferenceConfig
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, ShapeError

Scores = Callable[[Tensor], Tensor]
"""From images, [B, channels, h, w], to scores of all classes; maps of other sizes than the images' are resized."""

Probabilities = Callable[[Tensor], Tensor]
"""From scores, [B, C, h, w], to values from 0 to 1 that sum to 1 over the classes."""

LEAST = 32
"""Side of the smallest image that backbones take, in pixels; smaller ones are filled up with zeros."""
MOST_WINDOWS = 8
"""Windows seen at once at most: more of them are not faster."""
_TILE_MULTIPLE = 32


def windows(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Cut an axis into windows of equal length that overlap.

    The last one is shifted back so that it ends with the axis; an axis shorter than a window is one window.

    Args:
        length: Pixels of the axis, at least 1.
        crop: Pixels of a window.
        stride: Pixels from window to window.

    Returns:
        First pixel of each, and the one after the last.

    Raises:
        ConfigError: Windows that leave pixels out, or none at all.

    Source: mmsegmentation 1.2.2, sliding-window inference.
    """
    if not 1 <= stride <= crop:
        raise ConfigError(f"stride={stride} must be from 1 to crop={crop}, else windows leave pixels out")
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(place * stride + crop, length) for place in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def window_weights(length: int, blend: bool, device: torch.device | None = None) -> Tensor:
    """How much each pixel of a window counts, [length] float32 above 0.

    Args:
        length: Pixels of the window.
        blend: Whether pixels count less towards the sides, where a window knows little of their surroundings, so that
            windows fade into each other; else all count alike.
        device: Where to put them.
    """
    if not blend:
        return torch.ones(length, device=device)
    places = torch.arange(length, device=device) + 0.5
    return torch.minimum(places, length - places) / (length / 2)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, C, h, w] bilinearly resized to ``size``, height and width; as they are where they have it."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps of numbers or of truth [..., h, w] at ``size``, height and width; the value of the nearest position."""
    if maps.shape[-2:] == tuple(size):
        return maps
    for axis, (length, wanted) in enumerate(zip(maps.shape[-2:], size, strict=True), start=-2):
        places = (torch.arange(wanted, device=maps.device) + 0.5) * (length / wanted)
        maps = maps.index_select(axis, places.long().clamp(max=length - 1))
    return maps


def slide(
    predict: Scores,
    images: Tensor,
    crop: int | Sequence[int],
    stride: int | Sequence[int],
    *,
    batch: int = 4,
    blend: bool = False,
) -> Tensor:
    """Score images in windows; scores of windows that overlap are averaged.

    Args:
        predict: Scores of windows; resized to the size of the windows.
        images: [B, channels, H, W].
        crop: Side of the windows, or height and width, in pixels. On an axis shorter than that windows are as long as
            the axis.
        stride: Pixels from window to window, or those down and to the right.
        batch: Windows seen at once, at least one of every image.
        blend: Whether windows fade into each other rather than count alike.

    Returns:
        [B, C, H, W], in float32 at least.

    Raises:
        ConfigError: Windows that leave pixels out.
        ShapeError: Images of another shape.

    Source: mmsegmentation 1.2.2, sliding-window inference, where ``blend`` is off. Differs: several images and windows
    are seen at once.
    """
    if images.ndim != 4:
        raise ShapeError(f"expected images [B, channels, H, W], got {list(images.shape)}")
    crop, stride = _pair(crop), _pair(stride)
    rows, columns = (windows(length, *cut) for length, *cut in zip(images.shape[-2:], crop, stride, strict=True))
    places = [(row, column) for row in rows for column in columns]
    if len(places) == 1:
        return _at_least_float(resized(predict(images), images.shape[-2:]))
    size = rows[0][1] - rows[0][0], columns[0][1] - columns[0][0]
    weights = [window_weights(length, blend, images.device) for length in size]
    weight = weights[0][:, None] * weights[1]  # h, w
    at_once = max(1, batch // max(1, len(images)))
    total: Tensor | None = None
    for first in range(0, len(places), at_once):
        group = places[first : first + at_once]
        seen = torch.cat([images[..., slice(*row), slice(*column)] for row, column in group])  # G B, channels, h, w
        scores = _at_least_float(resized(predict(seen), size)).unflatten(0, (len(group), -1))  # G, B, C, h, w
        if total is None:
            total = scores.new_zeros(*scores.shape[1:3], *images.shape[-2:])
        for (row, column), part in zip(group, scores, strict=True):
            place = total[..., slice(*row), slice(*column)]
            if blend:
                place.addcmul_(part, weight.to(part))
            else:
                place.add_(part)
    if total is None:
        raise ShapeError(f"no windows in images {list(images.shape)}")
    down, across = _summed(rows, weights[0]).to(total), _summed(columns, weights[1]).to(total)
    return total.div_(down[:, None] * across)


def _summed(cut: Sequence[tuple[int, int]], weights: Tensor) -> Tensor:
    """Sum of the weights of all windows at every pixel of an axis; that of an image is the product of its axes'."""
    total = weights.new_zeros(cut[-1][1])
    for first, last in cut:
        total[first:last] += weights
    return total


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _at_least_float(scores: Tensor) -> Tensor:
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()


def average_of_views(
    predict: Scores, probabilities: Probabilities, images: Tensor, scales: Sequence[float], flip: bool
) -> Tensor:
    """Mean of the probabilities that images have at several sizes, as they are and mirrored.

    Args:
        predict: Scores of images of any size.
        probabilities: What scores say, from 0 to 1.
        images: [B, channels, H, W].
        scales: Sizes to see them at, relative to their own.
        flip: Whether to see each mirrored, too.

    Returns:
        [B, C, H, W], summing to 1 over classes.

    Source: mmsegmentation 1.2.2, test-time augmentation: each view's scores are turned back, resized to the image, and
    made probabilities before the mean.
    """
    size = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        seen = resized(images, [max(1, int(side * scale + 0.5)) for side in size])
        for mirror in (False, True) if flip else (False,):
            scores = _at_least_float(predict(seen.flip(-1) if mirror else seen))
            found = probabilities(resized(scores.flip(-1) if mirror else scores, size))
            total = found if total is None else total + found
    if total is None:
        raise ConfigError("no scales to see images at", mend="Give at least one, for example [1.0]")
    return total / (len(scales) * (1 + flip))


class Viewer:
    """Scores of classes for images of any size, seen as :class:`InferenceConfig` says.

    Args:
        predict: Scores of images, as :meth:`SegmentationHead.class_scores` gives them.
        probabilities: Of scores, as :meth:`SegmentationHead.probabilities`.
        info: Size and scale of training images.
        config: Windows, scales and tiles.

    Attributes:
        crop: Height and width of the windows, in pixels.
        stride: Pixels from window to window, down and to the right.
    """

    def __init__(
        self, predict: Scores, probabilities: Probabilities, info: SegmentationInfo, config: InferenceConfig
    ) -> None:
        self.predict, self.probabilities, self.info, self.config = predict, probabilities, info, config
        self._own = (1, 1)  # size of the images that are seen now
        self.crop = _pair(config.crop or info.crop)
        self.stride = _pair(config.stride or [max(1, side * 2 // 3) for side in self.crop])

    @property
    def one_view(self) -> bool:
        """Whether images are seen once, so that scores need not be made probabilities."""
        return tuple(self.config.scales) == (1.0,) and not self.config.flip

    @property
    def tile(self) -> tuple[int, int]:
        """Side of the tiles that images of more than ``max_pixels`` are cut into, and pixels from one to the next."""
        side = max(_TILE_MULTIPLE, math.isqrt(self.config.max_pixels) // _TILE_MULTIPLE * _TILE_MULTIPLE)
        return side, side * 3 // 4

    def class_scores(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Scores of all classes at every pixel; of several views the mean of their probabilities.

        Args:
            images: [B, channels, H, W].
            sizes: Height and width of each before it was filled up at the bottom and on the right, [B, 2]; images of
                one batch that differ are seen one size after the other, so that no score depends on the batch.

        Returns:
            [B, C, H, W] in float32 at least; 0 where images were filled up.

        Raises:
            ConfigError: Windows that leave pixels out.
            ShapeError: Images of another shape.
        """
        if images.ndim != 4:
            raise ShapeError(f"expected images [B, channels, H, W], got {list(images.shape)}")
        full = images.shape[-2:]
        kinds = sorted({(int(height), int(width)) for height, width in sizes.tolist()}) if sizes is not None else []
        if kinds in ([], [tuple(full)]) or sizes is None:
            return self._seen(images)
        scores: Tensor | None = None
        for kind in kinds:
            places = (sizes.to(images.device) == torch.tensor(kind, device=images.device)).all(1).nonzero()[:, 0]
            found = self._seen(images[places, :, : kind[0], : kind[1]])
            scores = found.new_zeros(len(images), found.shape[1], *full) if scores is None else scores
            scores[places, :, : kind[0], : kind[1]] = found
        if scores is None:
            raise ShapeError("no images to score")
        return scores

    def class_probabilities(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Probabilities of all classes at every pixel, [B, C, H, W]; see :meth:`class_scores`."""
        scores = self.class_scores(images, sizes)
        return self.probabilities(scores) if self.one_view else scores

    def labels(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The class of highest score, the first of equal ones, at every pixel: [B, H, W] int64."""
        return self.class_scores(images, sizes).argmax(1)

    def whole_or_windows(self, images: Tensor) -> Tensor:
        """Scores from one view: whole images, or windows, [B, C, H, W]."""
        height, width = images.shape[-2:]
        if self.config.mode == "slide":
            batch = self.at_once(self.crop, images.device)
            return slide(self.filled, images, self.crop, self.stride, batch=batch, blend=self.config.blend)
        if height * width <= self.config.max_pixels:
            return resized(_at_least_float(self.filled(images)), (height, width))
        side, step = self.tile
        return slide(self.filled, images, side, step, batch=1, blend=True)

    def _seen(self, images: Tensor) -> Tensor:
        self._own = (images.shape[-2], images.shape[-1])
        if self.one_view:
            return self._at_its_size(images)
        views = self.config.scales, self.config.flip
        return average_of_views(self._at_its_size, self.probabilities, images, *views)

    def _at_its_size(self, images: Tensor) -> Tensor:
        """Scores from one view of images whose shorter side is brought to that of the configuration."""
        # relative to what a view made of the image, so that scales stay scales
        return resized(self.whole_or_windows(self.brought(images, min(self._own))), images.shape[-2:])

    def brought(self, images: Tensor, shorter: int = 0) -> Tensor:
        """Images with the shorter side that the configuration wants, [B, channels, h, w].

        Args:
            images: [B, channels, H, W].
            shorter: Side that becomes the wanted one; the images' own shorter side if 0.
        """
        return resized(images, self.brought_size(images.shape[-2:], shorter))

    def brought_size(self, size: Sequence[int], shorter: int = 0) -> tuple[int, int]:
        """Height and width that :meth:`brought` gives images of ``size``."""
        height, width = size
        if not self.config.shorter_side:
            return height, width
        factor = self.config.shorter_side / (shorter or min(size))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def segment_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width that segments of images of ``size`` are found at, ``max_pixels`` at most.

        Objects are seen as a whole, which tiles do not do.
        """
        height, width = self.brought_size(size)
        factor = min(1.0, math.sqrt(self.config.max_pixels / (height * width)))
        return max(1, int(height * factor)), max(1, int(width * factor))

    def at_once(self, size: tuple[int, int], device: torch.device) -> int:
        """Windows of a size that are seen at once; on a CPU one, because its caches hold no more."""
        if device.type == "cpu":
            return 1
        return min(MOST_WINDOWS, max(1, self.config.max_pixels // (size[0] * size[1])))

    def filled(self, images: Tensor) -> Tensor:
        """The model's scores of images that may be smaller than backbones take."""
        height, width = images.shape[-2:]
        if min(height, width) >= LEAST:
            return self.predict(images)
        filled = F.pad(images, (0, max(0, LEAST - width), 0, max(0, LEAST - height)))
        return resized(self.predict(filled), filled.shape[-2:])[..., :height, :width]
