"""Losses of labelled pixels, as pure functions of tensors.

Shape legend: B batch, C classes, H x W labelled pixels, h x w logits.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.segmentation.info import IGNORED
from graftwork.errors import ShapeError

Average = Literal["valid", "all"]
"""What a sum over pixels is divided by."""

Probabilities = Literal["softmax", "sigmoid", "none"]
"""What makes probabilities of logits: all classes together, each by itself, or nothing where they are some already."""


def resize(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Logits bilinearly resized, [B, C, h, w] to [B, C, *size], float32 at least."""
    logits = _full(logits)
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    average: Average = "valid",
    smoothing: float = 0.0,
) -> Tensor:
    """Mean cross entropy of pixels.

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W], integers; 255 is ignored.
        weights: Factor of each class, [C].
        average: ``valid`` divides by the number of pixels that are not ignored; ``all`` by that of all pixels, so that
            images with large ignored areas count less (what mmsegmentation does unless told otherwise). With weights
            the divisor is the sum of the weights of the valid pixels' classes, whatever is said here.
        smoothing: Share of the target that is spread evenly over all classes, in [0, 1).

    Returns:
        Scalar, float32 at least; 0 with gradients of 0 where every pixel is ignored.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: mmsegmentation 1.2.2, ``CrossEntropyLoss``. Differs: class weights and ignored pixels go together.
    """
    _check(logits, labels)
    labels = labels.long()
    weights = None if weights is None else weights.to(_full(logits).dtype)
    total = F.cross_entropy(
        _full(logits), labels, weight=weights, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
    valid = labels != IGNORED
    if weights is not None:
        share = weights[labels.masked_fill(~valid, 0)].masked_fill(~valid, 0).sum()
        return total / share.clamp(min=torch.finfo(share.dtype).tiny)
    return total / (valid.sum().clamp(min=1) if average == "valid" else max(labels.numel(), 1))


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, average: Average = "valid"
) -> Tensor:
    """Mean over pixels and classes of the cross entropy of each class against all others.

    Args:
        logits: [B, C, H, W]; with a single channel labels are 0 and 1, and the channel is that of 1.
        labels: [B, H, W], integers; 255 is ignored.
        weights: Factor of each class where it is the right one, [C].
        average: See :func:`cross_entropy`; weights do not change the divisor.

    Returns:
        Scalar, float32 at least; 0 where every pixel is ignored.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: mmsegmentation 1.2.2, ``CrossEntropyLoss`` with ``use_sigmoid``.
    """
    _check(logits, labels)
    valid = (labels != IGNORED)[:, None]  # B, 1, H, W
    logits = _full(logits)
    targets = one_hot(labels, logits.shape[1]).to(logits.dtype)
    own = None if weights is None else weights.to(logits)[:, None, None]
    each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=own, reduction="none")
    count = valid.sum() * logits.shape[1] if average == "valid" else torch.tensor(each.numel())
    return (each * valid).sum() / count.clamp(min=1).to(each.device)


def dice(
    logits: Tensor,
    labels: Tensor,
    *,
    activation: Probabilities = "softmax",
    squared: bool = True,
    eps: float = 1e-3,
) -> Tensor:
    """Dice loss over one vector per image that holds all pixels of all classes.

    Args:
        logits: [B, C, H, W]; with a single channel labels are 0 and 1, and the channel is that of 1.
        labels: [B, H, W], integers; pixels of 255 have no class, but what is predicted there counts in the divisor.
        activation: What makes probabilities of logits; see :func:`activated`.
        squared: Sum squares in the divisor; else plain values.
        eps: Added to both sums of the divisor.

    Returns:
        Scalar from 0 to 1: the mean over images; 0 where every pixel of the batch is ignored.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: Milletari et al. 2016, "V-Net", section 3, as mmsegmentation 1.2.2 computes it in ``DiceLoss``. Differs: a
    single channel there is that of label 0, at odds with its cross entropy of one; a batch without a labelled pixel
    costs 1 there.
    """
    _check(logits, labels)
    p = activated(_full(logits), activation).flatten(1)  # B, C * H * W
    t = one_hot(labels, logits.shape[1]).flatten(1)
    both = 2 * (p * t).sum(1)
    if squared:
        overlap = both / ((p * p).sum(1) + t.sum(1) + 2 * eps)
    else:
        overlap = (both + eps) / (p.sum(1) + t.sum(1) + eps)
    return (1 - overlap).sum() * (labels != IGNORED).any() / max(labels.shape[0], 1)


def activated(logits: Tensor, activation: Probabilities) -> Tensor:
    """Logits [B, C, H, W] as probabilities; the softmax leaves a single channel as it is."""
    if activation == "sigmoid":
        return logits.sigmoid()
    return logits.softmax(1) if activation == "softmax" and logits.shape[1] > 1 else logits


def hardest(logits: Tensor, labels: Tensor, *, threshold: float = 0.7, least: int = 100_000) -> Tensor:
    """Labels with all but the hardest pixels ignored (online hard example mining).

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W], integers; 255 is ignored.
        threshold: Pixels whose own class has a lower probability are kept.
        least: Keep so many per image of the batch, all images together, where fewer are below the threshold.

    Returns:
        [B, H, W] int64.

    Raises:
        ShapeError: The shapes do not belong together.

    Source: Shrivastava et al. 2016, as mmsegmentation's ``OHEMPixelSampler`` with a threshold.
    """
    _check(logits, labels)
    labels = labels.long()
    valid = labels != IGNORED
    with torch.no_grad():
        own = _full(logits).softmax(1).gather(1, labels.masked_fill(~valid, 0)[:, None])[:, 0]  # B, H, W
    certain = own[valid]
    if not certain.numel():
        return labels
    rank = min(least * labels.shape[0], certain.numel() - 1)
    limit = certain.kthvalue(rank + 1).values.clamp(min=threshold)
    return labels.masked_fill(~(own < limit), IGNORED)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """[B, H, W] to [B, C, H, W] float32 of 0 and 1; a single class is that of label 1, ignored pixels have none."""
    known = torch.arange(classes, device=labels.device) if classes > 1 else torch.ones(1, device=labels.device)
    return (labels[:, None] == known[:, None, None]).float()


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"logits are {list(logits.shape)}, labels {list(labels.shape)}; expected [B, C, H, W] and [B, H, W]",
            mend="Resize the logits to the labels first: apps.segmentation.losses.resize",
        )


def _full(values: Tensor) -> Tensor:
    """At least float32: sums over millions of pixels are."""
    return values if values.dtype == torch.float64 else values.float()
