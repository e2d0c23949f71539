"""Restoring images that are too large for one pass: tiles with a margin, and the average of flipped versions.

Shape legend: B batch, C channels, H height, W width of the input; s scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.errors import ConfigError

Model = Callable[[Tensor], Tensor]


class Span(NamedTuple):
    """One tile along an axis, in input pixels.

    Attributes:
        read: First pixel read, and the one after the last.
        keep: First pixel whose result is used, and the one after the last.
    """

    read: tuple[int, int]
    keep: tuple[int, int]


def spans(length: int, tile: int, margin: int, blend: int = 0, align: int = 1) -> list[Span]:
    """Cut an axis into tiles.

    Every tile reads ``tile`` pixels, the last one what is left. Nothing within ``margin`` pixels of a side where it
    borders on another tile is used; neighbours share ``blend`` pixels of what is used.

    Args:
        length: Pixels of the axis, at least 1.
        tile: Pixels read at once.
        margin: Pixels read on each side for context only.
        blend: Pixels shared by neighbours, at most a third of what lies between the margins.
        align: Tiles begin at multiples of it, so that windows of that size lie where they lie in the whole image.

    Raises:
        ConfigError: The margins leave nothing of a tile, or too little for the blend.
    """
    step = tile - 2 * margin - blend
    step -= step % align
    if margin < 0 or blend < 0 or step < max(1, 2 * blend):
        least = 2 * max(margin, 0) + max(align, 3 * blend)
        raise ConfigError(
            f"tile={tile} leaves too little between margins of {margin} pixels and a blend of {blend} pixels",
            mend=f"Use a tile of at least {least + -least % align} pixels",
        )
    starts = [0]
    while starts[-1] + tile < length:
        starts.append(starts[-1] + step)
    ends = [min(start + tile, length) for start in starts]
    seams = [
        (start + end) // 2 - blend // 2  # in the middle of what both neighbours read
        for start, end in zip(starts[1:], ends[:-1], strict=True)
    ]
    firsts, lasts = [0, *seams], [*(seam + blend for seam in seams), length]
    return [Span(*pairs) for pairs in zip(zip(starts, ends, strict=True), zip(firsts, lasts, strict=True), strict=True)]


def restore_in_tiles(
    model: Model,
    images: Tensor,
    scale: int,
    *,
    tile: int,
    margin: int,
    blend: int = 0,
    align: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Restore images tile by tile; equal to one pass where the model sees no further than ``margin`` pixels.

    Args:
        model: From [B, C, h, w] to [B, C, s * h, s * w].
        images: [B, C, H, W], on any device.
        scale: Output pixels per input pixel and side.
        tile: Side of the tiles, in input pixels.
        margin: Input pixels around each tile that are read for context only.
        blend: Input pixels over which neighbouring tiles fade into each other.
        align: See :func:`spans`.
        device: Where the model runs; that of the images if omitted.

    Returns:
        [B, C, s * H, s * W] in float32 on the CPU.

    Raises:
        ConfigError: The margins leave nothing of a tile.
    """
    batch, channels, height, width = images.shape
    output = torch.zeros(batch, channels, height * scale, width * scale)
    for rows, row_ramp in _with_ramps(spans(height, tile, margin, blend, align), scale):
        for columns, column_ramp in _with_ramps(spans(width, tile, margin, blend, align), scale):
            part = images[:, :, slice(*rows.read), slice(*columns.read)]
            restored = model(part.to(device or images.device)).float().cpu()
            inside = restored[:, :, _inner(rows, scale), _inner(columns, scale)]
            place = output[:, :, _outer(rows, scale), _outer(columns, scale)]
            place += inside * (row_ramp[:, None] * column_ramp)
    return output


def _inner(span: Span, scale: int) -> slice:
    return slice((span.keep[0] - span.read[0]) * scale, (span.keep[1] - span.read[0]) * scale)


def _outer(span: Span, scale: int) -> slice:
    return slice(span.keep[0] * scale, span.keep[1] * scale)


def _with_ramps(tiles: list[Span], scale: int) -> Iterator[tuple[Span, Tensor]]:
    """Each tile with the weights of its results, [kept output pixels]; over the tiles they sum to one everywhere."""
    for i, tile in enumerate(tiles):
        ramp = torch.ones((tile.keep[1] - tile.keep[0]) * scale)
        before = (tiles[i - 1].keep[1] - tile.keep[0]) * scale if i else 0
        after = (tile.keep[1] - tiles[i + 1].keep[0]) * scale if i + 1 < len(tiles) else 0
        if before:
            ramp[:before] = _rising(before)
        if after:
            ramp[len(ramp) - after :] = 1 - _rising(after)
        yield tile, ramp


def _rising(pixels: int) -> Tensor:
    return (torch.arange(pixels) + 0.5) / pixels


def self_ensemble(model: Model, images: Tensor) -> Tensor:
    """Mean of the results for the eight flips and transposes of the images, each turned back.

    Args:
        model: From [B, C, h, w] to [B, C, s * h, s * w], for any sides.
        images: [B, C, H, W].

    Returns:
        [B, C, s * H, s * W].

    Source: Timofte et al. 2016, "Seven ways to improve example-based single image super resolution", section 3.4.
    """
    total: Tensor | None = None
    for transposed in (False, True):
        for axes in ((), (-1,), (-2,), (-2, -1)):
            turned = images.flip(axes) if axes else images
            restored = model(turned.transpose(-2, -1) if transposed else turned)
            restored = restored.transpose(-2, -1) if transposed else restored
            restored = restored.flip(axes) if axes else restored
            total = restored if total is None else total + restored
    if total is None:
        raise ConfigError("no version of the images to restore")
    return total / 8
