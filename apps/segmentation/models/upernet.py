"""UPerNet: a pyramid of pooled context and a feature pyramid, all levels joined at the finest.

Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, section 3. Facts of the layers are
those of mmsegmentation 1.2.2 (Apache-2.0), whose weights fit.

Three surprises: the coarsest level is not smoothed once more, its pooled context ends in a 3x3 convolution already;
sums on the way down accumulate; three quarters of all multiply-adds are in the one convolution over all levels at the
finest resolution. That convolution is computed level by level at their own resolutions, see
:mod:`apps.segmentation.models.fusion`, which is equal.

Shape legend: B batch, D channels of the head, h x w map of the finest level, s positions per side of a pooled map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.blocks import ConvNormAct
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.fusion import resized
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import UPerNetConfig
from backbones.attention.dispatch import exporting


class UPerNetHead(DecodeHead):
    """UPerNet on the levels of any backbone; with a single level it is pyramid pooling alone.

    Args:
        config: Options.
        info: Sizes of backbone and data.

    Raises:
        ConfigError: A level that the backbone does not give.
    """

    config: UPerNetConfig

    def __init__(self, config: UPerNetConfig, info: HeadInfo) -> None:
        width = config.channels
        super().__init__(config, info, config.in_levels or range(len(info.channels)), width)
        after = self.after
        *finer, coarsest = self.in_channels
        self.scales = config.pool_scales
        self.pools = nn.ModuleList(ConvNormAct(coarsest, width, after=after) for _ in self.scales)
        self.context = ConvNormAct(coarsest + width * len(self.scales), width, 3, after=after)
        self.laterals = nn.ModuleList(ConvNormAct(channels, width, after=after) for channels in finer)
        self.smooths = nn.ModuleList(ConvNormAct(width, width, 3, after=after) for _ in finer)
        self.fusion = ConvNormAct(width * (len(finer) + 1), width, 3, after=after)

    def fuse(self, levels: list[Tensor]) -> Tensor:
        """The chosen levels, fine to coarse, to [B, D, h, w]."""
        corners = self.config.align_corners
        *finer, coarsest = levels
        sums = [self._pooled(coarsest)]
        for lateral, level in zip(reversed(self.laterals), reversed(finer), strict=True):
            mixed = lateral(level)
            sums.insert(0, mixed + resized(sums[0], _size(mixed), corners))
        smooth = [conv(found) for conv, found in zip(self.smooths, sums, strict=False)]
        size = _size(levels[0])
        joined: Tensor = self.fusion.fuse([*smooth, sums[-1]], size, align_corners=corners, literal=self.literal)
        return joined

    def _pooled(self, level: Tensor) -> Tensor:
        """A level with what it is on average, over parts of it of several sizes."""
        pooled = [conv(pool(level, scale)) for conv, scale in zip(self.pools, self.scales, strict=True)]
        corners = self.config.align_corners
        found: Tensor = self.context.fuse([level, *pooled], _size(level), align_corners=corners, literal=self.literal)
        return found


def pool(level: Tensor, scale: int) -> Tensor:
    """Means of scale x scale parts of a map, [B, C, h, w] to [B, C, scale, scale]; parts overlap where they must."""
    if not exporting():
        return F.adaptive_avg_pool2d(level, scale)
    # other runtimes know no pooling to a size; as two matrices it suits maps of any size
    down, across = (_shares(level, level.shape[axis], scale) for axis in (2, 3))
    return down @ level @ across.t()


def _shares(like: Tensor, length: int, scale: int) -> Tensor:
    """What each position contributes to the mean of each part of an axis, [scale, length]."""
    parts = torch.arange(scale, device=like.device)[:, None]
    begin, end = parts * length // scale, ((parts + 1) * length + scale - 1) // scale
    places = torch.arange(length, device=like.device)
    inside = (places >= begin) & (places < end)
    return (inside / (end - begin)).to(like.dtype)


def _size(level: Tensor) -> tuple[int, int]:
    return level.shape[-2], level.shape[-1]
