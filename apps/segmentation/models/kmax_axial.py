"""Axial attention with relative positions for queries, keys and values.

Paper: Wang et al., "Axial-DeepLab", ECCV 2020, as kMaX-DeepLab uses it. Three surprises: there is no division by the
root of the head's width, batch norms on the three similarities take its place; the position tables are shared by all
heads; there is no projection after the heads.

Shape legend: B batch, C channels, H x W map; along an axis: A batch times the other axis, h heads, L length (l query,
m key), d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.kmax_layers import BatchNorm, affine, fixed, full, init_truncated, table
from backbones.attention import tables

LONGEST = 255
"""Positions along an axis that the tables tell apart; beyond it they are stretched."""


class AxialAttention(nn.Module):
    """Attention along the height, then along the width.

    Args:
        inputs: Channels of the map.
        width: Channels of the keys of all heads; values have twice as many.
        heads: Number of heads.
    """

    def __init__(self, inputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.height = AxisAttention(inputs, width, heads)
        self.width = AxisAttention(2 * width, width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 2 * width, H, W], any H and W."""
        x = self.height(x.transpose(2, 3)).transpose(2, 3)
        mixed: Tensor = self.width(x)
        return mixed


class AxisAttention(nn.Module):
    """Attention within the rows of a map.

    Args:
        inputs: Channels of the map.
        width: Channels of the keys of all heads; values have twice as many.
        heads: Number of heads.
    """

    def __init__(self, inputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.widths = heads, (width, width, 2 * width)
        self.qkv = nn.Conv1d(inputs, 4 * width, 1, bias=False)
        init_truncated(self.qkv.weight, inputs**-0.5)
        self.qkv_norm = BatchNorm(4 * width)
        self.similarity_norm = BatchNorm(3 * heads)
        self.output_norm = BatchNorm(4 * width)
        self.query_table = table(2 * LONGEST - 1, width // heads)
        self.key_table = table(2 * LONGEST - 1, width // heads)
        self.value_table = table(2 * LONGEST - 1, 2 * width // heads)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 2 * width, H, W]; every row of W positions by itself."""
        batch, _, rows, length = x.shape
        qkv = self.qkv_norm(F.conv2d(x, self.qkv.weight.unsqueeze(-1)))
        q, k, v = (self._split(part) for part in qkv.split(self.widths, dim=1))
        query_rows, key_rows, value_rows = (
            relative_rows(rows_of, length) for rows_of in (self.query_table, self.key_table, self.value_table)
        )
        weights = self._weights(q, k, query_rows, key_rows)
        mixed = self._merge(weights @ v, per_query(weights, value_rows))  # A, 2 * width, L
        return mixed.unflatten(0, (batch, rows)).transpose(1, 2)

    def _split(self, part: Tensor) -> Tensor:
        """[B, h * d, H, W] to [A, h, L, d]."""
        return part.unflatten(1, (self.heads, -1)).permute(0, 3, 1, 4, 2).flatten(0, 1)

    def _weights(self, q: Tensor, k: Tensor, query_rows: Tensor, key_rows: Tensor) -> Tensor:
        """Share of each key in each query, [A, h, L, L]."""
        if fixed(self.similarity_norm, "axial_attention"):
            # A factor per head, and an offset that the softmax does not see.
            content, by_query, by_key = affine(self.similarity_norm)[0].to(q.dtype).view(3, self.heads, 1, 1)
            similarity = (q * content) @ k.mT + per_query(q * by_query, query_rows.mT) + per_key(k * by_key, key_rows)
        else:
            parts = [q @ k.mT, per_query(q, query_rows.mT), per_key(k, key_rows)]
            similarity = self.similarity_norm(torch.cat(parts, dim=1)).unflatten(1, (3, self.heads)).sum(1)
        return full(similarity).softmax(-1).to(similarity.dtype)

    def _merge(self, content: Tensor, positional: Tensor) -> Tensor:
        """Sum of the normalised halves, [A, h, L, d] both to [A, h * d, L]."""
        content, positional = (half.mT.flatten(1, 2) for half in (content, positional))
        if fixed(self.output_norm, "axial_attention"):
            factor, offset = (part.to(content.dtype).view(2, -1, 1) for part in affine(self.output_norm))
            return torch.addcmul(torch.addcmul(offset.sum(0), content, factor[0]), positional, factor[1])
        halves = self.output_norm(torch.cat([content, positional], dim=1))
        return halves.unflatten(1, (2, -1)).sum(1)


def per_query(x: Tensor, rows: Tensor) -> Tensor:
    """Product with a matrix that differs by query, [A, h, L, i] x [L, i, j] to [A, h, L, j]."""
    batch, heads = x.shape[:2]
    return (x.permute(2, 0, 1, 3).flatten(1, 2) @ rows.to(x.dtype)).unflatten(1, (batch, heads)).permute(1, 2, 0, 3)


def per_key(k: Tensor, rows: Tensor) -> Tensor:
    """Products of keys with the row of every pair, [A, h, L, d] and [L, L, d] (l, m) to [A, h, L, L] (l, m)."""
    return per_query(k, rows.permute(1, 2, 0)).mT


def relative_rows(weights: Tensor, length: int) -> Tensor:
    """Row of a table for every pair of positions.

    Args:
        weights: Table of the distances -254 to 254, [509, d].
        length: L; the table is stretched linearly where L is more than 255.

    Returns:
        [L, L, d]: row for distance m - l at (l, m).
    """
    farthest = (weights.shape[0] - 1) // 2
    if length - 1 > farthest:
        stretched = F.interpolate(weights.mT[None], size=2 * length - 1, mode="linear", align_corners=True)
        weights, farthest = stretched[0].mT, length - 1
    return F.embedding(_distances(length, weights.device) + farthest, weights)


@tables.table()
def _distances(length: int, device: torch.device) -> Tensor:
    """Distance m - l at (l, m), [L, L]."""
    positions = torch.arange(length, device=device)
    return positions[None, :] - positions[:, None]
