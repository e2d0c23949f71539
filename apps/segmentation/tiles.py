"""Label maps of images that are too large for memory: read, predicted and written tile by tile.

Tiles lie as windows lie in :func:`apps.segmentation.windows.slide`, and their scores are averaged in the same way, so
the label map equals that of the whole image. Scores are kept for a strip of the image only: the strips' width follows
from a memory limit, whatever the size of the image, and tiles that reach into two strips are predicted for both.

Images that are brought to a smaller size first are seen whole: they are read, and scores get their size, in strips.

Shape legend: C classes, H x W image, h x w tile or smaller image, S columns of a strip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.segmentation.sources import PixelSource, Span
from apps.segmentation.windows import Scores, Viewer, resized, window_weights, windows
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, DataError, ShapeError

SCORE_BYTES = 256 << 20
"""Memory for the scores of a strip."""
MOST_CLASSES = 255
"""Labels that fit a byte beside the one of ignored pixels."""
_READ_PIXELS = 1 << 22
"""Of an image that are read at once where it is brought to another size."""

Prepare = Callable[[NDArray[np.uint8]], Tensor]
"""From pixels, [h, w, channels] uint8, to what a model takes, [channels, h, w]."""


class TileGrid:
    """Where the tiles of an image lie, and which strips of columns are kept at once.

    Args:
        size: Height and width of the image.
        tile: Height and width of the tiles; an axis shorter than that is one tile.
        stride: Pixels from tile to tile, down and to the right.

    Raises:
        ConfigError: Tiles that leave pixels out.
    """

    def __init__(self, size: tuple[int, int], tile: Sequence[int], stride: Sequence[int]) -> None:
        self.rows, self.columns = (windows(*axis) for axis in zip(size, tile, stride, strict=True))
        self.size = size

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width that tiles have."""
        return self.rows[0][1] - self.rows[0][0], self.columns[0][1] - self.columns[0][0]

    def strips(self, most: int) -> list[tuple[Span, list[Span]]]:
        """Columns that are finished together, each with the tiles that reach into them.

        Args:
            most: Columns that the tiles of a strip may span, two tiles at least.
        """
        most = max(most, 2 * self.tile[1])
        found, first = [], 0
        while first < self.size[1]:
            before = [column for column in self.columns if column[1] > first]
            inside = [column for column in before if column[1] - before[0][0] <= most]
            after = self.columns[self.columns.index(inside[-1]) + 1 :]
            last = after[0][0] if after else self.size[1]
            found.append(((first, last), [column for column in inside if column[0] < last]))
            first = last
        return found


class _Strip:
    """Scores of the rows that a row of tiles covers, [C, h, S]; rows that no further tile reaches become labels."""

    def __init__(self, grid: TileGrid, keep: Span, columns: Sequence[Span], blend: bool) -> None:
        self.grid, self.keep, self.columns, self.first = grid, keep, columns, columns[0][0]
        down, across = (window_weights(length, blend) for length in grid.tile)
        self.weights = down[:, None] * across  # h, w
        self.width = columns[-1][1] - self.first
        self.scores: Tensor | None = None
        self.top = 0

    def add(self, place: Span, column: Span, scores: Tensor) -> None:
        """Add the scores of a tile, [C, h, w]."""
        if self.scores is None:
            self.scores = scores.new_zeros(len(scores), self.grid.tile[0], self.width)
            self.weights = self.weights.to(scores)
        covered = self.scores[:, place[0] - self.top :, column[0] - self.first : column[1] - self.first]
        covered.addcmul_(scores, self.weights)

    def finish(self, bottom: int) -> tuple[Span, Tensor]:
        """Labels of the rows above ``bottom``, [rows, kept columns], which are forgotten.

        The sums of weights need not be divided by: at one pixel they are the same for all classes.
        """
        if self.scores is None:
            raise ShapeError("no tile in a strip")
        rows = bottom - self.top
        kept = self.scores[:, :rows, self.keep[0] - self.first : self.keep[1] - self.first]
        labels = kept.argmax(0)
        kept_rows = self.scores.shape[1] - rows
        for start in range(0, kept_rows, rows):  # upwards, part by part: no part reaches into itself
            end = min(start + rows, kept_rows)
            self.scores[:, start:end] = self.scores[:, start + rows : end + rows]
        self.scores[:, kept_rows:] = 0
        span, self.top = (self.top, bottom), bottom
        return span, labels


