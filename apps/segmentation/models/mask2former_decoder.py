"""The masked decoder of Mask2Former: queries that read only what their own masks cover.

Source: Cheng et al. 2022, section 3.2. A layer reads one of the maps, coarsest first and in turn; cross-attention
comes before self-attention; positions go to what asks and to what is asked, not to what is read.

Two forms of the same masks of attention:

- literal (wherever attention is forced to ``math``): masks of the finest stride, resized to the map that is read, a
  sigmoid, and a copy for each head.
- fast: resizing is linear and treats features alike, so the resized product is the product with resized features. Where
  only attention wants a mask nothing of the finest stride is made. The forms differ where a logit rounds to the other
  side of zero.

Shape legend: B batch, N queries, D features of a query, M mask features, H x W finest map, T cells of the map that a
layer reads, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.mask2former_pixel_decoder import sine_positions
from backbones.attention.attend import attend
from backbones.attention.dispatch import wish
from graftwork.errors import ShapeError


class Prediction(NamedTuple):
    """What queries say after a layer.

    Args:
        values: Numbers of each query, [B, N, outputs]: logits of classes.
        masks: Logits of each query's mask, [B, N, H, W].
    """

    values: Tensor
    masks: Tensor


class PackedAttention(nn.Module):
    """Multi-head attention whose projections to queries, keys and values are one matrix.

    Args:
        width: D, a multiple of ``heads``.
        heads: h.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.weight)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """Read values.

        Args:
            queries: [B, N, D].
            keys: [B, T, D].
            values: [B, T, D].
            bias: Added to the logits, or whether a query sees a key, broadcastable to [B, h, N, T].

        Returns:
            [B, N, D].
        """
        weights, biases = self.weight.chunk(3), self.bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1))
            for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        return self.out(attend(q, k, v, bias=bias).flatten(2))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and a feed-forward network.

    Args:
        width: D.
        heads: h.
        mlp: Features inside the feed-forward network.
        norm_first: Norms before the branches instead of after the sums.
    """

    def __init__(self, width: int, heads: int, mlp: int, norm_first: bool = False) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.cross_attention = PackedAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = PackedAttention(width, heads)
        self.self_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, mlp)
        self.contract = nn.Linear(mlp, width)
        self.mlp_norm = nn.LayerNorm(width)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Refine queries.

        Args:
            queries: [B, N, D].
            positions: Of the queries, [N, D].
            keys: Cells of the map with their positions, [B, T, D].
            values: Cells of the map, [B, T, D].
            bias: 0 where a query may read a cell, -inf elsewhere, [B, 1, N, T]; or as booleans for each head.

        Returns:
            [B, N, D].
        """
        x = self._before(self.cross_norm, queries)
        queries = self._after(self.cross_norm, queries + self.cross_attention(x + positions, keys, values, bias))
        x = self._before(self.self_norm, queries)
        placed = x + positions
        queries = self._after(self.self_norm, queries + self.self_attention(placed, placed, x))
        x = self._before(self.mlp_norm, queries)
        return self._after(self.mlp_norm, queries + self.contract(F.relu(self.expand(x))))

    def _before(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x) if self.norm_first else x

    def _after(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return x if self.norm_first else norm(x)


class MaskedDecoder(nn.Module):
    """Queries over maps, to values and masks.

    Args:
        channels: Features of the maps.
        outputs: Numbers that every query gives: classes and one more for no object.
        maps: How many maps there are.
        width: D, a multiple of 4 and of ``heads``.
        mask_width: M.
        queries: N.
        layers: Layers.
        heads: h.
        mlp: Features inside the feed-forward networks.
        norm_first: Norms before the branches instead of after the sums.
        project: Project maps even where their features are D.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        maps: int = 3,
        width: int = 256,
        mask_width: int = 256,
        queries: int = 100,
        layers: int = 9,
        heads: int = 8,
        mlp: int = 2048,
        norm_first: bool = False,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query_features = nn.Parameter(torch.randn(queries, width))
        self.query_positions = nn.Parameter(torch.randn(queries, width))
        self.level_positions = nn.Parameter(torch.randn(maps, width))
        for table in (self.query_features, self.query_positions, self.level_positions):
            table._no_weight_decay = True  # type: ignore[attr-defined]
        self.projections = nn.ModuleList(
            _projection(channels, width) if project or channels != width else nn.Identity() for _ in range(maps)
        )
        for unread in self.projections[layers:]:  # processes that train together would wait for its gradient
            unread.requires_grad_(False)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, mlp, norm_first) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.values = nn.Linear(width, outputs)
        self.mask_layers = nn.ModuleList(
            [nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, mask_width)]
        )

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor, *, every: bool = False) -> list[Prediction]:
        """Decode maps.

        Args:
            maps: Coarsest first, each [B, C, h, w].
            mask_features: [B, M, H, W].
            every: Give what the queries say before each layer, too.

        Returns:
            First layer first; the last one alone unless ``every``.

        Raises:
            ShapeError: Another number of maps than this was built for.
        """
        if len(maps) != len(self.projections):
            raise ShapeError(f"maps: expected {len(self.projections)}, coarsest first, got {len(maps)}")
        literal = wish()[0] == "math"
        memories = [self._memory(level, x) for level, x in enumerate(maps)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        resized = [] if literal else [_resized(mask_features, size) for size in sizes]
        queries = self.query_features.expand(mask_features.shape[0], -1, -1)  # a length would fix the batch of exports
        found: list[Prediction] = []
        for number, layer in enumerate(self.layers):
            level = number % len(maps)
            state = self.norm(queries)
            kernels = self._kernels(state)
            if every or literal:
                found.append(self._predict(state, kernels, mask_features))
            with torch.no_grad():
                if literal:
                    visible = literally_visible(found[-1].masks, sizes[level], self.heads)
                else:
                    visible = visibility_bias(visible_cells(kernels, resized[level]), kernels.dtype)
            queries = layer(queries, self.query_positions, *memories[level], visible)
        state = self.norm(queries)
        found.append(self._predict(state, self._kernels(state), mask_features))
        return found if every else found[-1:]

    def _memory(self, level: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a map, [B, T, D] both."""
        positions = sine_positions(x.shape[-2], x.shape[-1], self.level_positions.shape[-1], x.device)
        values = self.projections[level](x).flatten(2).transpose(1, 2) + self.level_positions[level]
        return values + positions.to(values.dtype), values

    def _kernels(self, state: Tensor) -> Tensor:
        """Factors of the mask features, [B, N, M]."""
        first, second, last = self.mask_layers
        return last(F.relu(second(F.relu(first(state)))))

    def _predict(self, state: Tensor, kernels: Tensor, mask_features: Tensor) -> Prediction:
        masks = (kernels @ mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])
        return Prediction(self.values(state), masks)


