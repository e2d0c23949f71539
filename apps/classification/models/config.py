"""Configurations of the classification models, and their names. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backbones.vision.config import BACKBONES, BackboneConfig
from datamodules.classification.info import ClassificationInfo
from graftwork.components import Registry, component
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from apps.classification.models.positions import Positions
    from backbones.vision.classifier import Classifier

__all__ = ["MODELS", "ClassifierConfig", "LinearConfig", "MajorityConfig", "PositionsConfig", "last_stride"]

SMALLEST = 32
"""Smallest image that vision backbones take, in pixels."""


def last_stride(backbone: Any) -> int:
    """Pixels per position of a backbone's last map; 0 where that is known only once it is built."""
    strides = backbone.facts.strides if isinstance(backbone, BackboneConfig) else ()
    return strides[-1] if strides else 0


@dataclass(kw_only=True)
class ClassifierConfig:
    """A vision backbone with the classification head of its family."""

    backbone: Any = component(BACKBONES)
    """The trunk."""

    def size_problems(self, image_size: int) -> Iterator[str]:
        """Image sizes that the backbone does not take."""
        yield from _too_small(image_size)

    def build(self, info: ClassificationInfo) -> Classifier:
        """The model for images and classes of these data."""
        from backbones.vision.create import assemble_classifier

        return assemble_classifier(self.backbone, len(info.classes), in_channels=info.channels)


@dataclass(kw_only=True)
class LinearConfig:
    """Logistic regression on the pixels: a cheap baseline that is often hard to be ashamed of."""

    side: int = 32
    """Images are shrunk to this many pixels a side first; smaller ones stay as they are."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.side < 1:
            yield f"side={self.side} must be at least 1"

    def build(self, info: ClassificationInfo) -> nn.Module:
        """The model for images and classes of these data."""
        from apps.classification.models.linear import LinearClassifier

        return LinearClassifier(info, self.side)


@dataclass(kw_only=True)
class MajorityConfig:
    """The trivial one: every image has the most frequent class of training, with the frequencies as probabilities."""

    def build(self, info: ClassificationInfo) -> nn.Module:
        """The model for classes of these data; nothing is trained."""
        from apps.classification.models.majority import Majority

        return Majority(info)


@dataclass(kw_only=True)
class PositionsConfig:
    """Pretraining without labels: patches of an image are shuffled, and each has to tell where it came from."""

    backbone: Any = component(BACKBONES)
    """The trunk; fine-tune it by --model.backbone.weights RUN/checkpoints/best.ckpt."""
    patch: int = 0
    """Side of a patch in pixels, a multiple of the backbone's last stride, which 0 takes."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.patch < 0:
            yield f"patch={self.patch} must be 0 (the backbone's last stride) or more"

    def size_problems(self, image_size: int) -> Iterator[str]:
        """Image sizes that do not divide into patches, and patches that do not divide into positions of the map."""
        yield from _too_small(image_size)
        stride = last_stride(self.backbone)
        patch = self.patch or stride
        if patch > 0:
            yield from patch_problems(image_size, patch, stride)

    def build(self, info: ClassificationInfo) -> Positions:
        """The model for images of these data."""
        from apps.classification.models.positions import Positions

        backbone = self.backbone.build(in_channels=info.channels, out_indices=(-1,))
        stride = backbone.strides[-1]
        patch = self.patch or stride
        if problems := list(patch_problems(info.image_size, patch, stride)):
            raise ConfigError(problems[0])
        return Positions(backbone, info.image_size // patch, patch)


def patch_problems(image_size: int, patch: int, stride: int) -> Iterator[str]:
    """What is wrong with a side of patches, for images and a backbone; a stride of 0 is not known yet."""
    if stride and patch % stride:
        near = max(1, round(patch / stride)) * stride
        yield f"model.patch={patch} must be a multiple of the backbone's last stride {stride}; try --model.patch {near}"
    elif image_size % patch or image_size < 2 * patch:
        near = max(2, round(image_size / patch)) * patch
        yield (
            f"data.image_size={image_size} must be a multiple of model.patch={patch}, and at least twice that; "
            f"try --data.image_size {near}"
        )


def _too_small(image_size: int) -> Iterator[str]:
    if image_size < SMALLEST:
        yield (
            f"data.image_size={image_size} is smaller than the {SMALLEST} pixels that vision backbones take; "
            f"try --data.image_size {SMALLEST}, or --model.name linear"
        )


MODELS = Registry(
    "model",
    {
        "classifier": ClassifierConfig,
        "linear": LinearConfig,
        "majority": MajorityConfig,
        "positions": PositionsConfig,
    },
)
