"""Layers between a student's backbone and its teacher's, which are trained with the student and then thrown away.

Source: Liu et al. 2022, "TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation", section III.
Differs: patch embeddings are maps here, so that backbones of any layout and with other strides can be compared.

Three surprises: as published, a batch of one image takes a layer of its own where levels are fused (optional here, as
one of two layers would be without gradients in every step); nothing is activated after the projections to the teacher's
width; the factors of the global and the local branch have no published initial value.

Shape legend: B batch, C channels of the student, D channels of the teacher, E channels of the fusion, H x W a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.attend import attend
from graftwork.errors import ConfigError

SQUEEZED = 32
"""Channels that the shares of a fusion are computed from."""
NORM_EPS = 1e-5
"""Of the norms of embeddings."""


def _convolution(channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class LevelFusion(nn.Module):
    """Brings a level to the width of the fusion, and adds what was fused of the coarser ones.

    Args:
        channels: Of the student's level.
        out_channels: Of the teacher's.
        width: Of the fusion.
        first: Whether it is the coarsest, which has none to add.
        separate_single: Whether batches of one image take a layer of their own instead of a norm over the batch; else
            that norm uses its running statistics for them.
        squeezed: Channels that the shares are computed from.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        width: int,
        *,
        first: bool,
        separate_single: bool = False,
        squeezed: int = SQUEEZED,
    ) -> None:
        super().__init__()
        self.reduce = _convolution(channels, width)
        self.project = _convolution(width, out_channels, 3)
        self.first, self.separate_single = first, separate_single
        if not first:
            self.squeeze = _convolution(width, squeezed)
            self.excite = nn.ModuleList(nn.Conv2d(squeezed, width, 1) for _ in range(2))
            if separate_single:
                self.squeeze_single = nn.Conv2d(width, squeezed, 1, bias=False)

    def forward(self, level: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """A level [B, C, H, W] and the fused coarser ones [B, E, h, w], to [B, D, H, W] and [B, E, H, W]."""
        fused: Tensor = self.reduce(level)
        if coarser is not None:
            coarser = F.interpolate(coarser, size=fused.shape[-2:], mode="nearest")
            own, other = self._shares(fused + coarser)
            fused = own * fused + other * coarser
        return self.project(fused), fused

    def _shares(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Of the level and of the coarser ones in every channel, [B, E, 1, 1] each, together 1."""
        squeezed = F.relu(self._squeezed(total.mean((2, 3), keepdim=True)))
        own, other = torch.stack([layer(squeezed) for layer in self.excite]).softmax(0)
        return own, other

    def _squeezed(self, means: Tensor) -> Tensor:
        if len(means) == 1:
            return self._squeezed_single(means)
        squeezed: Tensor = self.squeeze(means)
        return squeezed

    def _squeezed_single(self, means: Tensor) -> Tensor:
        """Of a single image: one value per channel has no variance that it could be normalised by."""
        if self.separate_single:
            squeezed: Tensor = self.squeeze_single(means)
            return squeezed
        conv, norm = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(self.squeeze))
        return F.batch_norm(conv(means), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class CrossSelectiveFusion(nn.Module):
    """Fuses levels from coarse to fine and projects each to the teacher's width.

    Args:
        channels: Of the student's levels, fine to coarse.
        out_channels: Of the teacher's.
        width: Of the fusion.
        separate_single: See :class:`LevelFusion`.
        squeezed: See :class:`LevelFusion`.

    Source: section III, cross selective fusion.
    """

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: Sequence[int],
        width: int = 64,
        *,
        separate_single: bool = False,
        squeezed: int = SQUEEZED,
    ) -> None:
        super().__init__()
        pairs = list(zip(channels, out_channels, strict=True))
        self.steps = nn.ModuleList(  # the coarsest level first
            LevelFusion(*pair, width, first=not step, separate_single=separate_single, squeezed=squeezed)
            for step, pair in enumerate(reversed(pairs))
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """[B, C, H, W] to [B, D, H, W] each, fine to coarse."""
        projected, fused = [], None
        for step, level in zip(self.steps, reversed(levels), strict=True):
            found, fused = step(level, fused)
            projected.append(found)
        return projected[::-1]


class EmbeddingAlignment(nn.Module):
    """Projects patch embeddings to the teacher's width, position by position.

    Args:
        channels: Of the student's embeddings, fine to coarse.
        out_channels: Of the teacher's.

    Source: section III, patch embedding alignment.
    """

    def __init__(self, channels: Sequence[int], out_channels: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(channels, out_channels, strict=True)
        self.projections = nn.ModuleList(nn.Linear(ours, theirs) for ours, theirs in pairs)

    def forward(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """[B, C, H, W] to [B, D, H, W] each."""
        layers = zip(self.projections, embeddings, strict=True)
        return [layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for layer, x in layers]


class GlobalLocalMixer(nn.Module):
    """Mixes the positions of the coarsest embedding by attention, and by gated convolution along the raster order.

    Both branches begin with a factor of 0.5: the reference leaves the factors uninitialised.

    Args:
        channels: Of the embedding.
        heads: Of the attention.
        residual: Add the embedding itself.

    Raises:
        ConfigError: The heads do not divide the channels.

    Source: section III, global-local context mixer.
    """

    def __init__(self, channels: int, heads: int = 8, *, residual: bool = False) -> None:
        super().__init__()
        if channels % heads:
            fitting = max(count for count in range(1, min(heads, channels) + 1) if channels % count == 0)
            raise ConfigError(
                f"heads={heads} must divide the {channels} channels of the student's last patch embedding",
                mend=f"Try heads={fitting}",
            )
        self.heads, self.residual = heads, residual
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.value = nn.Conv1d(channels, channels, 3, padding=1)
        self.gate = nn.Conv1d(channels, channels, 3, padding=1)
        self.attention_weight = nn.Parameter(torch.full((1,), 0.5))
        self.convolution_weight = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        row = embedding.flatten(2)  # B, C, H * W
        x = row.mT
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # B, H * W, heads, C / heads
        overall = self.out(attend(q, k, v).flatten(2)).mT
        local = self.value(row) * self.gate(row).sigmoid()
        mixed = self.attention_weight * overall + self.convolution_weight * local
        return (row + mixed if self.residual else mixed).unflatten(2, embedding.shape[2:])


class PatchEmbedding(nn.Module):
    """Overlapping patches as a map of normalised embeddings.

    Args:
        channels: Of what is embedded.
        out_channels: Of the embeddings.
        stride: Positions per patch; patches are 2 * stride - 1 wide, published as 7 by 4 and 3 by 2.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 2 * stride - 1, stride=stride, padding=stride - 1)
        self.norm = nn.LayerNorm(out_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D, ceil(H / stride), ceil(W / stride)]."""
        embedded: Tensor = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return embedded


class EmbeddingAssistant(nn.Module):
    """Embeds the image and the student's levels at the teacher's width, beside the student's own embeddings.

    The factors begin at 0.1, 0.2, ... for the student's own and at 0.5, 0.6, ... for these.

    Args:
        image_channels: Channels of the images.
        channels: Of the student's levels, fine to coarse.
        strides: Pixels per position of the student's levels.
        out_channels: Of the teacher's embeddings.

    Raises:
        ConfigError: A stride is no multiple of the one before it.

    Source: section III, embedding assistant.
    """

    def __init__(
        self, image_channels: int, channels: Sequence[int], strides: Sequence[int], out_channels: Sequence[int]
    ) -> None:
        super().__init__()
        steps = [1, *strides]
        if any(coarse % fine for fine, coarse in pairwise(steps)):
            raise ConfigError(
                f"kind=ea needs levels whose strides are multiples of each other, the student's are {list(strides)}",
                mend="Take kind=base or kind=gl",
            )
        inputs = [image_channels, *channels[:-1]]
        ratios = [coarse // fine for fine, coarse in pairwise(steps)]
        sizes = zip(inputs, out_channels, ratios, strict=True)
        self.embeddings = nn.ModuleList(PatchEmbedding(*size) for size in sizes)
        count = torch.arange(len(inputs))
        self.weights = nn.Parameter(torch.cat([0.1 * (count + 1), 0.1 * (count + 5)]))  # of the own ones first

    def forward(self, aligned: Sequence[Tensor], levels: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        """Embeddings of the student after their projection, its levels, and images; to embeddings [B, D, H, W]."""
        inputs = [images, *levels[:-1]]
        factors = zip(*self.weights.chunk(2), strict=True)
        layers = zip(factors, aligned, self.embeddings, inputs, strict=True)
        return [own * x + other * layer(found) for (own, other), x, layer, found in layers]
