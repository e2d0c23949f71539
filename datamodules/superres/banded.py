"""Filters along one axis of images, as products with banded matrices.

A filter whose outputs read a few neighbouring inputs each is a matrix with a band. Cut into blocks of rows, with the
empty columns of each block left out, its product with an image runs at the speed of dense matrices: several times
faster than gathering taps or than convolving in double precision, in numpy and in torch, with exact gradients.

Shape legend: N inputs along the axis, M outputs, T taps.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Block(NamedTuple):
    """Some neighbouring rows of a matrix, without the columns where all of them are empty.

    Args:
        first: First input that the rows read.
        last: The input after the last.
        weights: [rows, last - first].
    """

    first: int
    last: int
    weights: Any


class BandedMatrix:
    """A filter along one axis.

    Args:
        indices: Input of each tap, [M, T]; an input may come more than once in a row.
        weights: Weight of each tap, [M, T].
        rows: Rows of a block. A band that is wide beside its advance wants few.
    """

    def __init__(self, indices: NDArray[np.int64], weights: NDArray[np.float64], rows: int) -> None:
        self._exact = tuple(
            _block(indices[start : start + rows], weights[start : start + rows])
            for start in range(0, len(indices), rows)
        )
        self._converted: dict[Any, tuple[Block, ...]] = {}

    def along_rows(self, pixels: Any) -> Any:
        """[..., N, W] to [..., M, W], an array or a tensor of float32 or float64."""
        with _full_precision(pixels):
            parts = [weights @ pixels[..., first:last, :] for first, last, weights in self._blocks(pixels)]
            return _joined(parts, -2)

    def along_columns(self, pixels: Any) -> Any:
        """[..., H, N] to [..., H, M], an array or a tensor of float32 or float64."""
        with _full_precision(pixels):
            parts = [pixels[..., first:last] @ weights.T for first, last, weights in self._blocks(pixels)]
            return _joined(parts, -1)

    def _blocks(self, pixels: Any) -> tuple[Block, ...]:
        """The blocks in the type, and on the device, of the pixels."""
        key = (pixels.dtype, pixels.device) if isinstance(pixels, Tensor) else pixels.dtype
        if key not in self._converted:
            with torch.inference_mode(False):  # a tensor made in inference mode could never serve a gradient later
                self._converted[key] = tuple(_like(block, pixels) for block in self._exact)
        return self._converted[key]


def _block(indices: NDArray[np.int64], weights: NDArray[np.float64]) -> Block:
    first, last = int(indices.min()), int(indices.max()) + 1
    matrix = np.zeros((len(indices), last - first))
    np.add.at(matrix, (np.arange(len(indices))[:, None], indices - first), weights)
    return Block(first, last, matrix)


def _like(block: Block, pixels: Any) -> Block:
    if isinstance(pixels, Tensor):
        return block._replace(weights=torch.from_numpy(block.weights).to(pixels))
    return block._replace(weights=block.weights.astype(pixels.dtype))


def _full_precision(pixels: Any) -> AbstractContextManager[Any]:
    """Autocast would multiply in half precision."""
    return torch.autocast(pixels.device.type, enabled=False) if isinstance(pixels, Tensor) else nullcontext()


def _joined(parts: list[Any], axis: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


def mirrored(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Places on an endless strip of an image and its mirror images, back in the image: ... 1 0 | 0 1 2 ..."""
    folded = np.mod(places, 2 * length)
    return np.where(folded >= length, 2 * length - 1 - folded, folded)