@torch.no_grad()
def predict_tiles(
    predict: Scores,
    source: PixelSource,
    labels: Any,
    prepare: Prepare,
    *,
    tile: Sequence[int],
    stride: Sequence[int],
    blend: bool = True,
    batch: int = 1,
    device: torch.device | str = "cpu",
    memory: int = SCORE_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Predict the labels of an image that need not fit into memory.

    Args:
        predict: Scores of tiles, [B, C, h, w].
        source: The image.
        labels: [H, W] uint8, for instance of :func:`~apps.segmentation.sources.label_file`; written part by part.
        prepare: Makes pixels what the model takes.
        tile: Height and width of the tiles, in pixels.
        stride: Pixels from tile to tile, down and to the right.
        blend: Whether tiles fade into each other rather than count alike.
        batch: Tiles predicted at once.
        device: Where the model is.
        memory: Bytes for scores of pixels that further tiles reach.
        progress: Called after each batch with the tiles that are done and those that there are.

    Raises:
        ConfigError: Tiles that leave pixels out.
        DataError: Scores that are not finite.
        ShapeError: ``labels`` are not as large as the image, or classes do not fit a byte.
    """
    size = _size_for(labels, source)
    grid = TileGrid(size, tile, stride)
    classes = _classes(predict, prepare(source.read(grid.rows[0], grid.columns[0])), device)
    strips = grid.strips(memory // (4 * classes * grid.tile[0]))
    done, total = 0, len(grid.rows) * sum(len(columns) for _, columns in strips)
    for keep, columns in strips:
        strip = _Strip(grid, keep, columns, blend)
        for row, bottom in zip(grid.rows, [*(row[0] for row in grid.rows[1:]), size[0]], strict=True):
            for start in range(0, len(columns), batch):
                group = columns[start : start + batch]
                scores = check_finite(predict(_tiles(source, row, group, prepare).to(device)))
                for column, found in zip(group, resized(scores, grid.tile).float(), strict=True):
                    strip.add(row, column, found)
                done += len(group)
                if progress is not None:
                    progress(done, total)
            rows, finished = strip.finish(bottom)
            labels[slice(*rows), slice(*keep)] = finished.to(torch.uint8).cpu().numpy()


def check_finite(scores: Tensor) -> Tensor:
    """Scores, or probabilities, as they are.

    Raises:
        DataError: They are not finite.
    """
    if not scores.isfinite().all():
        raise DataError("the model's output is not finite", mend="Check the weights: was the training stable?")
    return scores


def _size_for(labels: Any, source: PixelSource) -> tuple[int, int]:
    """Height and width of an image, which labels must have."""
    size = source.height, source.width
    if tuple(labels.shape) != size:
        raise ShapeError(f"labels must be {list(size)} as the image is, got {list(labels.shape)}")
    return size


def _classes(predict: Scores, tile: Tensor, device: torch.device | str) -> int:
    """How many classes the scores of a tile tell apart."""
    return _fitting(predict(tile[None].to(device))).shape[1]


def _fitting(scores: Tensor) -> Tensor:
    """Scores [B, C, h, w] of classes that labels can tell apart."""
    if scores.shape[1] > MOST_CLASSES:
        raise ShapeError(f"{scores.shape[1]} classes do not fit labels of one byte, at most {MOST_CLASSES} do")
    return scores


def _tiles(source: PixelSource, row: Span, columns: Sequence[Span], prepare: Prepare) -> Tensor:
    """Neighbouring tiles, [tiles, channels, h, w], from one reading."""
    left = columns[0][0]
    pixels = source.read(row, (left, columns[-1][1]))
    return torch.stack([prepare(pixels[:, column[0] - left : column[1] - left]) for column in columns])


def normaliser(info: SegmentationInfo) -> Prepare:
    """Pixels less the mean, by the deviation, as training images are given."""
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (info.mean, info.std))

    def prepare(pixels: NDArray[np.uint8]) -> Tensor:
        values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # channels, h, w
        return (values.float() / 255 - mean) / std

    return prepare


def read_at(source: PixelSource, size: tuple[int, int], prepare: Prepare) -> Tensor:
    """Bring an image to a size while it is read, so that it need not fit into memory.

    Args:
        source: The image.
        size: Height and width to give it.
        prepare: Makes pixels what a model takes.

    Returns:
        [channels, height, width], what :func:`~apps.segmentation.windows.resized` makes of the whole image.
    """
    at_once = max(1, _READ_PIXELS * size[0] // (source.width * source.height))  # rows of the result
    parts = []
    for top in range(0, size[0], at_once):
        rows = range(top, min(top + at_once, size[0]))
        above, below, _ = _neighbours(rows, source.height, size[0])
        first, last = int(above[0]), int(below[-1]) + 1
        pixels = prepare(source.read((first, last), (0, source.width)))
        pixels = _stretched(pixels, -2, rows, source.height, size[0], first)
        parts.append(_stretched(pixels, -1, range(size[1]), source.width, size[1]))
    return torch.cat(parts, dim=-2)


def _neighbours(places: range, length: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions before and after some places of an axis that is resized, and how far each is on its way to the latter.

    Source: bilinear resizing of PyTorch with ``align_corners=False``.
    """
    found = torch.arange(places.start, places.stop, dtype=torch.float32)
    found = ((found + 0.5) * (length / wanted) - 0.5).clamp(min=0)
    before = found.long().clamp(max=length - 1)
    return before, (before + 1).clamp(max=length - 1), found - before


def _stretched(maps: Tensor, axis: int, places: range, length: int, wanted: int, first: int = 0) -> Tensor:
    """Some places of an axis, -2 or -1, that is resized from ``length`` to ``wanted``; maps begin at ``first``."""
    before, after, share = (part.to(maps.device) for part in _neighbours(places, length, wanted))
    share = share.to(maps.dtype)
    found = maps.index_select(axis, before - first)
    return found.lerp_(maps.index_select(axis, after - first), share[:, None] if axis == -2 else share)


def refuse_size(viewer: Viewer, size: tuple[int, int], where: str = "") -> None:
    """Refuse an image that is to be resized to more pixels than are seen whole: tiles of it cannot be.

    Args:
        viewer: Its configuration.
        size: Height and width of the image.
        where: Name of the image.

    Raises:
        ConfigError: It is too large.
    """
    height, width = viewer.brought_size(size)
    if viewer.config.shorter_side and height * width > viewer.config.max_pixels:
        raise ConfigError(
            f"shorter_side={viewer.config.shorter_side} makes {height} x {width} pixels of this image of {size[0]} x "
            f"{size[1]}, above max_pixels={viewer.config.max_pixels}",
            where or "inference",
            "Raise --inference.max_pixels, or set --inference.shorter_side 0",
        )


@torch.no_grad()
def predict_labels(
    viewer: Viewer,
    source: PixelSource,
    labels: Any,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Predict the labels of an image of any size as the viewer's configuration says.

    Where images are seen in windows, once, the tiles are these windows and the labels those of
    :meth:`Viewer.class_scores` for the whole image. Else tiles of ``max_pixels`` overlap by a quarter and fade into
    each other, and each is seen at all scales. Images that are brought to a size first are seen whole at that.

    Args:
        viewer: Model and configuration.
        source: The image.
        labels: [H, W] uint8; written part by part.
        device: Where the model is.
        progress: Called with the tiles that are done and those that there are.

    Raises:
        ConfigError: Images are to be brought to a size first at which they are too large to be seen whole.
        DataError: Scores that are not finite.
    """
    prepare = normaliser(viewer.info)
    if viewer.config.shorter_side:
        refuse_size(viewer, (source.height, source.width))
        seen = read_at(source, viewer.brought_size((source.height, source.width)), prepare)[None].to(device)
        _enlarge_labels(check_finite(_fitting(viewer.class_scores(seen)))[0], labels, _size_for(labels, source))
        if progress is not None:
            progress(1, 1)
        return
    if viewer.config.mode == "slide" and viewer.one_view:
        options: dict[str, Any] = {"tile": viewer.crop, "stride": viewer.stride, "blend": viewer.config.blend}
        predict, batch = viewer.filled, viewer.at_once(viewer.crop, torch.device(device))
    else:
        side, step = viewer.tile
        options = {"tile": (side, side), "stride": (step, step), "blend": True}
        predict, batch = viewer.class_scores, 1
    predict_tiles(predict, source, labels, prepare, batch=batch, device=device, progress=progress, **options)


def _enlarge_labels(scores: Tensor, labels: Any, size: tuple[int, int]) -> None:
    """Labels at ``size`` from scores [C, h, w], a strip at a time: scores of all classes there may not fit."""
    classes, height, width = scores.shape
    at_once = max(1, SCORE_BYTES // (4 * classes * max(size[1], width)))
    for top in range(0, size[0], at_once):
        rows = range(top, min(top + at_once, size[0]))
        strip = _stretched(_stretched(scores, -2, rows, height, size[0]), -1, range(size[1]), width, size[1])
        labels[rows.start : rows.stop] = strip.argmax(0).to(torch.uint8).cpu().numpy()
