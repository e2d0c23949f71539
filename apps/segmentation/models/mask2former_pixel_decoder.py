"""The pixel decoder of Mask2Former: deformable attention over the coarse levels of a backbone, then a step up.

Source: Zhu et al. 2021, "Deformable DETR", for the encoder; Cheng et al. 2022, "Masked-attention Mask Transformer for
Universal Image Segmentation", section 3.3 and the published code for what is around it.

Three surprises: the encoder's feed-forward networks have 1024 features in all published weights, whatever their
configuration says; everything here is computed in float32, under autocast too; levels are counted coarsest first.

Shape legend: B batch, D features, L levels of the encoder, T tokens of all levels, h heads, P points, K layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.head import Size
from apps.segmentation.models.info import HeadInfo
from backbones.attention.attend import without_autocast
from backbones.attention.deformable import deformable_attention
from backbones.attention.dispatch import exporting
from backbones.attention.tables import table
from graftwork.errors import ConfigError, ShapeError

TEMPERATURE = 10000.0
"""Longest wave of the positions, in cells of 2 pi."""
ENCODED = (8, 16, 32)
"""Strides that the encoder works on, in pixels, where a backbone has them."""
FINEST = 4
"""Finest stride that masks are given at, in pixels."""

Depth = int | Tensor
"""Layers of the encoder to run: as many for all images, or a number for each of them, [B]."""


class Plan(NamedTuple):
    """Which levels of a backbone are used, and for what.

    Args:
        encoded: Numbers of the levels that the encoder works on, coarsest first.
        merged: Numbers of the finer levels that are merged in afterwards, coarsest first.
        read: How many of the resulting maps the masked decoder reads, coarsest first.
        stride: Pixels per position of the mask features.
    """

    encoded: tuple[int, ...]
    merged: tuple[int, ...]
    read: int
    stride: int


def plan_levels(info: HeadInfo, most: int = 3) -> Plan:
    """Choose levels: the encoder takes strides 8, 16 and 32; else those from 8 up; else the coarsest.

    Args:
        info: Channels and strides of the backbone.
        most: Levels of the encoder, the coarsest of those in question; as many as there are beyond 3 are finer ones, of
            stride 4 and more.

    Raises:
        ConfigError: There are no levels, or channels and strides that cannot belong to levels.
    """
    channels, strides = tuple(info.channels), tuple(info.strides)
    if not channels or len(channels) != len(strides) or min(*channels, *strides) < 1:
        raise ConfigError(
            f"Mask2Former needs a channel number and a stride of each level, got channels={channels} and "
            f"strides={strides}",
            mend="Use a backbone that gives at least one level",
        )
    order = sorted(range(len(strides)), key=lambda level: (strides[level], level))
    fit = [level for level in order if strides[level] in ENCODED] or [level for level in order if strides[level] >= 8]
    fit = (fit or order[-1:])[-most:]
    finer = [level for level in order if FINEST <= strides[level] < strides[fit[0]]]
    encoded = finer[max(0, len(finer) - max(0, most - len(ENCODED))) :] + fit
    finest = strides[encoded[0]]
    merged = [level for level in order if FINEST <= strides[level] < finest]
    coarse = sum(strides[level] >= ENCODED[0] for level in merged)  # merged maps stand in for levels not encoded
    stride = strides[merged[0]] if merged else finest
    read = min(len(ENCODED), len(encoded) + coarse)
    return Plan(tuple(encoded[::-1]), tuple(merged[::-1]), read, stride)


@table(64)
def sine_positions(height: int, width: int, features: int, device: torch.device) -> Tensor:
    """Positions of the cells of a map as sines and cosines.

    Args:
        height: Rows.
        width: Columns.
        features: D, a multiple of 4; the first half tells rows, the second columns.
        device: Where to make them.

    Returns:
        [1, height * width, D], float32. Rows and columns are counted from 1 and scaled so that the last is 2 pi.

    Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", normalised form.
    """
    half = features // 2
    exponents = 2 * torch.arange(half, device=device).div(2, rounding_mode="floor") / half
    waves = TEMPERATURE**exponents
    axes = []
    for length in (height, width):
        place = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        angles = place[:, None] / waves
        axes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1))  # length, D / 2
    rows, columns = axes[0][:, None].expand(-1, width, -1), axes[1].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(1, height * width, features)


@table(64)
def cell_centres(shapes: tuple[Size, ...], device: torch.device) -> Tensor:
    """Centres of the cells of all levels as shares of width and height, (x, y), [T, 2]."""
    centres = []
    for height, width in shapes:
        y, x = ((torch.arange(length, device=device) + 0.5) / length for length in (height, width))
        centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
    return torch.cat(centres)


@table(64)
def level_sizes(shapes: tuple[Size, ...], device: torch.device) -> Tensor:
    """Width and height of all levels, [L, 2] float32."""
    return torch.tensor([(width, height) for height, width in shapes], device=device, dtype=torch.float32)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections.

    Args:
        width: D.
        levels: L.
        heads: h, a divisor of the width.
        points: P, for each head and level.

    Source: Zhu et al. 2021, section 4.1. A head's points begin on a ray of its own, one more step away each.
    """

    def __init__(self, width: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.grid = (heads, levels, points)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        heads, levels, points = self.grid
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        fan = rays[:, None, None] * torch.arange(1, points + 1)[:, None]  # h, 1, P, 2
        with torch.no_grad():
            self.offsets.bias.copy_(fan.expand(-1, levels, -1, -1).flatten())

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        values: Tensor,
        shapes: Sequence[Size],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Read all levels around reference points.

        Args:
            queries: [B, Q, D].
            references: (x, y) as shares of width and height, broadcastable to [B, Q, L, 2].
            values: Tokens of all levels, [B, T, D].
            shapes: Height and width of each level.
            padding: Tokens that read as zero, [B, T] bool.

        Returns:
            [B, Q, D].
        """
        heads, levels, points = self.grid
        value = self.value(values)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        sizes = level_sizes(tuple((height, width) for height, width in shapes), queries.device).to(queries.dtype)
        offsets = self.offsets(queries).unflatten(-1, (heads, levels, points, 2))  # B, Q, h, L, P, 2
        locations = references[..., None, :, None, :] + offsets / sizes[:, None]
        weights = self.weights(queries).unflatten(-1, (heads, levels * points)).softmax(-1)
        mixed = deformable_attention(
            value.unflatten(-1, (heads, -1)), shapes, locations, weights.unflatten(-1, (levels, points))
        )
        return self.out(mixed.flatten(2))


class EncoderLayer(nn.Module):
    """Deformable attention of all tokens to all levels, then a feed-forward network; norms after the sums.

    Args:
        width: D.
        levels: L.
        heads: h.
        points: P.
        mlp: Features inside the feed-forward network.
        dropout: Share of features dropped in both branches.
    """

    def __init__(self, width: int, levels: int, heads: int, points: int, mlp: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, levels, heads, points)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, mlp)
        self.contract = nn.Linear(mlp, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, tokens: Tensor, positions: Tensor, references: Tensor, shapes: Sequence[Size]) -> Tensor:
        """[B, T, D] to the same."""
        mixed = self.attention(tokens + positions, references, tokens, shapes)
        tokens = self.attention_norm(tokens + self.dropout(mixed))
        hidden = self.dropout(F.relu(self.expand(tokens)))
        return self.mlp_norm(tokens + self.dropout(self.contract(hidden)))


class Encoder(nn.Module):
    """Layers over the tokens of all levels; images may leave after any of them.

    Args:
        layers: The layers, all of the same width.
    """

    layers: nn.ModuleList

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, tokens: Tensor, positions: Tensor, references: Tensor, shapes: Sequence[Size], depth: Depth | None = None
    ) -> Tensor:
        """Refine tokens.

        Args:
            tokens: [B, T, D].
            positions: Added to what asks, [1, T, D].
            references: Where each token looks, broadcastable to [B, T, L, 2].
            shapes: Height and width of each level.
            depth: Layers to run, from 1 to K; all if omitted.

        Returns:
            [B, T, D].
        """
        if isinstance(depth, Tensor):
            return self._each(tokens, positions, references, shapes, depth)
        for layer in self.layers[:depth]:
            tokens = layer(tokens, positions, references, shapes)
        return tokens

    def _each(
        self, tokens: Tensor, positions: Tensor, references: Tensor, shapes: Sequence[Size], depth: Tensor
    ) -> Tensor:
        """Every image by its own number of layers; in an exported graph all are run and the wanted ones chosen."""
        if exporting():
            found = tokens
            for number, layer in enumerate(self.layers, 1):
                tokens = layer(tokens, positions, references, shapes)
                found = torch.where((depth >= number)[:, None, None], tokens, found)
            return found
        wanted = depth.clamp(1, len(self.layers)).tolist()
        left = list(range(len(wanted)))
        parts: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers, 1):
            going = [place for place, image in enumerate(left) if wanted[image] >= number]
            if len(going) < len(left):
                tokens, left = tokens[going], [left[place] for place in going]
            if not left:
                break
            tokens = layer(tokens, positions, references, shapes)
            parts |= {image: tokens[place] for place, image in enumerate(left) if wanted[image] == number}
        return torch.stack([parts[image] for image in range(len(wanted))]) if parts else tokens


class Project(nn.Sequential):
    """1x1 convolution with bias and a group norm: a level's channels to D."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        convolution = nn.Conv2d(channels, width, 1)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        super().__init__(convolution, nn.GroupNorm(groups, width))


class Merge(nn.Module):
    """A finer level is added to the enlarged map below it and smoothed.

    Args:
        channels: Of the finer level.
        width: D.
        groups: Of the norms.
    """

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(channels, width, 1, bias=False)
        self.lateral_norm = nn.GroupNorm(groups, width)
        self.smooth = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.smooth_norm = nn.GroupNorm(groups, width)
        for layer in (self.lateral, self.smooth):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, level: Tensor, below: Tensor) -> Tensor:
        """[B, C, H, W] and the map below it, [B, D, h, w], to [B, D, H, W]."""
        lateral = self.lateral_norm(self.lateral(level))
        enlarged = F.interpolate(below, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return F.relu(self.smooth_norm(self.smooth(lateral + enlarged)))


class _Around(NamedTuple):
    """What the encoder must know of its tokens: see :meth:`Encoder.forward`."""

    positions: Tensor
    references: Tensor
    shapes: tuple[Size, ...]


class Decoded(NamedTuple):
    """What a pixel decoder gives.

    Args:
        maps: For the masked decoder, coarsest first, each [B, D, H, W].
        mask_features: Whose products with queries are masks, [B, M, H, W] at the finest stride.
    """

    maps: list[Tensor]
    mask_features: Tensor


class PixelDecoder(nn.Module):
    """From levels of a backbone to maps of one width.

    Args:
        info: Channels and strides of the backbone.
        width: D, a multiple of 4, of ``heads`` and of ``groups``.
        mask_width: Features of the mask features.
        layers: K, of the encoder.
        levels: Of the encoder at most.
        heads: Of deformable attention.
        points: Of each head on each level.
        mlp: Features inside the encoder's feed-forward networks.
        groups: Of the norms on the encoder's levels.
        merge_groups: Of the norms where finer levels are merged in.
        dropout: In the encoder.

    Attributes:
        plan: Which levels are used.

    Raises:
        ConfigError: The backbone has no levels.
    """

    def __init__(
        self,
        info: HeadInfo,
        *,
        width: int = 256,
        mask_width: int = 256,
        layers: int = 6,
        levels: int = 3,
        heads: int = 8,
        points: int = 4,
        mlp: int = 1024,
        groups: int = 32,
        merge_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.plan = plan_levels(info, levels)
        self._channels = {i: info.channels[i] for i in (*self.plan.encoded, *self.plan.merged)}
        encoded = len(self.plan.encoded)
        self.projections = nn.ModuleList(Project(info.channels[i], width, groups) for i in self.plan.encoded)
        self.level_positions = nn.Parameter(torch.randn(encoded, width))
        self.encoder = Encoder([EncoderLayer(width, encoded, heads, points, mlp, dropout) for _ in range(layers)])
        self.merges = nn.ModuleList(Merge(info.channels[i], width, merge_groups) for i in self.plan.merged)
        self.mask_features = nn.Conv2d(width, mask_width, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor], depth: Depth | None = None) -> Decoded:
        """Decode levels, in float32 under autocast too.

        Args:
            levels: Of the backbone, in the order of ``info.channels``, each [B, C, H, W].
            depth: Layers of the encoder to run; all if omitted.

        Raises:
            ShapeError: Another number of levels or of channels than this was built for.
        """
        with without_autocast(levels[0]):
            tokens, around = self._tokens(levels)
            return self._step_up(self.encoder(tokens, *around, depth), around.shapes, levels)

    def exits(self, levels: Sequence[Tensor]) -> Iterator[Decoded]:
        """What :meth:`forward` gives for every depth, from 1; the layers are run once."""
        with without_autocast(levels[0]):
            tokens, around = self._tokens(levels)
            for layer in self.encoder.layers:
                tokens = layer(tokens, *around)
                yield self._step_up(tokens, around.shapes, levels)

    def _tokens(self, levels: Sequence[Tensor]) -> tuple[Tensor, _Around]:
        """Projected levels as tokens [B, T, D], and what the encoder must know of them."""
        self._check(levels)
        coarse = [levels[i].to(self.mask_features.weight.dtype) for i in self.plan.encoded]
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in coarse)
        projected = [project(level) for project, level in zip(self.projections, coarse, strict=True)]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in projected], dim=1)
        centres = cell_centres(shapes, tokens.device).to(tokens.dtype)
        return tokens, _Around(self._positions(shapes, tokens), centres[None, :, None], shapes)

    def _step_up(self, tokens: Tensor, shapes: tuple[Size, ...], levels: Sequence[Tensor]) -> Decoded:
        """Tokens of the encoder as maps, finer levels merged in."""
        parts = tokens.split([height * width for height, width in shapes], dim=1)
        maps = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
        for merge, i in zip(self.merges, self.plan.merged, strict=True):
            maps.append(merge(levels[i].to(tokens.dtype), maps[-1]))
        return Decoded(maps[: self.plan.read], self.mask_features(maps[-1]))

    def _positions(self, shapes: tuple[Size, ...], tokens: Tensor) -> Tensor:
        """Sines of the place in a level, and the level's own vector, [1, T, D]."""
        width = tokens.shape[-1]
        sines = [sine_positions(*shape, width, tokens.device).to(tokens.dtype) for shape in shapes]
        return torch.cat([sine + vector for sine, vector in zip(sines, self.level_positions, strict=True)], dim=1)

    def _check(self, levels: Sequence[Tensor]) -> None:
        for level, channels in sorted(self._channels.items()):
            found = list(levels[level].shape) if level < len(levels) else None
            if found is None or len(found) != 4 or found[1] != channels:
                expected = f"[batch, {channels}, height, width]"
                raise ShapeError(f"level {level} of the backbone: expected {expected}, got {found or 'none'}")
