"""What the masks of kMaX-DeepLab mean: segments and objects.

Source: Yu et al. 2022, section 4.1, and the published code. Masks compete by a softmax over queries; the most certain
queries claim their pixels first.

Shape legend: N queries, C classes, K candidates, h x w mask map, H x W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.models.head import Panoptic, Size
from apps.segmentation.models.kmax_layers import full
from apps.segmentation.models.mask2former_panoptic import CHUNK, Instances, best_pairs, masks_of

THING_THRESHOLD = 0.7
"""Certainty of its class that a thing must exceed, as published for COCO."""
STUFF_THRESHOLD = 0.5
"""The same for stuff."""
PIXEL_THRESHOLD = 0.4
"""Probability that a pixel of a mask exceeds."""


def resize_masks(masks: Tensor, size: Size, stride: int) -> Tensor:
    """Logits of masks at the size of images.

    Args:
        masks: [B, N, h, w].
        size: Height and width of the images, in pixels.
        stride: Pixels per position of the masks.

    Returns:
        [B, N, H, W]. Corners are aligned where the width is odd, as published; else a map that covers more than the
        image, which a backbone padded at the bottom and right, is cut.
    """
    found = (masks.shape[-2], masks.shape[-1])
    goal = (int(size[0]), int(size[1]))
    aligned = bool(goal[1] % 2)
    if not aligned and all(math.ceil(side / stride) == length for side, length in zip(goal, found, strict=True)):
        goal = (found[0] * stride, found[1] * stride)
    if goal != found:
        masks = F.interpolate(masks, size=goal, mode="bilinear", align_corners=aligned)
    return masks[..., : size[0], : size[1]]


def panoptic(
    classes: Tensor,
    probabilities: Tensor,
    things: Collection[int],
    *,
    thing_threshold: float = THING_THRESHOLD,
    stuff_threshold: float = STUFF_THRESHOLD,
    overlap: float = 0.8,
    pixel_threshold: float = PIXEL_THRESHOLD,
    class_power: float = 1.0,
    mask_power: float = 1.0,
) -> Panoptic:
    """Segments of one image: queries claim pixels in the order of their certainty.

    Args:
        classes: Logits of each query, [N, C + 1], the last for no object.
        probabilities: Softmax over queries at every pixel of the image, [N, H, W].
        things: Labels of the classes whose objects are told apart; segments of another class are one.
        thing_threshold: Certainty of its class that a thing must exceed.
        stuff_threshold: The same for stuff.
        overlap: Share of a mask that must be left when it is its turn; more than that.
        pixel_threshold: Probability that a pixel of a mask exceeds.
        class_power: Exponent of the class's certainty in the order.
        mask_power: Exponent of the mask's certainty in the order.

    Returns:
        Segments numbered in the order of acceptance; the score is the class's certainty times the mask's.
    """
    certain, labels = classes.float().softmax(-1)[:, :-1].max(-1)
    least = torch.tensor(
        [thing_threshold if label in things else stuff_threshold for label in range(classes.shape[-1] - 1)],
        device=certain.device,
    )
    kept = (certain > least[labels]).nonzero()[:, 0]
    segments = torch.zeros(probabilities.shape[1:], dtype=torch.int32, device=probabilities.device)
    if not len(kept) or not segments.numel():
        return Panoptic(segments, labels[:0], certain[:0])
    certain, labels, shares = certain[kept], labels[kept], probabilities[kept]
    binary = shares > pixel_threshold  # K, H, W
    areas = binary.flatten(1).sum(1)
    sure = (shares * binary).flatten(1).sum(1) / areas.clamp(min=1)
    order = (certain**class_power * sure**mask_power).sort(descending=True, stable=True).indices
    candidates = zip(order.tolist(), areas[order].tolist(), labels[order].tolist(), strict=True)
    first: list[int] = []
    stuff: dict[int, int] = {}
    for candidate, area, label in candidates:
        if area == 0:
            continue
        left = binary[candidate] & (segments == 0)
        if not int(left.sum()) > overlap * area:
            continue
        number = stuff.get(label, 0)
        if not number:
            first.append(candidate)
            number = len(first)
            if label not in things:
                stuff[label] = number
        segments.masked_fill_(left, number)
    chosen = torch.tensor(first, dtype=torch.long, device=labels.device)
    return Panoptic(segments, labels[chosen], (certain * sure)[chosen])


def instances(
    classes: Tensor,
    masks: Tensor,
    size: Size,
    stride: int,
    *,
    top: int = 100,
    things: Collection[int] | None = None,
    pixel_threshold: float = PIXEL_THRESHOLD,
) -> Instances:
    """Objects of one image: the best pairs of query and class.

    Args:
        classes: Logits of each query, [N, C + 1], the last for no object.
        masks: Logits of each query's mask, [N, h, w].
        size: Height and width of the image, in pixels.
        stride: Pixels per position of the masks.
        top: Pairs to give at most.
        things: Leave out other classes afterwards; none is if omitted.
        pixel_threshold: Probability, by a softmax over queries, that a pixel of a mask exceeds.

    Returns:
        Objects with the class's probability times the mean probability of the mask inside itself as scores, in the
        order of the class's probability.
    """
    queries, labels, certain = best_pairs(classes, top, things)

    def enlarged(some: Tensor) -> Tensor:
        return resize_masks(full(some[None]), size, stride)[0]

    highest, total = _softmax_parts(masks, size, enlarged) if len(queries) else (masks, masks)

    def read(some: Tensor) -> tuple[Tensor, Tensor]:
        shares = (enlarged(masks[some]) - highest).exp() / total
        return shares > pixel_threshold, shares

    inside, sums, areas = masks_of(queries, size, read)
    return Instances(labels, certain * (sums / areas.clamp(min=1)), inside)


def _softmax_parts(masks: Tensor, size: Size, enlarged: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The largest logit of any query at every pixel, and the sum of exponentials less it, [H, W] each.

    Masks are enlarged some at a time, so memory does not grow with the queries.
    """
    highest = torch.full(size, torch.finfo(torch.float32).min, device=masks.device)
    total = torch.zeros_like(highest)
    for some in masks.split(CHUNK):
        large = enlarged(some)
        higher = torch.maximum(highest, large.amax(0))
        total = total * (highest - higher).exp() + (large - higher).exp().sum(0)
        highest = higher
    return highest, total
