"""Configurations of the segmentation models and heads, and their names. No torch until ``build``.

Heads are registered in :data:`HEADS`; each family has its configuration in a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.segmentation.models.mmseg_config import HeadRegistry
from backbones.vision.config import BACKBONES
from datamodules.segmentation.info import SegmentationInfo
from graftwork.components import Registry, component

if TYPE_CHECKING:
    from apps.segmentation.models.segmenter import Segmenter

HEADS = HeadRegistry(
    "head",
    {
        "upernet": "apps.segmentation.models.pixel_config:UPerNetConfig",
        "segformer": "apps.segmentation.models.pixel_config:SegFormerConfig",
        "fcn": "apps.segmentation.models.pixel_config:FCNConfig",
        "unet": "apps.segmentation.models.pixel_config:UNetConfig",
        "kmax": "apps.segmentation.models.kmax_config:KMaXConfig",
        "mask2former": "apps.segmentation.models.mask2former_config:Mask2FormerConfig",
    },
)
"""Each entry: a dataclass with ``problems()`` (stdlib only) and ``build(info: HeadInfo) -> SegmentationHead``.

``mmseg:NAME`` opens a head of mmsegmentation, see :mod:`apps.segmentation.models.mmseg_config`.
"""


@dataclass(kw_only=True)
class SegmenterConfig:
    """A vision backbone with a segmentation head."""

    backbone: Any = component(BACKBONES)
    """The trunk."""
    head: Any = component(HEADS)
    """What turns its levels into classes or segments."""
    class_weights: Literal["none", "median", "sqrt"] = "none"
    """Weigh rare classes up: by median frequency balancing, or by its square root."""

    def build(self, info: SegmentationInfo) -> Segmenter:
        """The model for images and classes of these data."""
        from apps.segmentation.models.segmenter import build_segmenter

        return build_segmenter(self, info)


MODELS = Registry("model", {"segmenter": SegmenterConfig})
