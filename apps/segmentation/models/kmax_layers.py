"""Convolutions, norms and resizing as kMaX-DeepLab has them.

Paper: Yu et al., "k-means Mask Transformer", ECCV 2022. Three surprises: weights are initialised by the number of input
channels alone, whatever the kernel; the last norm of every residual branch starts at 0, so that branches start empty;
whether corners are aligned in resizing depends on whether a side is odd.

Shape legend: B batch, C channels, L tokens, H x W map.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.attention.dispatch import resolve_form

Size = tuple[int, int]


class BatchNorm(_BatchNorm):
    """Batch norm of inputs [B, C, ...] of any rank, with the constants of this family.

    A single value per channel (one image, pooled) has no deviation: it is normalised by the running statistics.

    Args:
        channels: C.
        scale: Initial factor.
    """

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)
        self.initial_scale = scale
        nn.init.constant_(self.weight, scale)

    def _check_input_dim(self, input: Tensor) -> None:
        """Every rank will do."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and offset of every channel that an evaluated batch norm is, [C] both; differentiable."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = norm.weight * torch.rsqrt(variance + norm.eps)
    return factor, norm.bias - mean * factor


def fixed(norm: _BatchNorm, operator: str) -> bool:
    """Whether a norm is a fixed affine map now and may be merged with what is beside it."""
    return not norm.training and resolve_form(operator) == "fast"


def full(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ConvNorm(nn.Module):
    """Convolution, batch norm and, where wanted, GELU.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Side of the kernel; zeros keep the size.
        activate: Whether GELU follows.
        scale: Initial factor of the norm.
        dilation: Step inside the kernel.
        depthwise: One kernel per channel.
        bias: Whether the convolution has one beside the norm's.
        std: Deviation of initial weights; by the number of input channels if omitted.
        axes: 2 for maps, 1 for tokens.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        activate: bool = True,
        scale: float = 1.0,
        dilation: int = 1,
        depthwise: bool = False,
        bias: bool = False,
        std: float | None = None,
        axes: int = 2,
    ) -> None:
        super().__init__()
        kind = nn.Conv2d if axes == 2 else nn.Conv1d
        padding, groups = kernel // 2 * dilation, inputs if depthwise else 1
        self.conv = kind(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias)
        self.norm = BatchNorm(outputs, scale)
        self.activate = activate
        if depthwise:
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            init_truncated(self.conv.weight, math.sqrt(2 / inputs) if std is None else std)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, ...] to [B, outputs, ...]."""
        x = self.norm(self.conv(x))
        return F.gelu(x) if self.activate else x


class QueryConvNorm(ConvNorm):
    """A :class:`ConvNorm` of kernel 1 on tokens, [B, C, L]."""

    def __init__(
        self, inputs: int, outputs: int, *, activate: bool = True, scale: float = 1.0, std: float | None = None
    ) -> None:
        super().__init__(inputs, outputs, activate=activate, scale=scale, std=std, axes=1)


def init_truncated(weight: Tensor, std: float) -> None:
    """Fill with normal numbers that were cut at 2 deviations, then scaled."""
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=1.0, a=-2.0, b=2.0).mul_(std)


def table(*shape: int) -> nn.Parameter:
    """A learned table, truncated normal of deviation 1, without weight decay."""
    parameter = nn.Parameter(torch.empty(shape))
    init_truncated(parameter, 1.0)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def resize(x: Tensor, size: Size, inspected: int) -> Tensor:
    """Resize a map bilinearly.

    Args:
        x: [B, C, H, W].
        size: Height and width to give.
        inspected: The side that decides: corners are aligned where it is odd.

    Returns:
        [B, C, *size]; ``x`` itself if it has that size.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=bool(inspected % 2))
