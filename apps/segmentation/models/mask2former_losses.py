"""Losses of Mask2Former: masks are matched and compared at points, never at whole images.

Source: Cheng et al. 2022, section 3.3 and appendix, and the published code. Every output is matched by itself. The
costs are compared at points common to all masks of an image; the losses of a pair at the least certain of many
candidates and at some fresh points. Everything is float32, under autocast too.

A point is (x, y) as shares of width and height, and is read bilinearly with zeros outside, so neither masks nor targets
are ever brought to each other's size.

Shape legend: B batch, N queries, C classes, S segments of an image, P points, M matched masks, H x W image, h x w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.matching import Match, assign
from apps.segmentation.models.head import MaskOutput, Segments, Size, Targets
from backbones.attention.attend import without_autocast
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ShapeError

CHUNK = 16
"""Targets of an image that are turned into numbers at once; as booleans they are a quarter as large."""


class LossPoints(NamedTuple):
    """Points of the losses of matched masks.

    Args:
        candidates: Of which the least certain are taken, [M, oversample * P, 2].
        fresh: Taken as they are, [M, P - kept, 2].
    """

    candidates: Tensor
    fresh: Tensor


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Factors of the losses and of the costs that queries are matched by.

    Args:
        classes: Of the cross-entropy of classes.
        masks: Of the cross-entropy of masks.
        dice: Of the Dice loss.
        class_cost: Of the class in the matching.
        mask_cost: Of the cross-entropy of masks in the matching.
        dice_cost: Of the Dice loss in the matching.
    """

    classes: float = 2.0
    masks: float = 5.0
    dice: float = 5.0
    class_cost: float = 2.0
    mask_cost: float = 5.0
    dice_cost: float = 5.0


def read_logits(masks: Tensor, points: Tensor) -> Tensor:
    """Read maps at points of their own.

    Args:
        masks: [M, h, w].
        points: [M, P, 2].

    Returns:
        [M, P].
    """
    grid = 2 * points[:, None] - 1  # M, 1, P, 2
    return F.grid_sample(masks[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, 0]


def read_together(masks: Tensor, points: Tensor) -> Tensor:
    """Read all maps of an image at the same points: their weights are made once.

    Args:
        masks: [B, N, h, w].
        points: [B, P, 2].

    Returns:
        [B, N, P].
    """
    grid = 2 * points[:, None] - 1  # B, 1, P, 2
    return F.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]


def read_targets(masks: Tensor, points: Tensor, extent: Size | None = None) -> Tensor:
    """Read binary masks at points; few of them at a time are numbers.

    Args:
        masks: Of an image, [S, H, W] of any type.
        points: [1, P, 2] common to all masks, or [S, P, 2].
        extent: Height and width that the points are shares of, in pixels; those of the masks if omitted. What is
            beyond the masks reads as zero.

    Returns:
        [S, P] in the type of the points.
    """
    if 0 in masks.shape:
        return points.new_zeros(len(masks), points.shape[1])
    height, width = masks.shape[-2:]
    if extent is not None and extent != (height, width):
        points = points * points.new_tensor([extent[1] / width, extent[0] / height])
    parts = masks.split(CHUNK)
    if len(points) == 1:
        return torch.cat([read_together(part[None].to(points.dtype), points)[0] for part in parts])
    places = points.split(CHUNK)
    return torch.cat([read_logits(part.to(points.dtype), place) for part, place in zip(parts, places, strict=True)])


