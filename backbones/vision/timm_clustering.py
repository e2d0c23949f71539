"""Clustered tokens in the later blocks of timm's plain ViTs, for maps, without training.

Shape legend: B batch, H x W tokens, P class and register tokens, M centres, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from backbones.vision.token_clustering import Norm, cluster_tokens, combined, reconstruction_weights
from graftwork.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Which blocks of a ViT see clusters instead of tokens, and how these are made; the defaults are published.

    Args:
        after: Blocks that see all tokens; those after them see clusters.
        grid: Rows and columns of clusters, at most as many as of tokens; None for two thirds of either.
        window: See :func:`backbones.vision.token_clustering.cluster_tokens`.
        iterations: See there.
        temperature: See there.
        nearest: See :func:`backbones.vision.token_clustering.reconstruct_tokens`.
        norm: See there.
    """

    after: int
    grid: tuple[int, int] | None = None
    window: int = 5
    iterations: int = 5
    temperature: float = 0.02
    nearest: int = 20
    norm: Norm = "l2"

    def grid_of(self, rows: int, columns: int) -> tuple[int, int]:
        """The grid for a map of tokens."""
        wanted = self.grid or (-(-2 * rows // 3), -(-2 * columns // 3))
        return min(wanted[0], rows), min(wanted[1], columns)

    def check(self, trunk: Any, name: str) -> None:
        """Refuse a model that is no plain ViT, or has too few blocks.

        Args:
            trunk: The model of timm, without blocks that no level needs.
            name: Its name.

        Raises:
            ConfigError: The message says what would suit.
        """
        kind = type(trunk)
        plain = VisionTransformer.forward_intermediates
        if not isinstance(trunk, VisionTransformer) or kind.forward_intermediates is not plain:
            raise ConfigError(
                f"cluster_after={self.after} is not possible: timm's {name} is no plain ViT",
                mend="Take a model such as timm:vit_small_patch16_224, or leave cluster_after at 0",
            )
        if not 1 <= self.after < len(trunk.blocks):
            raise ConfigError(
                f"cluster_after={self.after} must be from 1 to {len(trunk.blocks) - 1}: the levels of timm's {name} "
                f"need {len(trunk.blocks)} blocks",
                mend=f"Try cluster_after={max(1, len(trunk.blocks) // 2)}",
            )


def clustered_maps(trunk: Any, images: Tensor, blocks: Sequence[int], clustering: Clustering) -> list[Tensor]:
    """What some blocks of a plain ViT give, with clusters in the later ones.

    Class and register tokens are not clustered. Each map after the clustering is reconstructed from the same clusters.

    Args:
        trunk: The model of timm.
        images: [B, channels, height, width], padded to whole patches.
        blocks: Numbers of the blocks, ascending.
        clustering: How.

    Returns:
        [B, C, H, W] each.
    """
    size = trunk.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
    prefix = trunk.num_prefix_tokens
    x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))  # B, P + H * W, C
    weights: Tensor | None = None
    maps = []
    for number, block in enumerate(trunk.blocks):
        if number == clustering.after and clustering.grid_of(*size) != size:  # else there is nothing to save
            centres, weights = _clustered(x[:, prefix:], size, clustering)
            x = torch.cat([x[:, :prefix], centres], 1)  # B, P + M, C
        x = block(x)
        if number in blocks:
            found = x[:, prefix:]
            maps.append((found if weights is None else combined(weights, found)).mT.unflatten(2, size))
    return maps


def _clustered(tokens: Tensor, size: tuple[int, int], clustering: Clustering) -> tuple[Tensor, Tensor]:
    """Tokens [B, H * W, C] to centres [B, M, C], and the weights [B, H * W, M] that tokens are reconstructed by."""
    centres = cluster_tokens(
        tokens.unflatten(1, size),
        clustering.grid_of(*size),
        window=clustering.window,
        iterations=clustering.iterations,
        temperature=clustering.temperature,
    )
    weights = reconstruction_weights(
        tokens, centres, temperature=clustering.temperature, nearest=clustering.nearest, norm=clustering.norm
    )
    return centres, weights