def visible_cells(kernels: Tensor, mask_features: Tensor) -> Tensor:
    """Which cells each query may read: those its mask covers, or all where it covers none.

    Args:
        kernels: [B, N, M].
        mask_features: At the cells, [B, M, T].

    Returns:
        [B, 1, N, T] bool. The probability is at least one half where the logit is at least zero.
    """
    covered = kernels @ mask_features >= 0
    return (covered | ~covered.any(-1, keepdim=True))[:, None]


def visibility_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Booleans as what to add to logits: 0 or -inf; a CPU's kernel takes it three times as fast."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def literally_visible(masks: Tensor, size: Sequence[int], heads: int) -> Tensor:
    """The same from masks of the finest stride, as the paper writes it, with a copy for each head.

    Args:
        masks: Logits, [B, N, H, W].
        size: Height and width of the map to read.
        heads: h.

    Returns:
        [B, h, N, T] bool.
    """
    small = F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
    forbidden = (small.sigmoid().flatten(2)[:, None].repeat(1, heads, 1, 1) < 0.5).bool()
    forbidden[torch.where(forbidden.sum(-1) == forbidden.shape[-1])] = False
    return ~forbidden


def _resized(mask_features: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, M, H, W] to the cells of a smaller map, [B, M, T]; no gradient passes."""
    small = F.interpolate(mask_features.detach(), size=size, mode="bilinear", align_corners=False)
    return small.flatten(2)


def _projection(channels: int, width: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, width, 1)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
