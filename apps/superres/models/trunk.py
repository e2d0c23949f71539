"""Restoration with the stages of any vision backbone: the frame of SwinIR around a trunk that is exchanged by name.

Paper of the frame: Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV Workshops 2021, section 3:
shallow convolution, deep features that end in a convolution and are added to it, reconstruction. Differs: where SwinIR
has groups of blocks at full resolution, here are the stages of a backbone as they are, downsampling included, so that
every family runs and its published weights fit. Images are enlarged before the backbone until the first stage has the
resolution that the configuration asks for: with ``stride`` 1, a backbone of patches of four pixels sees the image four
times as large and has a position for every pixel. Later stages cost little and see far. The levels are brought to the
resolution of the finest and summed, so each has a short way to the result, as every group of SwinIR has. The image,
enlarged, is added to the result, so that training starts from it.

Three surprises: the shallow features, which are always at full resolution, keep what a coarse trunk cannot; a backbone
sees colours normalised as its published weights want them, the frame sees them centred only; stages that no used level
needs are not built.

Shape legend: B batch, C channels of images, D features, H x W input, F channels of a level, e pixels per position of a
level and e0 of the finest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.config_checks import resolved_upsampler
from apps.superres.models.network import ResidualTrunk
from apps.superres.models.padding import pad_right_bottom
from backbones.vision.base import SMALLEST
from backbones.vision.create import without_initial_weights
from backbones.vision.layers import ChannelNorm
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from apps.superres.models.info import ImageInfo
    from apps.superres.models.trunk_config import TrunkConfig
    from backbones.vision.base import VisionBackbone


class Levels(NamedTuple):
    """What is taken of a backbone.

    Attributes:
        indices: Levels, as the backbone counts them.
        strides: Input pixels per position of each, before enlarging.
        enlarge: Factor on the sides of images before the backbone.
    """

    indices: tuple[int, ...]
    strides: tuple[int, ...]
    enlarge: int


def chosen_levels(indices: Sequence[int], strides: Sequence[int], stride: int, count: int) -> Levels:
    """Choose the levels of a backbone that are used, and how much images are enlarged for them.

    Args:
        indices: Levels that the backbone has.
        strides: Pixels per position of each, never falling.
        stride: Wanted pixels per position of the finest one that is used.
        count: How many are wanted.

    Returns:
        At most ``count`` levels, from the first on that images need not be shrunk for; less where there are no more.

    Raises:
        ConfigError: No level can have this stride: all are finer, or that would take no whole factor.
    """
    first = next((own for own in strides if own >= stride), None)
    if first is None or first % stride:
        fitting = [wanted for wanted in (1, 2, 4) if wanted < stride and any(own % wanted == 0 for own in strides)]
        raise ConfigError(
            f"model.stride={stride} fits none of the backbone's levels of {tuple(strides)} pixels per position",
            mend=f"Try --model.stride {fitting[-1]}",
        )
    enlarge = first // stride
    usable = [
        (index, own // enlarge)
        for index, own in zip(indices, strides, strict=True)
        if own >= first and own % first == 0
    ]
    numbers, pixels = zip(*usable[:count], strict=True)
    return Levels(numbers, pixels, enlarge)


class LevelFusion(nn.Module):
    """Brings every level to the resolution of the finest, sums them, and spreads the sum over pixels.

    Args:
        channels: F of every level.
        strides: e of every level.
        width: D.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        finest = strides[0]
        self.norms = nn.ModuleList(ChannelNorm(count) for count in channels)
        self.aligned = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width * (stride // finest) ** 2, 1), nn.PixelShuffle(stride // finest))
            for count, stride in zip(channels, strides, strict=True)
        )
        self.spread = nn.Sequential(nn.Conv2d(width, width * finest**2, 3, padding=1), nn.PixelShuffle(finest))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps [B, F, H / e, W / e] to [B, D, H, W]."""
        maps = [align(norm(level)) for level, norm, align in zip(levels, self.norms, self.aligned, strict=True)]
        features: Tensor = self.spread(torch.stack(maps).sum(0))  # from [B, D, H / e0, W / e0]
        return features


class TrunkRestorer(ResidualTrunk):
    """A restoration network around a vision backbone.

    Args:
        config: The backbone, and what is built around it.
        info: Scale and channels.

    Attributes:
        backbone: The trunk.
        levels: Which of its levels are used.

    Raises:
        ConfigError: The backbone has no level of the wanted stride, or takes images of one size only.
    """

    def __init__(self, config: TrunkConfig, info: ImageInfo) -> None:
        levels = _levels(config, info.channels)
        super().__init__(
            info,
            width=config.width,
            upsampler=resolved_upsampler(config.upsampler, "classical", info),
            tile_multiple=max(levels.strides),
            image_skip=config.image_skip,
        )
        self.config, self.levels = config, levels
        self.backbone: VisionBackbone = config.backbone.build(in_channels=info.channels, out_indices=levels.indices)
        self.fusion = LevelFusion(self.backbone.channels, levels.strides, config.width)
        for name, values in (("mean", self.backbone.mean), ("std", self.backbone.std)):
            self.register_buffer(f"colour_{name}", _by_channel(values, info.channels), persistent=False)

    colour_mean: Tensor
    colour_std: Tensor

    @property
    def smallest(self) -> int:
        """Side that smaller images are padded to, in pixels: what backbones take, and two positions everywhere."""
        return max(2 * self.tile_multiple, -(-SMALLEST // self.levels.enlarge))

    def padded(self, images: Tensor) -> Tensor:
        """Images continued to a size that all levels fit and the backbone takes."""
        missing = []
        for side in images.shape[-2:]:
            longer = max(side, self.smallest)
            missing.append(longer + -longer % self.tile_multiple - side)
        return pad_right_bottom(images, *missing)

    def features(self, x: Tensor) -> Tensor:
        """Shallow and deep features together, of centred images [B, C, H, W], [B, D, H, W]."""
        coloured = (self.range.restore(x) - self.colour_mean) / self.colour_std
        if self.levels.enlarge > 1:
            factor = float(self.levels.enlarge)
            coloured = F.interpolate(coloured, scale_factor=factor, mode="bilinear", align_corners=False)
        features: Tensor = self.shallow(x) + self.fusion(self.backbone(coloured))
        return features


def _levels(config: TrunkConfig, channels: int) -> Levels:
    # Only a built backbone knows its strides: timm's and custom ones are in no table. On meta it takes no memory.
    with torch.device("meta"), without_initial_weights():
        outline: Any = config.backbone.build(in_channels=channels)
    only = getattr(getattr(outline, "sizes", None), "only", None)
    if only is not None:
        raise ConfigError(
            f"the backbone takes images of {only[0]} x {only[1]} pixels only, restoration has images of any size",
            where="model.backbone",
            mend="Take a backbone such as swin_tiny or dinat_mini",
        )
    return chosen_levels(outline.out_indices, outline.strides, config.stride, config.levels)


def _by_channel(values: Sequence[float], channels: int) -> Tensor:
    """A number per channel, [C, 1, 1]; their average for images of other channels than the published weights saw."""
    numbers = torch.tensor(values)
    return (numbers if channels == len(values) else numbers.mean().expand(channels).clone())[:, None, None]
