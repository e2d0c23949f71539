"""What every segmentation head takes and gives.

A head turns the levels of a backbone into an output, knows its own loss, and says what the output means: scores of
classes for every pixel, and (heads that predict masks) segments. Everything an app needs goes through these four.

Shape legend of this folder: B batch, C classes, N queries, S segments of an image, H x W image, h x w output map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.info import HeadInfo
from graftwork.errors import ShapeError

Size = tuple[int, int]
"""Height and width, in pixels."""


class Segments(NamedTuple):
    """Segments of one image.

    Args:
        classes: Label of each, [S] int64.
        masks: Whether a pixel belongs to it, [S, H, W] bool. A pixel in none of them is void.
    """

    classes: Tensor
    masks: Tensor


class Targets(NamedTuple):
    """What a batch should give.

    Args:
        labels: Class of every pixel, [B, H, W] int64; 255 is ignored.
        segments: Of each image. In semantic data a segment is all pixels of a class in the image.
    """

    labels: Tensor
    segments: list[Segments]


class PixelOutput(NamedTuple):
    """Classes of pixels.

    Args:
        logits: [B, C, h, w].
        auxiliary: Logits of further heads, for the loss alone; empty outside of training.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class MaskOutput(NamedTuple):
    """Classified masks.

    Args:
        classes: Logits of each query, [B, N, C + 1]; the last one is for no object.
        masks: Logits of each query's mask, [B, N, h, w].
        auxiliary: Outputs of earlier layers, first layer first, for the loss alone; empty outside of training.
        features: Of pixels, where a loss compares them, [B, F, h, w].
        semantic: Logits of an auxiliary head, [B, C or C + 1, h', w'], in training.
        weight: Factor of the loss, a scalar, where training draws the depth of a network.
    """

    classes: Tensor
    masks: Tensor
    auxiliary: tuple[MaskOutput, ...] = ()
    features: Tensor | None = None
    semantic: Tensor | None = None
    weight: Tensor | None = None


class Panoptic(NamedTuple):
    """Segments found in one image.

    Args:
        segments: Number of the segment that each pixel belongs to, from 1, [H, W] int32; 0 is void.
        classes: Label of segment 1, 2, ..., [S] int64.
        scores: Certainty of each, [S], from 0 to 1.
    """

    segments: Tensor
    classes: Tensor
    scores: Tensor


class SegmentationHead(nn.Module):
    """Base of every head.

    Args:
        info: Sizes of backbone and data.

    Attributes:
        makes_segments: Whether :meth:`panoptic` is there.
    """

    makes_segments = False

    def __init__(self, info: HeadInfo) -> None:
        super().__init__()
        self.info = info

    @property
    def reads(self) -> frozenset[int]:
        """Levels that :meth:`forward` reads, counted from 0; whatever stands in the place of others does not matter."""
        return frozenset(range(len(self.info.channels)))

    def check_levels(self, levels: Sequence[Tensor], name: str = "") -> None:
        """Refuse levels of other channels than the head was built for; those that it does not read are not looked at.

        Args:
            levels: Maps of the backbone, [B, C_i, h_i, w_i]; any number after the last that is read.
            name: Of the head, for the message; its class if empty.

        Raises:
            ShapeError: They differ; the message names both.
        """
        places = sorted(self.reads)
        expected = [self.info.channels[place] for place in places]
        found = [levels[place].shape[1] for place in places if place < len(levels)]
        if found != expected:
            raise ShapeError(
                f"levels of {name or type(self).__name__}: expected channels {expected}, got {found}",
                mend="Build the head for the channels of the backbone",
            )

    @abstractmethod
    def forward(self, levels: Sequence[Tensor], size: Size) -> Any:
        """Levels of a backbone, fine to coarse, for images of ``size``, to a :class:`PixelOutput` or MaskOutput."""

    @abstractmethod
    def loss(self, output: Any, targets: Targets) -> dict[str, Tensor]:
        """The loss, ``"loss"``, and its weighted parts; 0 with finite gradients where all pixels are ignored."""

    @abstractmethod
    def class_scores(self, output: Any, size: Size) -> Tensor:
        """Scores of all classes at every pixel of images of ``size``, [B, C, H, W]; windows that overlap average."""

    @abstractmethod
    def probabilities(self, scores: Tensor) -> Tensor:
        """What :meth:`class_scores` gave, from 0 to 1 and summing to 1 over classes; further views average these."""

    def panoptic(self, output: Any, size: Size, rules: Any) -> list[Panoptic]:
        """Segments of every image of a batch, at ``size``.

        Args:
            output: Of :meth:`forward`.
            size: Height and width to give them at.
            rules: A :class:`apps.segmentation.config.PanopticConfig`.
        """
        raise NotImplementedError(f"{type(self).__name__} classifies pixels and tells no objects apart")

    def instances(self, output: Any, size: Size) -> list[Any]:
        """Objects of every image of a batch, best first; they may overlap.

        Args:
            output: Of :meth:`forward`.
            size: Height and width to give them at.

        Returns:
            A :class:`apps.segmentation.models.mask2former_panoptic.Instances` for each image.
        """
        raise NotImplementedError(f"{type(self).__name__} classifies pixels and tells no objects apart")


class PixelHead(SegmentationHead):
    """Base of heads that classify pixels one by one; a subclass gives :meth:`forward` and :meth:`loss`."""

    def class_scores(self, output: PixelOutput, size: Size) -> Tensor:
        """Logits, bilinearly resized."""
        if output.logits.shape[-2:] == tuple(size):
            return output.logits
        return F.interpolate(output.logits, size=size, mode="bilinear", align_corners=False)

    def probabilities(self, scores: Tensor) -> Tensor:
        """The softmax over classes."""
        return scores.float().softmax(1)


class MaskHead(SegmentationHead):
    """Base of heads that classify masks; a subclass gives the rest and :meth:`mask_probabilities`."""

    makes_segments = True

    def class_scores(self, output: MaskOutput, size: Size) -> Tensor:
        """Sum over queries of the probability of each class (no object left out) and that of the mask."""
        classes = output.classes.float().softmax(-1)[..., :-1]
        return torch.einsum("bnc,bnhw->bchw", classes, self.mask_probabilities(output, size))

    @abstractmethod
    def mask_probabilities(self, output: MaskOutput, size: Size) -> Tensor:
        """How much each pixel of images of ``size`` belongs to each query, [B, N, H, W], from 0 to 1."""

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores by their sum over classes."""
        return scores / scores.sum(1, keepdim=True).clamp(min=1e-12)
