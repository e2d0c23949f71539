"""What the masks of Mask2Former mean: scores of classes, segments, and objects.

Source: Cheng et al. 2022, and the published code. A query is a class (or no object) and an independent mask; unlike in
kMaX-DeepLab masks do not compete by a softmax.

Shape legend: B batch, N queries, C classes, K kept queries, h x w mask map, H x W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.models.head import MaskOutput, Panoptic, Size
from backbones.attention.attend import without_autocast

THRESHOLD = 0.8
"""Certainty of its class that a query must exceed."""
PIXEL_THRESHOLD = 0.5
"""Probability from which on a pixel belongs to a mask."""
CHUNK = 16
"""Masks brought to the size of images at once."""


class Instances(NamedTuple):
    """Objects found in one image, best first; they may overlap.

    Args:
        classes: Label of each, [K] int64.
        scores: Certainty of each, [K], from 0 to 1.
        masks: [K, H, W] bool.
    """

    classes: Tensor
    scores: Tensor
    masks: Tensor


def resize_masks(masks: Tensor, size: Size, stride: int) -> Tensor:
    """Logits of masks at the size of images.

    Masks of an image that a backbone padded at the bottom and right are brought to the padded size and cut; others
    are stretched.

    Args:
        masks: [B, N, h, w].
        size: Height and width of the images, in pixels.
        stride: Pixels per position of the masks.

    Returns:
        [B, N, H, W].
    """
    found = (masks.shape[-2], masks.shape[-1])
    padded = all(math.ceil(side / stride) == length for side, length in zip(size, found, strict=True))
    goal = (found[0] * stride, found[1] * stride) if padded else (int(size[0]), int(size[1]))
    if not masks.shape[1]:  # no query was kept
        return masks.new_zeros(len(masks), 0, *size)
    if goal != found:
        masks = F.interpolate(masks, size=goal, mode="bilinear", align_corners=False)
    return masks[..., : size[0], : size[1]]


def class_scores(output: MaskOutput, size: Size, stride: int) -> Tensor:
    """Sum over queries of the probability of each class and that of the mask, [B, C, H, W].

    Masks are enlarged some at a time: memory does not grow with the queries.
    """
    with without_autocast(output.masks):
        classes = output.classes.float().softmax(-1)[..., :-1].transpose(1, 2)  # B, C, N
        found = classes.new_zeros(*classes.shape[:2], size[0] * size[1])
        for chosen, masks in zip(classes.split(CHUNK, 2), output.masks.split(CHUNK, 1), strict=True):
            found.baddbmm_(chosen, resize_masks(masks.float(), size, stride).sigmoid().flatten(2))
    return found.unflatten(2, (size[0], size[1]))


def panoptic(
    classes: Tensor,
    masks: Tensor,
    things: Collection[int],
    *,
    thing_threshold: float = THRESHOLD,
    stuff_threshold: float = THRESHOLD,
    overlap: float = 0.8,
    pixel_threshold: float = PIXEL_THRESHOLD,
) -> Panoptic:
    """Segments of one image: every pixel to the mask that is strongest there, weak masks left out.

    Args:
        classes: Logits of each query, [N, C + 1], the last for no object.
        masks: Logits of each query's mask at the size of the image, [N, H, W].
        things: Labels of the classes whose objects are told apart; segments of another class are one.
        thing_threshold: Certainty of its class that a thing must exceed.
        stuff_threshold: The same for stuff.
        overlap: Share of a mask that it must be the strongest in.
        pixel_threshold: Probability from which on a pixel belongs to a mask.

    Returns:
        Segments numbered in the order of their queries.
    """
    kept, scores, labels = keep_queries(classes, things, thing_threshold, stuff_threshold)
    empty = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    if not len(kept) or not empty.numel():
        return Panoptic(empty, labels[:0], scores[:0])
    probability = masks[kept].float().sigmoid()
    owner = (probability * scores[:, None, None]).argmax(0)  # H, W
    own = probability.gather(0, owner[None])[0] >= pixel_threshold
    strongest = owner.flatten().bincount(minlength=len(kept))
    whole = (probability >= pixel_threshold).flatten(1).sum(1)
    left = owner[own].bincount(minlength=len(kept))
    counts = torch.stack([strongest, whole, left, labels]).tolist()  # one wait for a GPU
    accepted = [inside > 0 and most / all_of >= overlap for most, all_of, inside in zip(*counts[:3], strict=True)]
    numbers, found = _number(accepted, counts[3], things)
    table = torch.tensor(numbers, dtype=torch.int32, device=masks.device)
    first = torch.tensor(found, dtype=torch.long, device=masks.device)
    return Panoptic(torch.where(own, table[owner], 0), labels[first], scores[first])


def keep_queries(
    classes: Tensor, things: Collection[int], thing_threshold: float, stuff_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of one image that are certain of a class: their numbers, scores and labels, [K] each.

    Args:
        classes: Logits, [N, C + 1].
        things: Labels of things.
        thing_threshold: To be exceeded by a thing.
        stuff_threshold: To be exceeded by stuff.
    """
    scores, labels = classes.float().softmax(-1).max(-1)
    thresholds = [thing_threshold if label in things else stuff_threshold for label in range(classes.shape[-1] - 1)]
    least = scores.new_tensor([*thresholds, math.inf])  # no object is never kept
    kept = (scores > least[labels]).nonzero()[:, 0]
    return kept, scores[kept], labels[kept]


