"""A U-Net decoder on the levels of any backbone, with plain upsampling or window attention upsampling.

Papers: Ronneberger et al., "U-Net", MICCAI 2015, section 2, for the decoder; Li et al., "More than Encoder:
Introducing Transformer Decoder to Upsample", 2021 (arXiv 2106.10637), for window attention upsampling (WAU). What the
latter's abstract says is here: coarse features bilinearly resized, plus a layer of a transformer decoder whose queries
are the finer level and whose keys and values are the coarse features, inside of windows that lie in the same place.
Unverified, for want of published code: size of windows, number of heads, norms before rather than after, the relative
position bias, width of the feed-forward part. The published scores are for medical data and were not reproduced.

Three surprises: the result has the resolution of the finest level that is read, for most backbones a quarter of the
image's, and is resized from there; norms are where the first U-Net had none; in a window all queries that lie on the
same coarse position have the same bias.

Shape legend: B batch, C channels of a level, D width, h x w coarse map, H x W finer map, f ratio of their strides,
n heads, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apps.segmentation.models.blocks import ConvBody, ConvNormAct
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.fusion import resized
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import UNetConfig
from backbones.attention.dispatch import exporting
from backbones.attention.partition import relative_bias
from backbones.attention.window import window_attention
from backbones.vision.layers import Mlp
from graftwork.errors import ShapeError

MLP_RATIO = 2
"""Width of the feed-forward part of window attention upsampling, relative to the features'."""


class UNetHead(DecodeHead):
    """From the coarsest level up, joined with every finer one.

    Args:
        config: Options.
        info: Sizes of backbone and data.

    Raises:
        ConfigError: A level that the backbone does not give.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig, info: HeadInfo) -> None:
        super().__init__(config, info, config.in_levels or range(len(info.channels)), config.channels)
        widths = [min(config.channels << level, config.widest) for level in range(len(self.chosen))]
        widths[0] = config.channels
        strides = [info.strides[level] for level in self.chosen]
        self.bottom = ConvBody(self.in_channels[-1], widths[-1], config.convs, after=self.after)
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            coarse, fine, width = widths[level + 1], self.in_channels[level], widths[level]
            self.ups.append(self._up(coarse, fine, width, -(-strides[level + 1] // strides[level])))
            self.joins.append(ConvBody(width + fine, width, config.convs, after=self.after))

    def _up(self, coarse: int, fine: int, width: int, ratio: int) -> nn.Module:
        config = self.config
        if config.upsample == "wau":
            return WindowUpsample(
                coarse, fine, width, ratio, window=config.window, heads=config.heads, corners=config.align_corners
            )
        return Upsample(ConvNormAct(coarse, width, after=self.after), config.align_corners)

    def fuse(self, levels: list[Tensor]) -> Tensor:
        """The chosen levels, fine to coarse, to [B, D, H, W] of the finest."""
        *finer, coarsest = levels
        x: Tensor = self.bottom(coarsest)
        for up, join, level in zip(self.ups, self.joins, reversed(finer), strict=True):
            x = join(torch.cat([up(x, level), level], dim=1))
        return x


class Upsample(nn.Module):
    """Coarse features mixed and bilinearly resized to the size of a finer level.

    Args:
        mix: Applied at the coarse resolution, with which resizing changes places but for the activation.
        corners: See :func:`torch.nn.functional.interpolate`.
    """

    def __init__(self, mix: nn.Module, corners: bool = False) -> None:
        super().__init__()
        self.mix = mix
        self.corners = corners

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, C, h, w] and [B, C', H, W] to [B, D, H, W]."""
        return resized(self.mix(coarse), (fine.shape[-2], fine.shape[-1]), self.corners)


class WindowUpsample(nn.Module):
    """Coarse features resized, and what each finer position reads from the window of coarse ones around it.

    Args:
        coarse: Channels of the coarse features.
        fine: Channels of the finer level.
        width: Channels of the result; a multiple of ``heads``.
        ratio: Positions of the finer level per position of the coarse one, on each axis.
        window: Side of windows, in coarse positions.
        heads: Attention heads.
        corners: Align corners where coarse features are resized.
    """

    def __init__(
        self, coarse: int, fine: int, width: int, ratio: int, *, window: int, heads: int, corners: bool = False
    ) -> None:
        super().__init__()
        self.ratio, self.window, self.heads, self.corners = ratio, window, heads, corners
        self.mix = nn.Conv2d(coarse, width, 1)
        self.fine_norm, self.coarse_norm = nn.LayerNorm(fine), nn.LayerNorm(coarse)
        self.queries = nn.Linear(fine, width)
        self.keys_values = nn.Linear(coarse, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, MLP_RATIO * width)
        self.positions = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.positions._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, C, h, w] and [B, C', H, W] to [B, D, H, W].

        Raises:
            ShapeError: A finer level that does not have ``ratio`` positions per coarse one, those at the border less.
        """
        size = (fine.shape[-2], fine.shape[-1])
        read = self._attend(coarse.permute(0, 2, 3, 1), fine.permute(0, 2, 3, 1))  # B, H, W, D
        read = read + self.mlp(self.mlp_norm(read))
        return resized(self.mix(coarse), size, self.corners) + read.permute(0, 3, 1, 2)

    def _attend(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, h, w, C] and [B, H, W, C'] to [B, H, W, D].

        Finer positions that lie on the same place of a coarse one are a map of the coarse resolution, so that windows
        of queries and of keys are the same; the f * f such maps are a batch.
        """
        rows, columns, ratio = coarse.shape[1], coarse.shape[2], self.ratio
        height, width = fine.shape[1], fine.shape[2]
        if not exporting() and not (0 <= rows * ratio - height < ratio and 0 <= columns * ratio - width < ratio):
            raise ShapeError(
                f"a level of {height} x {width} does not belong above one of {rows} x {columns}: strides of the ratio "
                f"{ratio} were promised",
                mend="Give the head the strides of the backbone",
            )
        q = self.queries(self.fine_norm(fine))
        q = _of_length(_of_length(q, 1, rows * ratio), 2, columns * ratio)
        q = q.unflatten(1, (rows, ratio)).unflatten(3, (columns, ratio)).unflatten(-1, (self.heads, -1))
        q = q.permute(0, 2, 4, 1, 3, 5, 6).flatten(0, 2)  # B f f, h, w, n, d
        k, v = self.keys_values(self.coarse_norm(coarse)).unflatten(-1, (2, self.heads, -1)).unbind(3)
        k, v = (tensor.repeat_interleave(ratio * ratio, dim=0) for tensor in (k, v))  # B f f, h, w, n, d
        bias = relative_bias(self.positions, self.window)
        mixed = window_attention(q, k, v, window=self.window, bias=bias)
        mixed = mixed.flatten(-2).unflatten(0, (-1, ratio, ratio)).permute(0, 3, 1, 4, 2, 5)  # B, h, f, w, f, D
        mixed = mixed.flatten(3, 4).flatten(1, 2)
        read: Tensor = self.out(_of_length(_of_length(mixed, 1, height), 2, width))
        return read


def _of_length(x: Tensor, axis: int, length: int) -> Tensor:
    """A tensor cut, or continued by its last slice, to a length along an axis."""
    if not exporting() and x.shape[axis] == length:
        return x
    # an index rather than a slice or padding: these would tie a graph to the relation of the sizes it was traced with
    places = torch.arange(length, device=x.device).clamp(max=x.shape[axis] - 1)
    return x.index_select(axis, places)