def matching_costs(classes: Tensor, masks: Tensor, labels: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """What it would cost each query of an image to answer for each segment.

    Args:
        classes: Logits, [N, C + 1].
        masks: Logits at points, [N, P].
        labels: Class of each segment, [S] int64.
        targets: Segments at the same points, [S, P].
        weights: Factors.

    Returns:
        [N, S].
    """
    count = max(1, masks.shape[-1])
    probability = masks.sigmoid()
    # cross-entropy is softplus(x) t' + softplus(-x) t with t' = 1 - t, which is softplus(x) - x t
    cross_entropy = (F.softplus(masks).sum(-1)[:, None] - masks @ targets.T) / count
    sums = probability.sum(-1)[:, None] + targets.sum(-1)
    dice = 1 - (2 * probability @ targets.T + 1) / (sums + 1)
    chosen = classes.softmax(-1)[:, labels]
    return weights.mask_cost * cross_entropy - weights.class_cost * chosen + weights.dice_cost * dice


def match(
    outputs: Sequence[MaskOutput],
    segments: Sequence[Segments],
    points: Tensor,
    weights: Weights,
    extent: Size | None = None,
) -> list[list[Match]]:
    """Match every output with the segments of every image; all costs travel to the CPU at once.

    The points of all outputs are read together: segments of the size of images are turned into numbers once.

    Args:
        outputs: Of layers, each with classes [B, N, C + 1] and masks [B, N, h, w].
        segments: Of each image.
        points: Of each output and image, [outputs, B, P, 2].
        weights: Factors of the costs.
        extent: See :func:`read_targets`.

    Returns:
        Of each output and image, the queries (ascending) and segments of its pairs.
    """
    count, costs = points.shape[2], []
    with torch.no_grad():
        for image, (labels, target) in enumerate(segments):
            places = points[:, image]  # outputs, P, 2
            read = read_targets(target, places.flatten(0, 1)[None], extent).split(count, dim=1)
            for output, own, found in zip(outputs, places, read, strict=True):
                masks = read_together(output.masks[image, None].to(points.dtype), own[None])[0]
                classes = output.classes[image].to(points.dtype)
                costs.append(matching_costs(classes, masks, labels.long(), found, weights))
    matches = assign(costs, maximise=False)
    return [matches[number :: len(outputs)] for number in range(len(outputs))]


def uncertain_points(masks: Tensor, points: LossPoints, count: int) -> Tensor:
    """The candidates whose logit is nearest to zero, then the fresh points.

    Args:
        masks: Logits, [M, h, w].
        points: Candidates and fresh points.
        count: P, of both together.

    Returns:
        [M, P, 2]; no gradient passes.
    """
    with torch.no_grad():
        kept = _smallest(read_logits(masks, points.candidates).abs(), count - points.fresh.shape[1])
        chosen = points.candidates.gather(1, kept[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, points.fresh], dim=1)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Places of the smallest values of each row in any order, [M, count]; on a CPU numpy is 15 times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argpartition(values.numpy(), max(0, count - 1), axis=1)[:, :count])
    return values.topk(count, dim=1, largest=False, sorted=False).indices


def pair_losses(logits: Tensor, targets: Tensor, normaliser: Tensor | float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice loss of matched masks at points.

    Args:
        logits: [M, P].
        targets: [M, P], from 0 to 1.
        normaliser: Sums over masks are divided by it.

    Returns:
        The cross-entropy (mean over points) and the Dice loss.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * targets).sum(-1) + 1) / (probability.sum(-1) + targets.sum(-1) + 1)
    return cross_entropy.sum() / normaliser, dice.sum() / normaliser


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of queries, a mean in which each has its weight.

    Args:
        logits: [B, N, C + 1].
        labels: What each query should say, [B, N] int64; C is no object.
        weights: Of each query, [B, N]; the loss is 0 where all are.

    Returns:
        A scalar.
    """
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def query_labels(logits: Tensor, matches: Sequence[Match], segments: Sequence[Segments]) -> Tensor:
    """Class of each query's segment, the last one for queries without, [B, N] int64."""
    labels = torch.full(logits.shape[:2], logits.shape[2] - 1, dtype=torch.long, device=logits.device)
    for image, ((rows, columns), found) in enumerate(zip(matches, segments, strict=True)):
        labels[image, rows] = found.classes.long()[columns]
    return labels


def segments_per_device(segments: Sequence[Segments]) -> float:
    """Segments of the batch, a mean over processes, at least 1."""
    count = float(sum(len(found.classes) for found in segments))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        device = segments[0].classes.device if segments else torch.device("cpu")
        total = torch.tensor(count, device=device)
        dist.all_reduce(total)
        count = total.item() / dist.get_world_size()
    return max(1.0, count)


