"""Which query answers for which target: the best one-to-one assignment of every image of a batch.

Shape legend: N queries, S segments of an image; other axes are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from graftwork.errors import ShapeError

Match = tuple[Tensor, Tensor]
"""Rows and columns of the pairs of one image, int64 both, rows ascending."""


def assign(scores: Sequence[Tensor] | Tensor, maximise: bool) -> list[Match]:
    """Pair rows and columns one to one with the best sum of scores, image by image.

    All scores travel to the CPU in one copy and all indices back in one, so a GPU is waited for once per call.

    Args:
        scores: Of each image, [N, S] float; a tensor [B, N, S] where all images have as many segments. S may be 0 and
            differ between images. What is not finite is worse than everything finite.
        maximise: Whether a high score is good; else it is a cost.

    Returns:
        For every image, rows and columns of its min(N, S) pairs, on the device of the scores.

    Raises:
        ShapeError: A table of scores is no matrix.

    Source: Kuhn 1955, "The Hungarian method"; solved by ``scipy.optimize.linear_sum_assignment``.
    """
    tables = list(scores)
    for table in tables:
        if table.dim() != 2:
            raise ShapeError(f"scores of an image must be [queries, segments], got {list(table.shape)}")
    if not tables:
        return []
    sizes = [table.numel() for table in tables]
    flat = torch.cat([table.detach().reshape(-1) for table in tables]).cpu().double()  # GPUs of Apple know no float64
    pairs = [_solve(part.view(table.shape), maximise) for part, table in zip(flat.split(sizes), tables, strict=True)]
    counts = [pair.shape[1] for pair in pairs]
    moved = torch.cat(pairs, dim=1).to(tables[0].device)
    return [(part[0], part[1]) for part in moved.split(counts, dim=1)]


def _solve(table: Tensor, maximise: bool) -> Tensor:
    """Indices of the pairs of one image, [2, min(N, S)]."""
    finite = torch.isfinite(table)
    if not finite.all():
        # The solver refuses NaN: a step whose loss is not finite should fail by its loss, where guards look for it.
        known = table[finite]
        span = known.abs().max() + 1 if known.numel() else table.new_ones(())
        table = torch.where(finite, table, -4 * span if maximise else 4 * span)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=maximise)
    return torch.stack([torch.from_numpy(rows), torch.from_numpy(columns)]).long()
