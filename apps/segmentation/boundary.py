"""Boundary IoU: how well the outlines of classes are met, whatever the size of what they enclose.

Shape legend: B batch, C classes, H x W image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from apps.segmentation.confusion import ClassAreas
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ShapeError

WIDTH = 0.02
"""Width of the boundary, in image diagonals."""


def boundary_width(height: int, width: int, share: float = WIDTH) -> int:
    """Pixels that the boundary of a class reaches inwards in an image of this size, at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def near_boundary(labels: Tensor, width: int) -> Tensor:
    """Which pixels lie within a distance of another class or of the side of the image.

    Distances are those of chess. A pixel is far from all boundaries where the square around it holds one class only;
    edges between neighbours are counted in a summed-area table, so the time depends neither on width nor on classes.

    Args:
        labels: [B, H, W], whole numbers.
        width: The distance, in pixels, at least 1.

    Returns:
        [B, H, W] bool.
    """
    batch, height, width_px = labels.shape
    near = torch.ones(batch, height, width_px, dtype=torch.bool, device=labels.device)
    if min(height, width_px) <= 2 * width:
        return near
    across = _sums(labels[:, :, 1:] != labels[:, :, :-1], 2 * width + 1, 2 * width)
    down = _sums(labels[:, 1:] != labels[:, :-1], 2 * width, 2 * width + 1)
    near[:, width:-width, width:-width] = (across + down) > 0
    return near


def _sums(marks: Tensor, height: int, width: int) -> Tensor:
    """Marks in each window of a height and width, [B, H - height + 1, W - width + 1]."""
    table = torch.zeros(len(marks), marks.shape[1] + 1, marks.shape[2] + 1, dtype=torch.int32, device=marks.device)
    table[:, 1:, 1:] = marks.int().cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    below, above = table[:, height:], table[:, :-height]
    return below[..., width:] - below[..., :-width] - above[..., width:] + above[..., :-width]


class BoundaryAreas(Metric):
    """Pixels near the boundaries of classes, predicted and labelled, over a whole split.

    A pixel near the boundary of its class belongs to the boundary of that class; the side of the image is a boundary.
    Ignored pixels are neither counted nor predicted, so that a prediction which is right everywhere else scores 1.

    Args:
        classes: Number of classes, C.
        share: Width of boundaries, in image diagonals.

    Source: Cheng et al. 2021, "Boundary IoU", section 4. Differs: areas are summed over the split, as for mean IoU.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    areas: Tensor

    def __init__(self, classes: int, share: float = WIDTH) -> None:
        super().__init__()
        self.classes, self.share = classes, share
        self.add_state("areas", torch.zeros(3, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, labels: Tensor, sizes: Tensor | None = None) -> None:
        """Add images.

        Args:
            prediction: Class of every pixel, [B, H, W].
            labels: The right one, [B, H, W]; 255 is ignored.
            sizes: Height and width of each before it was filled up at the bottom and on the right, [B, 2].

        Raises:
            ShapeError: Predictions and labels differ in shape.
        """
        if prediction.shape != labels.shape:
            raise ShapeError(f"predictions {list(prediction.shape)} must have the shape of labels {list(labels.shape)}")
        whole = [list(labels.shape[1:])] * len(labels)
        for found, right, (height, width) in zip(
            prediction, labels, whole if sizes is None else sizes.tolist(), strict=True
        ):
            self._add(found[:height, :width], right[:height, :width])

    def _add(self, prediction: Tensor, labels: Tensor) -> None:
        found = prediction.where(labels != IGNORED, prediction.new_tensor(IGNORED))
        width = boundary_width(labels.shape[0], labels.shape[1], self.share)
        near = [near_boundary(values[None], width)[0] for values in (found, labels)]
        both = near[0] & near[1] & (found == labels)
        for row, (values, counted) in enumerate(((labels, both), (found, near[0]), (labels, near[1]))):
            codes = values.long().clamp(-1, self.classes).add_(1).mul_(counted)  # 0 and the last are no class
            pixels = torch.bincount(codes.flatten(), minlength=self.classes + 2)
            self.areas[row] += pixels[1 : self.classes + 1]

    def compute(self) -> ClassAreas:
        """Pixels of the boundaries of every class, on the CPU; their IoU is intersection by union."""
        return ClassAreas(*self.areas.cpu())
