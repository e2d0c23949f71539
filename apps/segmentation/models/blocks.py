"""Convolution, norm and activation, the block that heads of pixels are made of, and what is made of it.

Source: the block is mmsegmentation's ``ConvModule``; Kaiming initialisation. Differs: a batch norm that is given one
value per channel in training (a batch of one image, pooled to a position, or a map of one position) normalises it by
its running statistics, where torch raises an error: no variance can be taken of a single value.

Shape legend: B batch, C channels, F filters, h x w map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.fusion import Mode, Size, fuse
from apps.segmentation.models.pixel_config import Activation, Norm

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "none": nn.Identity,
}


class NormAct(NamedTuple):
    """Norm and activation before the channels are known.

    Attributes:
        norm: ``batch``, ``sync``, ``group`` or ``none``.
        groups: Of a group norm; fewer where they do not divide the channels.
        eps: Added to variances.
        momentum: What a batch weighs in the running statistics of a batch norm.
        activation: A name of :data:`ACTIVATIONS`.
    """

    norm: Norm = "batch"
    groups: int = 32
    eps: float = 1e-5
    momentum: float = 0.1
    activation: Activation = "relu"

    def build(self, channels: int) -> nn.Module:
        """The norm for maps of so many channels."""
        if self.norm == "group":
            return nn.GroupNorm(math.gcd(self.groups, channels), channels, eps=self.eps)
        if self.norm == "sync":
            return SyncBatchNorm(channels, eps=self.eps, momentum=self.momentum)
        return BatchNorm(channels, eps=self.eps, momentum=self.momentum) if self.norm == "batch" else nn.Identity()


DEFAULT = NormAct()


def _single(x: Tensor) -> bool:
    return x.shape[0] * x.shape[2] * x.shape[3] == 1


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes single values, see the top of this file."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        if self.training and _single(x):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class SyncBatchNorm(nn.SyncBatchNorm):
    """The same with statistics of all processes; on its own a plain batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if self.training and _single(x) and (alone or torch.distributed.get_world_size() == 1):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        normalised: Tensor = super().forward(x)
        return normalised


class ConvNormAct(nn.Module):
    """Convolution, norm, activation; the convolution has a bias only where there is no norm.

    Args:
        channels: Channels of the input.
        filters: Channels of the output.
        kernel: Side of the kernel, odd; the size of a map stays.
        dilation: Positions from tap to tap.
        after: Norm and activation; without a norm the convolution has a bias.
    """

    def __init__(
        self, channels: int, filters: int, kernel: int = 1, *, dilation: int = 1, after: NormAct = DEFAULT
    ) -> None:
        super().__init__()
        padding, bias = kernel // 2 * dilation, after.norm == "none"
        self.conv = nn.Conv2d(channels, filters, kernel, padding=padding, dilation=dilation, bias=bias)
        self.norm = after.build(filters)
        self.activation = ACTIVATIONS[after.activation]()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, F, h, w]."""
        norm = self._folds()
        if norm is None:
            found = self.norm(self.conv(x))
        else:
            scale, shift = _affine(norm)
            found = F.conv2d(x, self.conv.weight * scale[:, None, None, None], shift)
        activated: Tensor = self.activation(found)
        return activated

    def fuse(
        self,
        levels: Sequence[Tensor],
        size: Size,
        *,
        align_corners: bool = False,
        mode: Mode = "bilinear",
        literal: bool = False,
    ) -> Tensor:
        """The block on levels that are resized to ``size`` and joined, [B, C_i, h_i, w_i] to [B, F, *size].

        Args:
            levels: Maps whose channels sum up to those of the block.
            size: Height and width of the result.
            align_corners: See :func:`torch.nn.functional.interpolate`.
            mode: How levels are resized.
            literal: Compute it as it says rather than each level at its own resolution, see
                :mod:`apps.segmentation.models.fusion`.
        """
        norm = None if literal else self._folds()
        if norm is None:
            mixed = fuse(levels, self.conv.weight, size, align_corners=align_corners, mode=mode, literal=literal)
            bias = self.conv.bias
            found = self.norm(mixed if bias is None else mixed + bias[:, None, None])
        else:
            scale, shift = _affine(norm)
            weight = self.conv.weight * scale[:, None, None, None]
            found = fuse(levels, weight, size, align_corners=align_corners, mode=mode) + shift[:, None, None]
        activated: Tensor = self.activation(found)
        return activated

    def _folds(self) -> nn.BatchNorm2d | nn.SyncBatchNorm | None:
        """The norm, if it is no more than a factor and a summand per channel, and few weights take the factor."""
        norm = self.norm
        if self.training or self.conv.kernel_size != (1, 1) or not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
            return None
        return norm if norm.running_var is not None else None


def _affine(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel of a batch norm outside training."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise RuntimeError("a batch norm without running statistics is no affine map")
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def classifier(channels: int, logits: int) -> nn.Conv2d:
    """The last layer of a head, a kernel of 1 with weights of deviation 0.01."""
    layer = nn.Conv2d(channels, logits, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias if layer.bias is not None else torch.empty(0))
    return layer


class ConvBody(nn.Module):
    """Convolutions in a row, and one over input and result if ``joined``.

    Args:
        channels: Channels of the input.
        filters: Channels of the output.
        convs: Number of convolutions; 0 needs ``channels == filters``.
        kernel: Side of their kernels.
        dilation: Positions from tap to tap; the joining convolution has none.
        joined: Whether the input is joined to what came of it.
        after: See :class:`ConvNormAct`.

    Source: Long et al. 2015, "Fully Convolutional Networks", as mmsegmentation's ``FCNHead`` has it.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        convs: int,
        *,
        kernel: int = 3,
        dilation: int = 1,
        joined: bool = False,
        after: NormAct = DEFAULT,
    ) -> None:
        super().__init__()
        widths = [channels] + [filters] * convs
        self.convs = nn.ModuleList(
            ConvNormAct(width, wanted, kernel, dilation=dilation, after=after) for width, wanted in pairwise(widths)
        )
        self.join = ConvNormAct(channels + filters, filters, kernel, after=after) if joined else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, F, h, w]."""
        found = x
        for conv in self.convs:
            found = conv(found)
        return found if self.join is None else self.join(torch.cat([x, found], dim=1))


class AuxiliaryHead(nn.Module):
    """Classes of positions of one level, for the loss alone.

    Args:
        body: What comes before the classifier.
        filters: Channels that it gives.
        logits: How many of them a position has.
        dropout: Share of channels dropped before the classifier.
    """

    def __init__(self, body: nn.Module, filters: int, logits: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(filters, logits)

    def forward(self, level: Tensor) -> Tensor:
        """[B, C, h, w] to [B, logits, h, w]."""
        logits: Tensor = self.classifier(self.dropout(self.body(level)))
        return logits
