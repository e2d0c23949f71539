"""Windows of a map, apart and together again, and the positions in them relative to each other.

Shape legend: B batch, H height and W width of a map, h and w of a window, C any channels, n = h w tokens of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.attention.tables import table
from graftwork.errors import ConfigError, ShapeError

Pair = tuple[int, int]


def pair(name: str, value: int | Pair, least: int = 1) -> Pair:
    """A size for both axes, height first.

    Raises:
        ConfigError: Not one or two integers, or one below ``least``; the message calls the size ``name``.
    """
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2 or any(size < least for size in sizes):
        raise ConfigError(f"{name}={value} must be a number or (height, width), each at least {least}")
    return sizes[0], sizes[1]


def partition(x: Tensor, window: int | Pair) -> Tensor:
    """Cut a map into windows.

    Args:
        x: Map, [B, H, W, ...]; both sides multiples of the window's.
        window: Side of a window, or (height, width), in tokens.

    Returns:
        [B * windows, n, ...], the windows of a map in row-major order, and so their tokens.

    Raises:
        ShapeError: A side is no multiple of the window's; the message names the side and the padding that it lacks.
        ConfigError: A window below 1.

    Source: Liu et al. 2021, "Swin Transformer", section 3.2. Differs: tokens of a window are one axis.
    """
    height, width = pair("window", window)
    for axis, size, side in ((1, "height", height), (2, "width", width)):
        if x.shape[axis] % side:
            lacking = -x.shape[axis] % side
            raise ShapeError(f"x: {size} {x.shape[axis]} is no multiple of the window's {side}, pad it by {lacking}")
    tiles = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # B, rows, h, columns, w, ...
    return tiles.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def merge(windows: Tensor, window: int | Pair, height: int, width: int) -> Tensor:
    """Put the windows of :func:`partition` together again.

    Args:
        windows: [B * windows, n, ...].
        window: Side of a window, or (height, width), in tokens.
        height: Height of the map, a multiple of the window's.
        width: Width of the map, likewise.

    Returns:
        Map, [B, H, W, ...].

    Raises:
        ShapeError: The windows are not of that size, or do not make up such maps.
        ConfigError: A window below 1.
    """
    sides = pair("window", window)
    rows, columns = height // sides[0], width // sides[1]
    fits = rows * sides[0] == height and columns * sides[1] == width and windows.shape[1] == sides[0] * sides[1]
    if not fits or (rows * columns == 0) or windows.shape[0] % (rows * columns):
        expected = f"[maps * {rows * columns}, {sides[0] * sides[1]}, ..] for maps of {height} x {width}"
        raise ShapeError(f"windows: expected {expected} and windows of {sides}, got {list(windows.shape)}")
    tiles = windows.unflatten(1, sides).unflatten(0, (-1, rows, columns))  # B, rows, columns, h, w, ...
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def overlapping_windows(x: Tensor, window: int | Pair, key_window: int | Pair) -> Tensor:
    """Cut larger windows around those of :func:`partition`, with zeros outside of the map.

    Args:
        x: Map, [B, H, W, ...]; both sides multiples of the window's.
        window: Side of a window, or (height, width), in tokens: the step between the larger ones.
        key_window: Side of a larger window, or (height, width); each an even number of tokens above the window's.

    Returns:
        [B * windows, tokens of a larger window, ...], in the order of :func:`partition`.

    Raises:
        ShapeError: A side is no multiple of the window's.
        ConfigError: A larger window that is smaller, or that cannot lie around the window evenly.

    Source: Chen et al. 2023, "Activating More Pixels in Image Super-Resolution Transformer" (HAT), section 3.2.
    """
    step, size = pair("window", window), pair("key_window", key_window)
    margins = [outer - inner for outer, inner in zip(size, step, strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ConfigError(f"key_window={key_window} must exceed window={window} by an even number of tokens, or zero")
    if x.shape[1] % step[0] or x.shape[2] % step[1]:
        raise ShapeError(f"x: expected sides in multiples of the window {step}, got {list(x.shape)}")
    channels = x.flatten(3)  # B, H, W, C
    margin_y, margin_x = (margin // 2 for margin in margins)
    padded = torch.nn.functional.pad(channels, (0, 0, margin_x, margin_x, margin_y, margin_y))
    windows: Tensor = _Overlapping.apply(padded, step, size)
    return windows.flatten(3, 4).flatten(0, 2).unflatten(-1, x.shape[3:])


class _Overlapping(torch.autograd.Function):
    """Overlapping windows of a padded map, [B, rows, columns, *size, C].

    As the gradient of torch's own ``unfold``, but by as many sums of whole maps as windows overlap, ten times faster.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Pair, size: Pair) -> Tensor:
        ctx.step, ctx.size, ctx.shape = step, size, x.shape
        windows = x.unfold(1, size[0], step[0]).unfold(2, size[1], step[1])  # B, rows, columns, C, *size
        return windows.permute(0, 1, 2, 4, 5, 3).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (height, width), (rows, columns) = ctx.step, gradient.shape[1:3]
        lines, files = -(-ctx.size[0] // height), -(-ctx.size[1] // width)  # windows that a token is in, per axis
        sides = ((rows + lines - 1) * height, (columns + files - 1) * width)
        total = gradient.new_zeros(gradient.shape[0], *sides, gradient.shape[-1])
        for i in range(lines):
            for j in range(files):
                part = gradient[:, :, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
                tiles = total[:, i * height : (i + rows) * height, j * width : (j + columns) * width]
                tiles = tiles.unflatten(2, (columns, width)).unflatten(1, (rows, height)).transpose(2, 3)
                tiles[:, :, :, : part.shape[3], : part.shape[4]] += part
        return total[:, : ctx.shape[1], : ctx.shape[2]], None, None


def relative_index(window: int | Pair, device: torch.device | str | None = None) -> Tensor:
    """Row of a table of relative positions for every query and key of a window.

    Offsets are those of the query from the key, row-major, from the most negative one: ``(y_q - y_k + h - 1) *
    (2 w - 1) + x_q - x_k + w - 1``.

    Args:
        window: Side of a window, or (height, width), in tokens.
        device: Where to make it.

    Returns:
        [n, n] integers below ``(2 h - 1) * (2 w - 1)``, queries first. Shared: not to be changed.

    Raises:
        ConfigError: A window below 1.

    Source: Liu et al. 2021, section 3.2, equation 4.
    """
    return _relative_index(*pair("window", window), torch.device(device or "cpu"))


@table()
def _relative_index(height: int, width: int, device: torch.device) -> Tensor:
    (y, x) = _places(height, width, device)
    return (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1


def overlapping_index(window: int | Pair, key_window: int | Pair, device: torch.device | str | None = None) -> Tensor:
    """Row of a table of relative positions for every query of a window and key of a larger one around it.

    Two surprises that official weights of HAT depend on: offsets are those of the key from the query, and they start
    at ``h - H + 1`` for the first ones (H the larger height), so that some rows are negative there and mean rows from
    the end of the table. Here they are taken modulo its rows, which is the same.

    Args:
        window: Side of a window, or (height, width), in tokens.
        key_window: Side of a larger window, or (height, width).
        device: Where to make it.

    Returns:
        [n, N] integers below ``(h + H - 1) * (w + W - 1)``, queries first. Shared: not to be changed.

    Raises:
        ConfigError: A window below 1.

    Source: Chen et al. 2023, section 3.2; the numbering is that of the authors' code.
    """
    return _overlapping_index(*pair("window", window), *pair("key_window", key_window), torch.device(device or "cpu"))


@table()
def _overlapping_index(height: int, width: int, outer_height: int, outer_width: int, device: torch.device) -> Tensor:
    (y, x), (outer_y, outer_x) = _places(height, width, device), _places(outer_height, outer_width, device)
    down = outer_y - y[:, None] + height - outer_height + 1
    across = outer_x - x[:, None] + width - outer_width + 1
    columns = width + outer_width - 1
    return (down * columns + across).remainder((height + outer_height - 1) * columns)


def _places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every token of a window."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return rows.repeat_interleave(width), columns.repeat(height)


def relative_bias(positions: Tensor, window: int | Pair, key_window: int | Pair | None = None) -> Tensor:
    """The bias of a window from a learned table of relative positions.

    Args:
        positions: Table, [(2 h - 1) * (2 w - 1), heads] numbered as by :func:`relative_index`; with ``key_window``
            [(h + H - 1) * (w + W - 1), heads] numbered as by :func:`overlapping_index`.
        window: Side of a window, or (height, width), in tokens.
        key_window: Side of larger windows of keys around it, or (height, width).

    Returns:
        [heads, n, n], or [heads, n, N].

    Raises:
        ShapeError: A table of another size; the message names both.
        ConfigError: A window below 1.
    """
    sides = pair("window", window)
    outer = sides if key_window is None else pair("key_window", key_window)
    rows = (sides[0] + outer[0] - 1) * (sides[1] + outer[1] - 1)
    if positions.dim() != 2 or positions.shape[0] != rows:
        raise ShapeError(f"positions: expected [{rows}, heads] for the window {sides}, got {list(positions.shape)}")
    if key_window is None:
        index = relative_index(sides, positions.device)
    else:
        index = overlapping_index(sides, outer, positions.device)
    # Of six ways to gather it, this one measured fastest on a CPU, both forward and backward.
    return positions.t().contiguous().index_select(1, index.flatten()).unflatten(1, index.shape)
