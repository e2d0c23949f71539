"""Figures that need no display, for the pictures of every app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Array]:
    """A figure that needs no display, with a grid of axes.

    Args:
        width: Inches.
        height: Inches.
        rows: Axes, one below the other.
        columns: Axes, side by side.

    Returns:
        The figure, and its axes as an array [rows, columns].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show_image(axis: Any, pixels: Array, title: str = "", colour: str = "black") -> None:
    """Draw an image, [H, W, 1 or 3] from 0 to 1, without axes."""
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, color=colour)
    axis.set_axis_off()
