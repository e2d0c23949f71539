"""How a map is cut for neighborhood attention: into tiles of queries, each with the block of keys that they see.

Dilation d splits an axis into d interleaved sequences (residues), which never see each other. Along each of them the
windows of neighbouring queries overlap, so a tile of T queries needs a block of only T + k - 1 keys. Windows at the
borders are shifted inwards: tiles there need fewer keys, and have their own shape. A run is all tiles of one shape
along an axis, and a pair of runs, one per axis, is a group: its tiles are one batch of small dense attentions under one
and the same bias. Index tables are numpy arrays: they can be kept whatever mode torch is in when they are made.

Shape legend: B batch, h heads, H height, W width, c channels; of a group: r residues and n tiles along an axis, S
queries or keys of a tile along an axis, M queries and K keys of a tile altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
from torch import Tensor

TILE = 6
"""Queries of a tile along an axis: of 3 to 14 the fastest on a CPU for kernels of 3 to 13."""
WHOLE, WHOLE_KERNELS = 8, 1.6
"""Sequences up to this length, or this many kernels, are one tile: cutting them measured no faster."""

Span = Literal["queries", "keys"]
Table = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Run:
    """Tiles of one shape along an axis; positions count within the sequence of a residue, in dilated steps.

    Args:
        residue: First residue.
        residues: Number of residues, one after the other.
        tiles: Tiles per residue; each begins ``queries`` positions after the one before.
        queries: Queries of a tile.
        keys: Keys of a tile: exactly the union of its queries' windows.
        first_query: Position of the first query of the first tile.
        first_key: Position of the first key of the first tile.
    """

    residue: int
    residues: int
    tiles: int
    queries: int
    keys: int
    first_query: int
    first_key: int

    @property
    def lead(self) -> int:
        """Keys of a tile before its first query."""
        return self.first_query - self.first_key

    def pattern(self, kernel: int) -> tuple[int, int, int, int]:
        """All that tells which keys of a tile its queries see."""
        return self.queries, self.keys, self.lead, kernel

    def size(self, span: Span) -> int:
        """Queries or keys of a tile."""
        return self.queries if span == "queries" else self.keys

    def first(self, span: Span) -> int:
        """Position of the first query or key of the first tile."""
        return self.first_query if span == "queries" else self.first_key

    @property
    def phases(self) -> int:
        """Every how many tiles blocks of keys do not overlap."""
        return min(self.tiles, -(-self.keys // self.queries))


def is_whole(length: int, kernel: int) -> bool:
    """A sequence is short enough to be one tile."""
    return length <= max(WHOLE, WHOLE_KERNELS * kernel)


@lru_cache(maxsize=1024)
def axis_runs(length: int, kernel: int, dilation: int) -> tuple[Run, ...]:
    """Cut an axis into runs that hold every query once.

    Args:
        length: Positions of the axis, at least ``kernel * dilation``.
        kernel: Keys that a query sees along the axis; odd.
        dilation: Step between them.

    Returns:
        Runs; of the residues the first ``length % dilation`` have one position more, which their last run takes.
    """
    shorter, longer = divmod(length, dilation)
    kinds = [(0, longer, shorter + 1)] if longer else []
    kinds.append((longer, dilation - longer, shorter))
    if is_whole(shorter, kernel):
        return tuple(Run(residue, count, 1, size, size, 0, 0) for residue, count, size in kinds)
    reach = kernel // 2
    # A border tile needs reach + 1 queries, so that its block holds a whole window.
    tiles = max(0, min(-(-(shorter - 2 * (TILE + 1)) // TILE), (shorter - 2 * (reach + 1)) // TILE))
    border = shorter - tiles * TILE
    left = border // 2
    runs = [Run(0, dilation, 1, left, left + reach, 0, 0)]
    if tiles:
        runs.append(Run(0, dilation, tiles, TILE, TILE + 2 * reach, left, left - reach))
    for residue, count, size in kinds:
        right = border - left + size - shorter
        runs.append(Run(residue, count, 1, right, right + reach, size - right, size - right - reach))
    return tuple(runs)


@dataclass(frozen=True)
class Group:
    """The tiles of two runs: rows and columns.

    Args:
        rows: Along the height.
        columns: Along the width.
        kernel: Of both axes.
        dilation: Of both axes.
    """

    rows: Run
    columns: Run
    kernel: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def queries(self) -> int:
        """Queries of a tile, M."""
        return self.rows.queries * self.columns.queries

    @property
    def keys(self) -> int:
        """Keys of a tile, K."""
        return self.rows.keys * self.columns.keys

    @property
    def tiles(self) -> tuple[int, int, int, int]:
        """Residues and tiles along the height, residues and tiles along the width."""
        return self.rows.residues, self.rows.tiles, self.columns.residues, self.columns.tiles

    @property
    def sees_all(self) -> bool:
        """Every query of a tile sees every key of it."""
        return (self.rows.keys, self.columns.keys) == self.kernel

    @property
    def bias_entries(self) -> int:
        """Entries of the bias table of a head."""
        return (2 * self.kernel[0] - 1) * (2 * self.kernel[1] - 1)

    def windows(self, x: Tensor, span: Span) -> Tensor:
        """A view of a map that shows every tile's queries or keys; blocks of keys overlap.

        Args:
            x: [B, H, W, h, c], any strides.
            span: What to show.

        Returns:
            [B, h, r, n, r, n, S, S, c]: residues, tiles and sizes, rows before columns.
        """
        batch, row, column, head, channel = x.stride()
        first_row = self.rows.residue + self.dilation[0] * self.rows.first(span)
        first_column = self.columns.residue + self.dilation[1] * self.columns.first(span)
        sizes = (x.shape[0], x.shape[3], *self.tiles, self.rows.size(span), self.columns.size(span), x.shape[4])
        down, across = self.dilation[0] * row, self.dilation[1] * column
        steps = (row, self.rows.queries * down, column, self.columns.queries * across)
        offset = x.storage_offset() + first_row * row + first_column * column
        return x.as_strided(sizes, (batch, head, *steps, down, across, channel), offset)

    def bias_index(self) -> Table:
        """Entry of the flattened bias table, with one entry for hidden pairs at its end, per query and key: [M * K]."""
        return _bias_index(self.rows.pattern(self.kernel[0]), self.columns.pattern(self.kernel[1]))

    def row_one_hot(self) -> Table:
        """Bias indices along the height as rows of an identity, [S * S, 2 * kernel[0] - 1]."""
        return _one_hot(*self.rows.pattern(self.kernel[0]))

    def column_one_hot(self) -> Table:
        """Bias indices along the width as rows of an identity, [S * S, 2 * kernel[1] - 1]."""
        return _one_hot(*self.columns.pattern(self.kernel[1]))

    def chunks(self, batch: int, heads: int, elements: int) -> Iterator[tuple[slice, ...]]:
        """Slices of :meth:`windows` that hold all heads and about ``elements`` pairs of query and key at a time."""
        inner = max(1, heads) * self.queries * self.keys
        parts: list[list[slice]] = []
        for size in reversed((batch, *self.tiles)):
            step = max(1, min(size, elements // inner))
            parts.append([slice(start, min(start + step, size)) for start in range(0, size, step)])
            inner *= step
        for batches, *tiles in product(*reversed(parts)):
            yield (batches, slice(None), *tiles)


@lru_cache(maxsize=1024)
def groups(height: int, width: int, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[Group, ...]:
    """The groups of a map; their queries are all positions of the map, each once."""
    rows, columns = axis_runs(height, kernel[0], dilation[0]), axis_runs(width, kernel[1], dilation[1])
    return tuple(Group(ours, theirs, kernel, dilation) for ours, theirs in product(rows, columns))


@cache
def relative_positions(queries: int, keys: int, lead: int, kernel: int) -> tuple[Table, Table]:
    """Bias index and visibility of every pair of query and key of a tile along an axis.

    As a block is the union of its queries' windows, shifting a window into the sequence is shifting it into the block.

    Returns:
        Key minus query plus ``kernel - 1``, kept within the table, and whether the query sees the key; both
        [queries, keys].
    """
    query, key = lead + np.arange(queries)[:, None], np.arange(keys)
    start = (query - kernel // 2).clip(0, keys - kernel)
    visible = (key >= start) & (key < start + kernel)
    return (key - query + kernel - 1).clip(0, 2 * kernel - 2), visible


@cache
def _one_hot(queries: int, keys: int, lead: int, kernel: int) -> Table:
    index, _ = relative_positions(queries, keys, lead, kernel)
    return np.eye(2 * kernel - 1)[index.reshape(-1)]


@lru_cache(maxsize=1024)
def _bias_index(rows: tuple[int, int, int, int], columns: tuple[int, int, int, int]) -> Table:
    down, seen_down = relative_positions(*rows)
    across, seen_across = relative_positions(*columns)
    entries = (2 * rows[3] - 1, 2 * columns[3] - 1)
    index = down[:, None, :, None] * entries[1] + across[:, None, :]  # Sq, Sq, Sk, Sk
    visible = seen_down[:, None, :, None] & seen_across[:, None, :]
    return np.where(visible, index, entries[0] * entries[1]).reshape(-1)
