"""Losses of classifiers, as pure functions of tensors.

Shape legend: B batch, C classes, K classes that a teacher's targets are kept of.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import ShapeError


class SparseTargets(NamedTuple):
    """The most probable classes of a teacher; the rest of the probability is spread evenly over the other classes.

    Attributes:
        indices: Classes, the most probable first, [B, K] int64.
        values: Natural logarithms of their probabilities, [B, K].
    """

    indices: Tensor
    values: Tensor


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy with labels or with probabilities as targets.

    Args:
        logits: [B, C].
        targets: Classes [B] int64, or probabilities [B, C].
        smoothing: Share of the target that is spread evenly over all classes, in [0, 1).

    Returns:
        Scalar, float32 at least.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: Szegedy et al. 2016, section 7, for smoothing.
    """
    if targets.shape not in (logits.shape[:1], logits.shape):
        raise ShapeError(f"logits are {list(logits.shape)}, targets {list(targets.shape)}; expected [B] or [B, C]")
    return F.cross_entropy(_full(logits), targets, label_smoothing=smoothing)


def distillation(logits: Tensor, teacher: SparseTargets, temperature: float = 1.0) -> Tensor:
    """Divergence of a student from sparse targets of a teacher.

    Both distributions are softened: probabilities are raised to the power ``1 / temperature`` and scaled to sum 1.

    Args:
        logits: Logits of the student, [B, C].
        teacher: Targets of the teacher.
        temperature: Above 1 softens, below 1 sharpens; above 0.

    Returns:
        Scalar: mean over the batch of the Kullback-Leibler divergence KL(teacher || student), in nats, times the
        square of the temperature, so that gradients keep their size. 0 where both agree.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: Hinton et al. 2015, section 2; sparse targets: Wu et al. 2022, "TinyViT", section 3.1. Differs from TinyViT:
    the entropy of the teacher, which no gradient depends on, is taken off.
    """
    kept = teacher.indices.shape
    if len(kept) != 2 or kept[0] != logits.shape[0] or kept[1] > logits.shape[1] or teacher.values.shape != kept:
        raise ShapeError(
            f"logits are {list(logits.shape)}, the teacher's classes {list(kept)} and values "
            f"{list(teacher.values.shape)}; expected [B, C], [B, K] and [B, K] with K up to C"
        )
    student = F.log_softmax(_full(logits) / temperature, dim=1)
    chosen, rest, others = _softened(teacher, logits.shape[1], temperature)
    at_chosen = student.gather(1, teacher.indices)
    cross = -(chosen * at_chosen).sum(1) - rest * (student.sum(1) - at_chosen.sum(1))
    entropy = -torch.special.xlogy(chosen, chosen).sum(1) - others * torch.special.xlogy(rest, rest)
    return (cross - entropy).mean() * temperature**2


def _softened(teacher: SparseTargets, classes: int, temperature: float) -> tuple[Tensor, Tensor, int]:
    """Probabilities of the kept classes [B, K] and of each other class [B], and the number of the latter."""
    others = classes - teacher.indices.shape[1]
    kept = _full(teacher.values).exp()
    rest = (1 - kept.sum(1)).clamp(min=0) / max(1, others)  # half precision may have rounded the sum above 1
    kept, rest = kept ** (1 / temperature), rest ** (1 / temperature)
    total = kept.sum(1) + others * rest
    return kept / total[:, None], rest / total, others


def _full(values: Tensor) -> Tensor:
    """At least float32: sums over thousands of classes are."""
    return values if values.dtype == torch.float64 else values.float()