class PointLosses:
    """The loss of all outputs of a batch.

    Args:
        weights: Factors.
        points: P.
        oversample: Candidates for each point.
        importance: Share of the points that are the least certain candidates.
        void_weight: Weight of queries without a segment in the loss of classes.
        class_weights: Weight of every other class; empty for 1 each.
        stride: Pixels per position of the masks, so that maps may reach beyond images; 0 if they never do.
        generator: Draws the points; the default generator of their device if omitted.

    Source: Cheng et al. 2022, section 3.3. Differs: an image none of whose pixels is labelled counts for nothing.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
        void_weight: float = 0.1,
        class_weights: Sequence[float] = (),
        stride: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.weights, self.points, self.oversample, self.importance = weights, points, oversample, importance
        self.void_weight, self.class_weights = void_weight, tuple(class_weights)
        self.stride, self.generator = stride, generator

    def __call__(self, output: MaskOutput, targets: Targets) -> dict[str, Tensor]:
        """Losses of an output and of its auxiliary ones.

        Args:
            output: Of a head.
            targets: What it should give.

        Returns:
            ``loss`` and its weighted parts ``classes``, ``masks`` and ``dice``, each a sum over outputs.

        Raises:
            ShapeError: Targets of another number of images.
        """
        if len(targets.segments) != len(output.masks):
            raise ShapeError(f"targets: expected segments of {len(output.masks)} images, got {len(targets.segments)}")
        with without_autocast(output.masks):
            outputs = [_precise(one) for one in (output, *output.auxiliary)]
            places = self._draw(output.masks, len(outputs), len(output.masks), self.points)
            extent = self._extent(output.masks, targets.labels)
            matches = match(outputs, targets.segments, places, self.weights, extent)
            normaliser = segments_per_device(targets.segments)
            masks = [matched_masks(one.masks, pairs) for one, pairs in zip(outputs, matches, strict=True)]
            chosen = [uncertain_points(own, self._loss_points(own), self.points) for own in masks]
            wanted = read_matched(targets.segments, matches, chosen, extent)
            parts = [
                (
                    self._class_loss(one.classes, pairs, targets),
                    *pair_losses(read_logits(own, points), read, normaliser),
                )
                for one, pairs, own, points, read in zip(outputs, matches, masks, chosen, wanted, strict=True)
            ]
        factors = (self.weights.classes, self.weights.masks, self.weights.dice)
        sums = [
            factor * torch.stack(part).sum() for factor, part in zip(factors, zip(*parts, strict=True), strict=True)
        ]
        if output.weight is not None:
            sums = [part * output.weight for part in sums]
        return {"loss": sums[0] + sums[1] + sums[2]} | dict(zip(("classes", "masks", "dice"), sums, strict=True))

    def _class_loss(self, logits: Tensor, matches: list[Match], targets: Targets) -> Tensor:
        """Loss of the classes of one output before its factor."""
        labels = query_labels(logits, matches, targets.segments)
        labelled = (targets.labels != IGNORED).flatten(1).any(1)
        weights = self._of_classes(logits)[labels] * labelled[:, None]
        return class_loss(logits, labels, weights)

    def _of_classes(self, logits: Tensor) -> Tensor:
        """Weight of every class and of no object, [C + 1]."""
        weights = self.class_weights or (1.0,) * (logits.shape[-1] - 1)
        return logits.new_tensor([*weights, self.void_weight])

    def _loss_points(self, masks: Tensor) -> LossPoints:
        """Fresh draws for every matched mask."""
        fresh = self.points - int(self.importance * self.points)
        candidates = self._draw(masks, len(masks), int(self.oversample * self.points))
        return LossPoints(candidates, self._draw(masks, len(masks), fresh))

    def _draw(self, like: Tensor, *sizes: int) -> Tensor:
        return torch.rand(*sizes, 2, device=like.device, dtype=_precision(like), generator=self.generator)

    def _extent(self, masks: Tensor, labels: Tensor) -> Size | None:
        """Pixels that the masks span, where they are those of an image padded at the bottom and right."""
        spans = tuple(size * self.stride for size in masks.shape[-2:])
        fits = all(0 <= span - size < self.stride for span, size in zip(spans, labels.shape[-2:], strict=True))
        return (spans[0], spans[1]) if fits else None


def matched_masks(masks: Tensor, matches: Sequence[Match]) -> Tensor:
    """Masks [B, N, h, w] of the matched queries, image by image, queries ascending: [M, h, w]."""
    return torch.cat([masks[image, rows] for image, (rows, _) in enumerate(matches)])


def read_matched(
    segments: Sequence[Segments],
    matches: Sequence[Sequence[Match]],
    points: Sequence[Tensor],
    extent: Size | None = None,
) -> list[Tensor]:
    """Segments of the matched queries at points, those of all outputs read together.

    Args:
        segments: Of each image.
        matches: Of each output and image.
        points: Of each output, [M, P, 2] in the order of :func:`matched_masks`.
        extent: See :func:`read_targets`.

    Returns:
        Of each output, [M, P].
    """
    parts = [own.split([len(rows) for rows, _ in pairs]) for own, pairs in zip(points, matches, strict=True)]
    found: list[list[Tensor]] = [[] for _ in points]
    for image, (_, masks) in enumerate(segments):
        chosen = [pairs[image][1] for pairs in matches]
        # a segment without a query in some output is read there at the corner, for nothing
        places = points[0].new_zeros(len(masks), len(points), *points[0].shape[1:])  # S, outputs, P, 2
        for number, columns in enumerate(chosen):
            places[columns, number] = parts[number][image]
        read = read_targets(masks, places.flatten(1, 2), extent).unflatten(1, places.shape[1:3])  # S, outputs, P
        for number, columns in enumerate(chosen):
            found[number].append(read[columns, number])
    return [torch.cat(own) for own in found]


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _precise(output: MaskOutput) -> MaskOutput:
    dtype = _precision(output.masks)
    return output._replace(classes=output.classes.to(dtype), masks=output.masks.to(dtype))
