"""Which part of an image a training patch shows, and how it is turned: pure functions of a generator.

Shape legend: H, W sides of an image, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A part of an image.

    Args:
        top: First row.
        left: First column.
        bottom: The row after the last.
        right: The column after the last.
    """

    top: int
    left: int
    bottom: int
    right: int

    def of(self, image: Any) -> Any:
        """The part of an image [H, W, ...]."""
        return image[self.top : self.bottom, self.left : self.right]

    def scaled(self, factor: int) -> Box:
        """The same part of an image that is larger by ``factor``."""
        return Box(*(edge * factor for edge in self))

    def shrunk(self, factor: int) -> Box:
        """The same part of an image that is smaller by ``factor``, of which all edges are multiples."""
        return Box(*(edge // factor for edge in self))

    def within(self, outer: Box) -> Box:
        """The same part, counted from the corner of a larger one."""
        return Box(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def widened(self, margin: int, grid: int, height: int, width: int) -> Box:
        """A larger part, whose corner lies on a grid.

        Args:
            margin: Pixels more on each side, as far as there are any.
            grid: Edges are multiples of this, or the end of the image.
            height: Of the image.
            width: Of the image.
        """
        return Box(
            max(0, self.top - margin) // grid * grid,
            max(0, self.left - margin) // grid * grid,
            min(height, -(-(self.bottom + margin) // grid) * grid),
            min(width, -(-(self.right + margin) // grid) * grid),
        )


class Turn(NamedTuple):
    """One of the eight ways to lay a picture.

    Args:
        mirror: Left becomes right; first.
        upend: Top becomes bottom.
        transpose: Rows become columns; last.
    """

    mirror: bool = False
    upend: bool = False
    transpose: bool = False

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """An image [H, W, C], turned."""
        rows = slice(None, None, -1 if self.upend else 1)
        columns = slice(None, None, -1 if self.mirror else 1)
        turned = image[rows, columns]
        return turned.swapaxes(0, 1) if self.transpose else turned

    def box(self, box: Box, height: int, width: int) -> Box:
        """Where a part of an image lies once the image is turned.

        Args:
            box: The part.
            height: Of the image, before.
            width: Of the image, before.
        """
        top, left, bottom, right = box
        if self.mirror:
            left, right = width - right, width - left
        if self.upend:
            top, bottom = height - bottom, height - top
        return Box(left, top, right, bottom) if self.transpose else Box(top, left, bottom, right)


def draw_box(random: np.random.Generator, height: int, width: int, side: int, step: int = 1) -> Box:
    """A random square, every place alike.

    Args:
        random: Where it is drawn from.
        height: Of the image, at least ``side``.
        width: Of the image, at least ``side``.
        side: Of the square.
        step: Corners are multiples of this.
    """
    top, left = (step * int(random.integers((length - side) // step + 1)) for length in (height, width))
    return Box(top, left, top + side, left + side)


def draw_turn(random: np.random.Generator, flip: bool, transpose: bool) -> Turn:
    """A random way to lay a picture; what is switched off is drawn all the same, so that it changes nothing else."""
    mirror, upend, exchange = (random.random(3) < 0.5).tolist()
    return Turn(mirror and flip, upend and flip, exchange and transpose)


def centre_box(height: int, width: int, side: int, step: int = 1) -> Box:
    """The centre of an image, of at most ``side`` to each side; corners are multiples of ``step``."""
    rows, columns = min(side, height), min(side, width)
    top, left = ((length - part) // 2 // step * step for length, part in ((height, rows), (width, columns)))
    return Box(top, left, top + rows, left + columns)


def at_least(image: NDArray[Any], side: int) -> NDArray[Any]:
    """An image [H, W, C] whose sides have ``side`` pixels at least: smaller ones go on as in a mirror."""
    height, width = image.shape[:2]
    if min(height, width) >= side:
        return image
    return np.pad(image, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), mode="symmetric")
