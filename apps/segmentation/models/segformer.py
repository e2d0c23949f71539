"""SegFormer's head: every level mixed by itself, resized, joined, and mixed once more.

Paper: Xie et al., "SegFormer", NeurIPS 2021, section 3.2. Facts of the layers are those of mmsegmentation 1.2.2
(Apache-2.0), whose weights fit.

Three surprises: the layers on the levels have a norm and ReLU, which the paper's figure does not show and its first
code does not have; mmsegmentation joins levels fine to coarse, the first code coarse to fine; mixing at the end is a
kernel of 1, which changes places with resizing, so each level is mixed at its own resolution, which is equal and takes
about a third of the multiply-adds.

Shape legend: B batch, D channels of the head, h x w map of the finest level.
"""

from __future__ import annotations

from torch import Tensor, nn

from apps.segmentation.models.blocks import ConvNormAct
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import SegFormerConfig


class SegFormerHead(DecodeHead):
    """SegFormer's head on the levels of any backbone.

    The last convolution has a ReLU whatever activation is chosen, as in mmsegmentation.

    Args:
        config: Options.
        info: Sizes of backbone and data.

    Raises:
        ConfigError: A level that the backbone does not give.
    """

    config: SegFormerConfig

    def __init__(self, config: SegFormerConfig, info: HeadInfo) -> None:
        width = config.channels
        super().__init__(config, info, config.in_levels or range(len(info.channels)), width)
        after = self.after
        self.laterals = nn.ModuleList(ConvNormAct(channels, width, after=after) for channels in self.in_channels)
        self.fusion = ConvNormAct(width * len(self.in_channels), width, after=after._replace(activation="relu"))

    def fuse(self, levels: list[Tensor]) -> Tensor:
        """The chosen levels, fine to coarse, to [B, D, h, w]."""
        mixed = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        size = (levels[0].shape[-2], levels[0].shape[-1])
        config = self.config
        joined: Tensor = self.fusion.fuse(
            mixed, size, align_corners=config.align_corners, mode=config.interpolation, literal=self.literal
        )
        return joined
