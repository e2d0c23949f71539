"""Pictures of restored images: crops side by side, error maps, attributions. Knows no logger.

Images are arrays [H, W, C] from 0 to 1, C of 1 or 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]
CROP = 64
"""Side of the crops, in output pixels."""


class Crop(NamedTuple):
    """A square part of an image: its first row and column, and its side."""

    top: int
    left: int
    side: int

    def of(self, image: Array) -> Array:
        """The part of an image [H, W, C]."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def extreme_crops(restored: Array, baseline: Array, truth: Array, side: int = CROP) -> tuple[Crop, Crop]:
    """Where restoration gains most over the baseline, and where it loses most (or gains least).

    Args:
        restored: Ours.
        baseline: Bicubic, or the input where the size stays.
        truth: The original.
        side: Of the crops; smaller images are taken whole.

    Returns:
        The crop of the largest drop of the squared error, and that of the smallest.
    """
    gain = ((baseline - truth) ** 2 - (restored - truth) ** 2).sum(-1)
    side = min(side, *gain.shape)
    sums = np.pad(gain, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # of everything above and to the left
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    best, worst = (np.unravel_index(index, boxes.shape) for index in (boxes.argmax(), boxes.argmin()))
    return Crop(int(best[0]), int(best[1]), side), Crop(int(worst[0]), int(worst[1]), side)


def draw_crops(
    rows: Sequence[tuple[str, Sequence[Array]]], titles: Sequence[str], error: Array | None = None
) -> Figure:
    """Crops of several versions of an image, a row per place, and beside them a map of errors.

    Args:
        rows: Name of a place, and its crop in every version.
        titles: Name of every version.
        error: Absolute error of the whole image, [H, W]; None leaves the map out.
    """
    columns = len(titles) + (error is not None)
    figure = _figure(2.1 * columns, 2.2 * len(rows) + 0.3)
    grid = figure.add_gridspec(len(rows), columns)
    for row, (name, crops) in enumerate(rows):
        for column, (title, crop) in enumerate(zip(titles, crops, strict=True)):
            axis = figure.add_subplot(grid[row, column])
            _show(axis, crop)
            if row == 0:
                axis.set_title(title, fontsize=9)
            if column == 0:
                axis.set_ylabel(name, fontsize=9)
    if error is not None:
        axis = figure.add_subplot(grid[:, -1])
        shown = axis.imshow(error, cmap="magma", vmin=0, vmax=max(float(np.quantile(error, 0.995)), 1e-6))
        axis.set_title("error", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        figure.colorbar(shown, ax=axis, fraction=0.05, orientation="horizontal", pad=0.03).ax.tick_params(labelsize=7)
    return figure


def plain(image: Array, most: int = 900) -> Figure:
    """The image alone, pixel by pixel, the longer side cut to ``most`` pixels around the middle."""
    height, width = image.shape[:2]
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    image = image[top : top + most, left : left + most]
    figure = _figure(image.shape[1] / 110, image.shape[0] / 110, layout=False)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    _show(axis, image)
    axis.axis("off")
    return figure


def draw_attribution(image: Array, weights: Array, box: tuple[int, int, int, int], index: float) -> Figure:
    """Which input pixels a part of the output depends on.

    Args:
        image: The input.
        weights: Importance of every input pixel, [H, W], 0 and above.
        box: Top, left, height and width of that part, in input pixels.
        index: Diffusion index, see :func:`apps.superres.attribution.diffusion_index`.
    """
    from matplotlib.patches import Rectangle

    figure = _figure(8, 4)
    for place, title in enumerate(
        ("input and the part explained", f"pixels that matter (diffusion index {index:.1f})")
    ):
        axis = figure.add_subplot(1, 2, place + 1)
        _show(axis, image)
        if place:
            axis.imshow(weights / max(float(weights.max()), 1e-12), cmap="inferno", alpha=0.75, vmin=0, vmax=1)
        top, left, height, width = box
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor="#f43f5e", lw=1.5))
        axis.set_title(title, fontsize=9)
    return figure


def _figure(width: float, height: float, layout: bool = True) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, 0.3), max(height, 0.3)), layout="constrained" if layout else None)
    FigureCanvasAgg(figure)
    return figure


def _show(axis: Any, image: Array) -> None:
    pixels = np.clip(image, 0, 1)
    axis.imshow(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
