"""Neighborhood attention in plain operations, for graphs: compiled and exported models, and second derivatives.

All tiles of a map have one shape here, so that the graph is short: blocks at the borders are moved inwards, and queries
and keys beyond the end of a sequence are repeated, which nobody reads and nobody sees. All tables are constants of the
graph.

Shape legend: B batch, h heads, H height, W width, c channels; A tiles along an axis over all residues, S queries or
keys of a tile along an axis, U kinds of tiles along an axis; n tiles of a map with M queries and K keys each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.neighborhood_tiles import TILE, Table, is_whole


def traced_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> Tensor:
    """The same as :func:`backbones.attention.neighborhood_fast.tiled_attention`, with the same arguments."""
    precise = torch.promote_types(q.dtype, torch.float32)
    height, width = q.shape[1:3]
    tables = map_tables(height, width, kernel, dilation, q.device)
    flat_q, flat_k, flat_v = (x.to(precise).permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (q, k, v))  # B, h, H * W, c
    queries = _gathered(flat_q * scale, tables.queries)  # B, h, n, M, c
    keys, values = _gathered(flat_k, tables.keys), _gathered(flat_v, tables.keys)
    if bias is None:
        entries = q.new_zeros(1, (2 * kernel[0] - 1) * (2 * kernel[1] - 1), dtype=precise)
    else:
        entries = bias.flatten(1).to(precise)
    kinds = _gathered(F.pad(entries, (0, 1), value=-torch.inf)[:, None, :, None], tables.bias.flatten(1))
    kinds = kinds.reshape(-1, *tables.bias.shape)  # h or 1, U, U, M, K
    tile_bias = kinds.index_select(1, tables.row_kinds).index_select(2, tables.column_kinds).flatten(1, 2)
    weights = torch.softmax(queries @ keys.mT + tile_bias, dim=-1)
    mixed = (weights @ values).flatten(2, 3).index_select(2, tables.inverse)  # B, h, H * W, c
    return mixed.unflatten(2, (height, width)).permute(0, 2, 3, 1, 4).to(v.dtype)


def _gathered(flat: Tensor, index: Tensor) -> Tensor:
    """[B, h, positions, c] to [B, h, n, tokens, c] by a table [n, tokens]."""
    return flat.index_select(2, index.flatten()).unflatten(2, index.shape)


class MapTables(NamedTuple):
    """Constants of a map.

    Attributes:
        queries: Positions of every tile's queries in the flattened map, [n, M].
        keys: Positions of every tile's keys, [n, K].
        bias: Entry of the flattened bias table, or one past its end for hidden pairs, by kinds of tiles, [U, U, M, K].
        row_kinds: Kind of every tile along the height, [A].
        column_kinds: Kind of every tile along the width, [A].
        inverse: Where every position's result stands among those of all tiles, [H * W].
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    row_kinds: Tensor
    column_kinds: Tensor
    inverse: Tensor


@torch.compiler.assume_constant_result
def map_tables(
    height: int, width: int, kernel: tuple[int, int], dilation: tuple[int, int], device: torch.device
) -> MapTables:
    """The tables of a map of a size."""
    rows, columns = axis_tiles(height, kernel[0], dilation[0]), axis_tiles(width, kernel[1], dilation[1])
    queries, keys = (_product(ours * width, theirs) for ours, theirs in zip(rows[:2], columns[:2], strict=True))
    index = rows.relative[:, None, :, None, :, None] * (2 * kernel[1] - 1) + columns.relative[:, None, :, None, :]
    visible = rows.visible[:, None, :, None, :, None] & columns.visible[:, None, :, None, :]
    bias = np.where(visible, index, (2 * kernel[0] - 1) * (2 * kernel[1] - 1))  # U, U, S, S of queries, S, S of keys
    inverse = np.empty(height * width, dtype=np.int64)
    inverse[queries.reshape(-1)] = np.arange(queries.size)
    tables = (queries, keys, bias.reshape(*bias.shape[:2], queries.shape[1], -1), rows.kinds, columns.kinds, inverse)
    return MapTables(*(torch.as_tensor(np.ascontiguousarray(table), device=device) for table in tables))


def _product(rows: Table, columns: Table) -> Table:
    """Positions of two axes, [A, S] each, as positions of the map, [A * A, S * S]."""
    positions = rows[:, None, :, None] + columns[:, None, :]
    return positions.reshape(len(rows) * len(columns), -1)


class AxisTiles(NamedTuple):
    """Tiles of one shape along an axis.

    Attributes:
        queries: Coordinates of every tile's queries, [A, S]; repeated beyond the end of a sequence.
        keys: Coordinates of every tile's keys, [A, S]; repeated likewise.
        kinds: Kind of every tile, [A].
        relative: Bias index of key and query by kind, [U, S, S].
        visible: Whether the query sees the key by kind, [U, S, S].
    """

    queries: Table
    keys: Table
    kinds: Table
    relative: Table
    visible: Table


def axis_tiles(length: int, kernel: int, dilation: int) -> AxisTiles:
    """Cut an axis into tiles of one shape, over all residues."""
    reach, longest = kernel // 2, -(-length // dilation)
    size = longest if is_whole(longest, kernel) else TILE
    block = min(size + 2 * reach, longest)
    residues = np.repeat(np.arange(dilation), -(-longest // size))
    ends = (-(-(length - residues) // dilation))[:, None]  # A, 1: positions of the same residue
    begins = np.tile(np.arange(0, longest, size), dilation)[:, None]
    query = np.minimum(begins + np.arange(size), ends - 1)
    key = np.clip(begins - reach, 0, np.maximum(ends - block, 0)) + np.arange(block)
    start = np.clip(query - reach, 0, ends - kernel)[:, :, None]
    visible = (key[:, None] >= start) & (key[:, None] < start + kernel)
    relative = np.clip(key[:, None] - query[:, :, None] + kernel - 1, 0, 2 * kernel - 2)
    seen = np.where(visible, relative, -1).reshape(len(residues), -1)
    _, first, kinds = np.unique(seen, axis=0, return_index=True, return_inverse=True)
    queries, keys = (residues[:, None] + dilation * np.minimum(position, ends - 1) for position in (query, key))
    return AxisTiles(queries, keys, kinds.reshape(-1), relative[first], visible[first])
