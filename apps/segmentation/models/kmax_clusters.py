"""The update of k-means: sums of pixels by cluster.

Shape legend: B batch, D channels, P pixels, N clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.dispatch import exporting, resolve_form
from graftwork.errors import ShapeError


def cluster_sums(values: Tensor, assignment: Tensor, clusters: int, form: str = "auto") -> Tensor:
    """Sum the pixels of every cluster.

    Args:
        values: Features of pixels, [B, D, P].
        assignment: Cluster of each pixel, [B, P] int64 from 0 to ``clusters`` - 1.
        clusters: N.
        form: ``"math"`` for the product with a one-hot matrix, of N times the work; ``"auto"`` adds every pixel once.

    Returns:
        [B, D, N] in float32 at least; 0 for a cluster without pixels. Gradients reach the values alone.

    Raises:
        ShapeError: The assignment does not fit the values.

    Source: Yu et al. 2022, section 3.2 (equation 4).
    """
    if values.dim() != 3 or assignment.shape != (values.shape[0], values.shape[2]):
        raise ShapeError(
            f"values must be [B, D, P] and assignment [B, P], got {list(values.shape)} and {list(assignment.shape)}"
        )
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    with torch.autocast(values.device.type, enabled=False):
        if resolve_form("cluster_sums", form) == "math" or exporting():
            return values @ F.one_hot(assignment, clusters).to(values.dtype)
        return _segmented(values, assignment, clusters)


def _segmented(values: Tensor, assignment: Tensor, clusters: int) -> Tensor:
    """Measured on one core: whole pixels are added fastest where they are contiguous, else channel by channel."""
    batch, channels, pixels = values.shape
    if values.stride(1) == 1 or values.device.type != "cpu":
        starts = torch.arange(batch, device=values.device)[:, None] * clusters
        bins = (assignment + starts).reshape(-1)  # B * P
        sums = values.new_zeros(batch * clusters, channels)
        return sums.index_add(0, bins, values.mT.reshape(-1, channels)).unflatten(0, (batch, clusters)).mT
    where = assignment[:, None].expand(batch, channels, pixels)
    return values.new_zeros(batch, channels, clusters).scatter_add(2, where, values)


def cluster_sizes(assignment: Tensor, clusters: int) -> Tensor:
    """Number of pixels of every cluster, [B, P] to [B, N] int64."""
    if exporting():
        return F.one_hot(assignment, clusters).sum(1)
    counts = assignment.new_zeros(assignment.shape[0], clusters)
    return counts.scatter_add(1, assignment, torch.ones_like(assignment))


class UpdatePair(NamedTuple):
    """The two forms of the update on the same input; each call returns [B, D, N]."""

    fast: Callable[[], Tensor]
    literal: Callable[[], Tensor]


def update_benchmark(
    batch: int = 1, channels: int = 256, side: int = 160, clusters: int = 128, device: str = "cpu"
) -> UpdatePair:
    """Both forms of the update on random pixels, ready to be timed and compared.

    Args:
        batch: B.
        channels: D.
        side: Height and width of the map, in pixels.
        clusters: N.
        device: Where to run.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, channels, side * side, generator=generator).to(device)
    assignment = torch.randint(0, clusters, (batch, side * side), generator=generator).to(device)
    return UpdatePair(
        fast=lambda: cluster_sums(values, assignment, clusters),
        literal=lambda: cluster_sums(values, assignment, clusters, form="math"),
    )
