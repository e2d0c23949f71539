"""The two attentions of DLGSANet: dynamic kernels around every position, and channels over crops or the whole image.

Shape legend: B batch, D features, H x W map, k side of a dynamic kernel, n crops of h x w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apps.superres.models.channel_attention import depthwise
from backbones.attention.channel import projected_channel_attention
from backbones.attention.dynamic import projected_dynamic_convolution


class DynamicConvolution(nn.Module):
    """A depth-wise convolution whose kernels a small network makes for every position.

    Args:
        width: D.
        kernel: k, odd.
        group_width: Features that share a kernel; divides D.
        squeeze: D divided by this lies inside the network that makes kernels.
    """

    def __init__(self, width: int, kernel: int, group_width: int, squeeze: int) -> None:
        super().__init__()
        hidden = width // squeeze
        self.kernel = kernel
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.kernels = nn.Conv2d(hidden, kernel**2 * (width // group_width), 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        features = self.depthwise(self.reduce(x))
        # The operator runs the last convolution itself: its result is k * k / group_width times the map.
        weight, bias = self.kernels.weight, self.kernels.bias
        return projected_dynamic_convolution(x, features, weight, bias, kernel=self.kernel)


class DynamicAttention(nn.Module):
    """A dynamic convolution between two projections (MHDLSA); neither softmax nor norm inside.

    Args:
        width: D.
        kernel: k, odd.
        group_width: Features that share a kernel; divides D.
        squeeze: D divided by this lies inside the network that makes kernels.
        dynamic: Whether it is dynamic; else the kernels are learned, one for every feature.

    Source: Li et al. 2023, section 3.2.
    """

    def __init__(self, width: int, kernel: int, group_width: int, squeeze: int, dynamic: bool = True) -> None:
        super().__init__()
        self.value = nn.Conv2d(width, width, 1, bias=False)
        self.convolution: nn.Module = (
            DynamicConvolution(width, kernel, group_width, squeeze)
            if dynamic
            else nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        )
        self.out = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        mixed = self.convolution(self.value(x)).contiguous(memory_format=torch.channels_last)
        projected: Tensor = self.out(mixed)
        return projected


class ChannelSelfAttention(nn.Module):
    """Channels attend to each other by how alike their maps are (SparseGSA, or Restormer's with softmax).

    Outside of training the maps are compared within overlapping crops of about the size that the network was trained
    on, each by itself, and where crops overlap their results are averaged.

    Args:
        width: D.
        heads: Heads, each of ``width / heads`` channels.
        activation: What makes weights of cosines, a name of :data:`backbones.attention.channel.ACTIVATIONS`.
        crop: Side of the crops, in pixels; None compares whole maps always.

    Source: Li et al. 2023, section 3.3; crops: Chu et al. 2022, "Improving Image Restoration by Revisiting Global
    Information Aggregation" (TLC).
    """

    def __init__(self, width: int, heads: int, activation: str, crop: int | None) -> None:
        super().__init__()
        self.heads, self.activation, self.crop = heads, activation, crop
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.qkv_depthwise = depthwise(3 * width)
        self.out = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        qkv = self.qkv_depthwise(self.qkv(x))
        size = x.shape[2:]
        if self.training or self.crop is None or max(size) <= self.crop:
            return self.attend(qkv)
        sides = [min(length, self.crop) for length in size]
        places = [crop_starts(length, side) for length, side in zip(size, sides, strict=True)]
        return averaged(self.attend(crops(qkv, places, sides)), places, x.shape)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention over each of these maps, projected: [N, 3 * D, H, W] to [N, D, H, W]."""
        q, k, v = qkv.chunk(3, 1)
        return projected_channel_attention(
            q, k, v, self.temperature, self.out.weight, heads=self.heads, activation=self.activation
        )


def crop_starts(length: int, side: int) -> list[int]:
    """Where crops begin along an axis: as few as cover it, at equal steps, the last one moved back to end with it.

    Args:
        length: Pixels along the axis.
        side: Pixels of a crop, at most ``length``.
    """
    number = (length - 1) // side + 1
    step = side if number == 1 else -(-(length - side) // (number - 1))
    return [*range(0, length - side, step), length - side]


def crops(x: Tensor, places: Sequence[Sequence[int]], sides: Sequence[int]) -> Tensor:
    """Cut crops out of maps, row by row: [B, D, H, W] to [n * B, D, h, w]."""
    (rows, columns), (height, width) = places, sides
    return torch.cat([x[..., row : row + height, column : column + width] for row in rows for column in columns])


def averaged(parts: Tensor, places: Sequence[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """Put crops back, the mean where they overlap: [n * B, D, h, w] to ``shape`` [B, D, H, W]."""
    (rows, columns), (height, width) = places, parts.shape[2:]
    batch, size = shape[0], tuple(shape[2:])
    total = parts.new_zeros(batch, parts.shape[1], *size).contiguous(memory_format=torch.channels_last)
    numbers = parts.new_zeros(size)
    corners = [(row, column) for row in rows for column in columns]
    for part, (row, column) in zip(parts.unflatten(0, (len(corners), batch)), corners, strict=True):
        place = (..., slice(row, row + height), slice(column, column + width))
        total[place] += part
        numbers[place] += 1
    return total / numbers
