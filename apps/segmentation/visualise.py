"""Pictures of segmentations: overlays, outlines, confusion. Knows no logger.

Images are arrays [H, W, 1 or 3] from 0 to 1, labels arrays [H, W] of integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.core.report.drawing import new_figure, show_image
from datamodules.segmentation.info import IGNORED
from datamodules.segmentation.sheet import coloured, outlines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]
Palette = Sequence[tuple[int, int, int]]

OPACITY = 0.6
"""Of colours over an image."""
MOST_CLASSES = 40
"""In a legend or a confusion matrix."""


def overlay(pixels: Array, labels: Array, palette: Palette) -> Array:
    """Colours of classes over an image, [H, W, 3] from 0 to 1; ignored pixels show the image darkened."""
    base = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
    mixed = (1 - OPACITY) * base + OPACITY * coloured(labels, palette) / 255
    return np.where((labels == IGNORED)[..., None], 0.4 * base, mixed).clip(0, 1)


def outlined(pixels: Array, segments: Array) -> Array:
    """White lines between segments, [H, W, 3] from 0 to 1.

    Args:
        pixels: What to draw on.
        segments: Number of the segment of each pixel.
    """
    drawn = (pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels).copy()
    drawn[outlines(segments)] = 1.0
    return drawn


def draw_segmentation(
    pixels: Array, found: Array, truth: Array | None, certainty: Array, names: Sequence[str], palette: Palette
) -> Figure:
    """Image, prediction, truth and what is wrong, side by side, with the colours of the classes that occur.

    Args:
        pixels: The image.
        found: Predicted labels.
        truth: Right labels, where they are known.
        certainty: Probability of the predicted class, [H, W].
        names: Of the classes.
        palette: Their colours.
    """
    panels = [("image", pixels), ("prediction", overlay(pixels, found, palette))]
    if truth is not None:
        wrong = (found != truth) & (truth != IGNORED)
        share = wrong.sum() / max((truth != IGNORED).sum(), 1)
        panels += [("truth", overlay(pixels, truth, palette)), (f"wrong: {share:.1%}", _marked(pixels, wrong))]
    else:
        panels.append(("certainty", certainty[..., None]))
    height, width = found.shape
    side = 3.2
    figure, axes = new_figure(side * len(panels), side * height / width + 0.8, columns=len(panels))
    for axis, (title, image) in zip(axes[0], panels, strict=True):
        show_image(axis, image, title)
    _legend(figure, [found] if truth is None else [found, truth], names, palette)
    return figure


def draw_confusion(matrix: Array, names: Sequence[str]) -> Figure:
    """Share of the pixels of each class (rows) that went to each class (columns).

    Args:
        matrix: [C, C] pixels, rows are the right classes.
        names: Of the classes; of more than forty the most frequent are drawn.
    """
    order = np.argsort(-matrix.sum(1), kind="stable")[:MOST_CLASSES]
    shown = np.sort(order)
    part = matrix[np.ix_(shown, shown)]
    shares = part / np.maximum(matrix[shown].sum(1, keepdims=True), 1)
    side = 2.5 + 0.32 * len(shown)
    figure, axes = new_figure(side + 0.8, side)
    axis = axes[0, 0]
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [names[index] for index in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(shown)), labels, fontsize=7)
    axis.set_xlabel("predicted")
    axis.set_ylabel("right")
    if len(shown) <= 20:
        for row, column in np.ndindex(shares.shape):
            if shares[row, column] >= 0.005:
                dark = shares[row, column] > 0.5
                text = f"{100 * shares[row, column]:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    figure.colorbar(picture, ax=axis, shrink=0.7)
    return figure


def draw_maps(pixels: Array, maps: Array, titles: Sequence[str]) -> Figure:
    """What single queries or clusters look at, over the image.

    Args:
        pixels: The image.
        maps: [N, H, W] from 0 to 1.
        titles: Of each.
    """
    columns = min(4, max(1, len(maps)))
    rows = -(-len(maps) // columns)
    height, width = pixels.shape[:2]
    figure, axes = new_figure(2.4 * columns, (2.4 * height / width + 0.3) * rows, rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, maps, titles, strict=False):
        show_image(axis, pixels, title)
        axis.imshow(image, cmap="inferno", alpha=0.65, vmin=0, vmax=1)
    return figure


def _marked(pixels: Array, wrong: Array) -> Array:
    grey = pixels.mean(-1, keepdims=True).repeat(3, axis=2) * 0.6
    grey[wrong] = (0.86, 0.15, 0.15)
    return grey


def _legend(figure: Figure, labels: Sequence[Array], names: Sequence[str], palette: Palette) -> None:
    from matplotlib.patches import Patch

    present = sorted({int(label) for part in labels for label in np.unique(part) if label != IGNORED})[:MOST_CLASSES]
    patches = [Patch(color=_share(palette[label]), label=names[label]) for label in present]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(8, max(1, len(patches))), fontsize=7)


def _share(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue
