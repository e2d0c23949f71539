"""Objects that a head finds, as average precision compares them: how much they share with the true segments.

Masks of a head's own instances may overlap, and there are up to a hundred in an image; what precision needs of them are
the pixels that each shares with each true segment, which is small enough to keep.

Shape legend: B batch, D detections, T true segments, P pixels, R runs of pixels, H x W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apps.segmentation.average_precision import Objects
from apps.segmentation.models.mask2former_panoptic import Instances

_AT_ONCE = 2**21


class Detections(NamedTuple):
    """Objects found in a batch of images; rows past those of an image have class -1.

    Args:
        classes: [B, D] int64.
        scores: From 0 to 1, [B, D].
        areas: Pixels of each, [B, D] int64.
        shared: Pixels that it shares with each true segment, [B, D, T] int64.
    """

    classes: Tensor
    scores: Tensor
    areas: Tensor
    shared: Tensor


def detections(found: Sequence[Instances], batch: Mapping[str, Any]) -> Detections:
    """Compare the objects of images with their true segments.

    Args:
        found: Of each image, with masks at least as large as the true segments; what is beyond them is cut off.
        batch: ``segments`` [B, H, W], numbers from 0, -1 where void; ``segment_classes`` [B, T]; ``size`` [B, 2] where
            images were filled up at the bottom and on the right.
    """
    true: Tensor = batch["segments"]
    count, sizes = batch["segment_classes"].shape[1], batch.get("size")
    most = max((len(image.classes) for image in found), default=0)
    whole = Detections(
        torch.full((len(found), most), -1, dtype=torch.int64, device=true.device),
        torch.zeros(len(found), most, device=true.device),
        torch.zeros(len(found), most, dtype=torch.int64, device=true.device),
        torch.zeros(len(found), most, count, dtype=torch.int64, device=true.device),
    )
    for place, image in enumerate(found):
        height, width = true.shape[1:] if sizes is None else sizes[place].tolist()
        numbers, masks = true[place, :height, :width], image.masks[:, :height, :width]
        pixels = _pixels(masks, numbers, count)
        whole.areas[place, : len(masks)], whole.shared[place, : len(masks)] = pixels.sum(1), pixels[:, 1:]
        whole.classes[place, : len(masks)] = image.classes
        whole.scores[place, : len(masks)] = image.scores.float()
    return whole


def _pixels(masks: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Pixels of each mask on void and on each true segment, [D, T + 1] int64.

    Neighbours mostly belong to the same segment: running sums of the masks are read where one ends, so time hardly
    depends on how many segments there are, and a GPU is not waited for at every mask.

    Args:
        masks: [D, H, W] bool.
        numbers: True segments from 0, -1 for void, [H, W].
        count: How many there are, T.
    """
    table = torch.zeros(len(masks), count + 1, dtype=torch.int64, device=masks.device)
    if not masks.numel():
        return table
    rows = max(1, _AT_ONCE // masks[:, 0].numel())
    for found, true in zip(masks.split(rows, 1), numbers.split(rows), strict=True):
        segments = true.flatten().long() + 1  # P
        ends = torch.cat([(segments[1:] != segments[:-1]).nonzero()[:, 0], segments.new_tensor([len(segments) - 1])])
        sums = found.flatten(1).cumsum(1, dtype=torch.int32)[:, ends]  # D, R
        table.index_add_(1, segments[ends], sums.diff(dim=1, prepend=sums.new_zeros(len(sums), 1)).long())
    return table


def objects_at(found: Detections, batch: Mapping[str, Any], place: int, things: Sequence[int]) -> Objects:
    """Detections and true objects of one image of a batch.

    Args:
        found: Of the batch.
        batch: ``segments``, ``segment_classes`` and ``segment_crowd`` [B, T].
        place: Number of the image in the batch.
        things: Labels of the classes whose objects count.
    """
    numbers, classes, crowd = (batch[key][place] for key in ("segments", "segment_classes", "segment_crowd"))
    areas = torch.bincount(numbers.flatten().long() + 1, minlength=len(classes) + 1)[1:]
    wanted = classes.new_tensor(tuple(things))
    true = (torch.isin(classes, wanted) & (areas > 0)).nonzero()[:, 0]
    ours = (torch.isin(found.classes[place], wanted) & (found.areas[place] > 0)).nonzero()[:, 0]
    return Objects(
        shared=found.shared[place, ours][:, true],
        areas=found.areas[place, ours],
        classes=found.classes[place, ours],
        scores=found.scores[place, ours],
        true_areas=areas[true],
        true_classes=classes[true],
        crowd=crowd[true].bool(),
    )
