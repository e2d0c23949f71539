"""How far the levels of a student are from those of its teacher.

Source: Liu et al. 2022, "TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation", section
III; the loss over resolutions is that of Chen et al. 2021, "Distilling Knowledge via Knowledge Review", the one over
channels that of Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction".

Shape legend: B batch, C channels, H height, W width of a level.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import ConfigError, ShapeError

Norm = Literal["channel", "spatial", "channel_mean", "none"]
"""What is compared: channels as distributions over positions, positions over channels, means of channels, or values."""
Divergence = Literal["kl", "mse"]

POOLED = (4, 2, 1)
"""Sides of the pooled maps."""


def pyramid_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of a level and of the level pooled to 4 x 4, 2 x 2 and 1 x 1.

    A pooled map counts half of the one before it and is left out where the level has no more rows than it; the sum is
    divided by the sum of all factors.

    Args:
        student: [B, C, H, W].
        teacher: The same shape; no gradient flows to it.

    Returns:
        A scalar, float32 at least.

    Raises:
        ShapeError: The shapes differ.
    """
    student, teacher = _pair(student, teacher)
    total, weights, weight = F.mse_loss(student, teacher), 1.0, 1.0
    for side in POOLED:
        if side >= student.shape[2]:
            continue
        weight /= 2
        ours, theirs = (F.adaptive_avg_pool2d(x, (side, side)) for x in (student, teacher))
        total, weights = total + weight * F.mse_loss(ours, theirs), weights + weight
    return total / weights


def channel_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    norm: Norm = "channel",
    divergence: Divergence = "kl",
    temperature: float = 4.0,
) -> Tensor:
    """Divergence of each channel's distribution over positions.

    Args:
        student: [B, C, H, W].
        teacher: The same shape; no gradient flows to it.
        norm: What is compared; other values than ``channel`` are the reference's, for comparison.
        divergence: ``kl`` of the student from the teacher, or the sum of squares.
        temperature: Softens distributions under ``kl``, whose value is multiplied by its square; unused with ``mse``.

    Returns:
        A scalar, float32 at least: the sum, divided by B * C for ``channel`` and ``channel_mean``, by B * H * W else.

    Raises:
        ShapeError: The shapes differ.
        ConfigError: ``kl`` of what is no distribution.
    """
    student, teacher = _pair(student, teacher)
    batch, channels, height, width = student.shape
    units = batch * (channels if norm in ("channel", "channel_mean") else height * width)
    if divergence == "mse":
        return (_shares(student, norm) - _shares(teacher, norm)).square().sum() / units
    if norm not in ("channel", "spatial"):
        raise ConfigError(
            f"norm={norm} gives no distributions that divergence=kl could compare",
            mend="Take norm=channel or norm=spatial, or divergence=mse",
        )
    axis = -1 if norm == "channel" else 1
    ours, theirs = ((x / temperature).flatten(2).log_softmax(axis) for x in (student, teacher))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / units * temperature**2


def _shares(x: Tensor, norm: Norm) -> Tensor:
    x = x.flatten(2)
    if norm == "channel_mean":
        return x.mean(-1)
    return x if norm == "none" else x.softmax(-1 if norm == "channel" else 1)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape or student.dim() != 4:
        raise ShapeError(
            f"levels: expected [batch, channels, height, width], the same for both, got {list(student.shape)} of the "
            f"student and {list(teacher.shape)} of the teacher"
        )
    precise = torch.promote_types(student.dtype, torch.float32)
    return student.to(precise), teacher.detach().to(precise)
