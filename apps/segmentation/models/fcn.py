"""A fully convolutional head.

Paper: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. Facts of the layers are those
of mmsegmentation 1.2.2 (Apache-2.0), whose weights fit; as a second head for the loss it is
:class:`apps.segmentation.models.blocks.AuxiliaryHead`.

Shape legend: B batch, D channels of the head, h x w map of the level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apps.segmentation.models.blocks import ConvBody
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.fusion import resized
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import FCNConfig
from graftwork.errors import ConfigError


class FCNHead(DecodeHead):
    """Convolutions on one or some levels of any backbone.

    Args:
        config: Options.
        info: Sizes of backbone and data.

    Raises:
        ConfigError: A level that the backbone does not give; no convolutions and another width than the level.
    """

    config: FCNConfig

    def __init__(self, config: FCNConfig, info: HeadInfo) -> None:
        super().__init__(config, info, config.in_levels, config.channels)
        joined = sum(self.in_channels)
        if not config.convs and joined != config.channels:
            raise ConfigError(
                f"convs=0 leaves the level as it is, of {joined} channels, but channels={config.channels}",
                mend=f"Set channels={joined}, or convs=1",
            )
        self.body = ConvBody(
            joined,
            config.channels,
            config.convs,
            kernel=config.kernel,
            dilation=config.dilation,
            joined=config.joined,
            after=self.after,
        )

    def fuse(self, levels: list[Tensor]) -> Tensor:
        """The chosen levels to [B, D, h, w]."""
        size = (levels[0].shape[-2], levels[0].shape[-1])
        alike = [resized(level, size, self.config.align_corners) for level in levels]
        found: Tensor = self.body(torch.cat(alike, dim=1) if len(alike) > 1 else alike[0])
        return found