def _number(accepted: list[bool], labels: list[int], things: Collection[int]) -> tuple[list[int], list[int]]:
    """Number of the segment of every kept query, 0 for none, and the first query of every segment."""
    numbers: list[int] = []
    first: list[int] = []
    stuff: dict[int, int] = {}
    for query, (good, label) in enumerate(zip(accepted, labels, strict=True)):
        if not good:
            numbers.append(0)
            continue
        if label in things or label not in stuff:
            first.append(query)
            stuff.setdefault(label, len(first))
            numbers.append(len(first))
        else:
            numbers.append(stuff[label])
    return numbers, first


def instances(
    classes: Tensor, masks: Tensor, size: Size, stride: int, *, top: int = 100, things: Collection[int] | None = None
) -> Instances:
    """Objects of one image: the best pairs of query and class.

    Args:
        classes: Logits of each query, [N, C + 1], the last for no object.
        masks: Logits of each query's mask, [N, h, w].
        size: Height and width of the image, in pixels.
        stride: Pixels per position of the masks.
        top: Pairs to give at most.
        things: Leave out other classes afterwards; none is if omitted.

    Returns:
        Objects with the class's probability times the mean probability of the mask inside itself as scores, in the
        order of the class's probability.
    """
    queries, labels, certain = best_pairs(classes, top, things)

    def read(some: Tensor) -> tuple[Tensor, Tensor]:
        large = resize_masks(masks[None, some].float(), size, stride)[0]
        return large > 0, large.sigmoid()

    inside, sums, areas = masks_of(queries, size, read)
    return Instances(labels, certain * (sums / (areas + 1e-6)), inside)


def best_pairs(classes: Tensor, top: int, things: Collection[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of query and class that are most certain: queries, labels and probabilities, [K] each.

    Args:
        classes: Logits of each query, [N, C + 1], the last for no object.
        top: Pairs to give at most.
        things: Leave out other classes afterwards; none is if omitted.
    """
    scores = classes.float().softmax(-1)[:, :-1]
    count = max(1, scores.shape[1])
    certain, pairs = scores.flatten().topk(min(top, scores.numel()))
    queries, labels = pairs.div(count, rounding_mode="floor"), pairs % count
    if things is None:
        return queries, labels, certain
    wanted = torch.isin(labels, labels.new_tensor(sorted(things)))
    return queries[wanted], labels[wanted], certain[wanted]


def masks_of(
    queries: Tensor, size: Size, read: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of queries at the size of an image, each read once and some at a time: memory is that of the result.

    Args:
        queries: [K]; one may stand there several times.
        size: Height and width of the image, in pixels.
        read: From some queries, [k], to the pixels inside their masks, [k, H, W] bool, and probabilities of all pixels.

    Returns:
        Masks, [K, H, W] bool; sums of the probabilities inside them and numbers of pixels there, [K] each.
    """
    chosen, places = queries.unique(return_inverse=True)
    found = torch.zeros(len(queries), *size, dtype=torch.bool, device=queries.device)
    sums = torch.zeros(len(queries), device=queries.device)
    areas = torch.zeros_like(queries)
    for start in range(0, len(chosen), CHUNK):
        inside, probabilities = read(chosen[start : start + CHUNK])
        rows = ((places >= start) & (places < start + CHUNK)).nonzero()[:, 0]
        own = places[rows] - start
        sums[rows] = (probabilities * inside).flatten(1).sum(1)[own].to(sums)
        areas[rows] = inside.flatten(1).sum(1)[own]
        found[rows] = inside[own]
    return found, sums, areas
