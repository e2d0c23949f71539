"""Pictures of classifications: guesses beside the image, confusion, what was looked at, puzzles. Knows no logger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.core.report.drawing import new_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, OTHER = "#15803d", "#b91c1c", "#9ca3af"
MOST_CLASSES = 40

Array = NDArray[Any]


def draw_guesses(
    pixels: Array, names: Sequence[str], probabilities: Sequence[float], truth: str | None = None
) -> Figure:
    """An image, and its most probable classes as bars.

    Args:
        pixels: [H, W, 1 or 3] from 0 to 1.
        names: Classes, the most probable first.
        probabilities: Of each.
        truth: The right class, where it is known.
    """
    figure, axes = new_figure(6.4, 2.4, columns=2)
    right = truth is not None and names[0] == truth
    colour = "black" if truth is None else RIGHT if right else WRONG
    show_image(axes[0, 0], pixels, truth if truth is not None else names[0], colour)
    bars = axes[0, 1]
    places = np.arange(len(names))[::-1]
    colours = [RIGHT if name == truth else WRONG if truth and place == 0 else OTHER for place, name in enumerate(names)]
    bars.barh(places, [100 * value for value in probabilities], color=colours)
    bars.set_yticks(places, [_short(name) for name in names], fontsize=8)
    bars.set_xlim(0, 100)
    bars.tick_params(axis="x", labelsize=7)
    bars.set_xlabel("probability, %", fontsize=8)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def draw_confusion(matrix: Array, names: Sequence[str]) -> Figure:
    """Share of each class that was given each class; of many classes those that are confused most.

    Args:
        matrix: Images, [C, C]; rows are the right classes.
        names: Of the classes.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:MOST_CLASSES])
    shares = 100 * matrix[np.ix_(shown, shown)] / np.maximum(matrix[shown].sum(1, keepdims=True), 1)
    side = min(10.0, 2.8 + 0.28 * len(shown))
    figure, axes = new_figure(side + 1, side)
    picture = axes[0, 0].imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, ax=axes[0, 0], shrink=0.8).set_label("% of the class", fontsize=8)
    labels = [_short(names[i]) for i in shown]
    axes[0, 0].set_xticks(range(len(shown)), labels, rotation=90, fontsize=7)
    axes[0, 0].set_yticks(range(len(shown)), labels, fontsize=7)
    axes[0, 0].set_xlabel("taken for", fontsize=8)
    axes[0, 0].set_ylabel("class", fontsize=8)
    for (row, column), share in np.ndenumerate(shares) if len(shown) <= 12 else ():
        if share >= 0.5:
            colour = "white" if share > 55 else "black"
            axes[0, 0].text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return figure


def draw_activation(pixels: Array, activation: Array, title: str) -> Figure:
    """An image beside itself under the map of what spoke for a class.

    Args:
        pixels: [H, W, 1 or 3] from 0 to 1.
        activation: [h, w], 0 and above.
        title: Line above the map.
    """
    figure, axes = new_figure(5.2, 2.8, columns=2)
    show_image(axes[0, 0], pixels)
    show_image(axes[0, 1], pixels, title)
    height, width = pixels.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes[0, 1].imshow(activation, cmap="inferno", alpha=0.55, vmin=0, extent=extent, interpolation="bilinear")
    return figure


def draw_gallery(images: Sequence[Array], titles: Sequence[str]) -> Figure:
    """Images in rows of up to six, a line above each.

    Args:
        images: [H, W, 1 or 3] each, from 0 to 1.
        titles: Of each.
    """
    columns = min(6, max(1, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure, axes = new_figure(1.7 * columns, 1.9 * rows, rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, pixels, title in zip(axes.flat, images, titles, strict=False):
        show_image(axis, pixels, title)
    return figure


def draw_puzzle(shuffled: Array, solved: Array, original: Array, accuracy: float) -> Figure:
    """A shuffled image, the patches where the model puts them, and the image.

    Args:
        shuffled: [H, W, 1 or 3] from 0 to 1.
        solved: The same shape; black where no patch was put.
        original: The same shape.
        accuracy: Share of patches put right, in percent.
    """
    figure, axes = new_figure(7, 2.6, columns=3)
    titles = ("shuffled", f"as the model puts it, {accuracy:.0f} % right", "original")
    for axis, pixels, title in zip(axes[0], (shuffled, solved, original), titles, strict=True):
        show_image(axis, pixels, title)
    return figure


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
