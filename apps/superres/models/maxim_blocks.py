"""Blocks of MAXIM: gated mixing over blocks and grids of pixels, channel attention, cross gating between maps.

Shape legend: B batch, H x W map, D features, p side of a block or of a grid. Maps have their channels last, [B, H, W,
D], which for convolutions is a map with its channels last in memory, so that nothing is copied between the two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""Of the layer norms, Flax's value."""
REDUCTION = 4
"""Features per feature inside the channel attention."""
SLOPE = 0.2
"""Of the leaky ReLUs."""
CUT_DEVIATION = 0.87962566103423978
"""Standard deviation of a unit normal that is cut at two."""
GATE_STD = 1e-3
"""Of the first weights between the positions that gates of gated MLPs are mixed from."""


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, which is what Flax means by GELU."""
    return F.gelu(x, approximate="tanh")


def convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution on a map whose channels are last, [B, H, W, D] to the same layout."""
    result: Tensor = convolution(x.permute(0, 3, 1, 2))
    return result.permute(0, 2, 3, 1)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W, D] to another size, bilinear; averages over what falls together where it shrinks.

    Computed in float32: antialiasing in half types does not exist on every device.
    """
    if x.shape[1:3] == (height, width):
        return x
    precise = torch.promote_types(x.dtype, torch.float32)
    y = F.interpolate(x.permute(0, 3, 1, 2).to(precise), size=(height, width), mode="bilinear", antialias=True)
    return y.to(x.dtype).permute(0, 2, 3, 1)


class SpatialLinear(nn.Module):
    """One linear layer over positions, the same for every channel.

    Positions are either those of a block of neighbours, p x p pixels, mixed alike in all blocks; or the cells of a
    fixed p x p grid over the map, mixed alike for all places within a cell, so that what is far apart meets.

    Args:
        side: p; sides of maps are multiples of it.
        grid: Mix over the grid, otherwise over blocks.

    Source: Tu et al. 2022, section 3.2.
    """

    def __init__(self, side: int, grid: bool) -> None:
        super().__init__()
        self.side, self.grid = side, grid
        self.mix = nn.Linear(side**2, side**2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        batch, height, width, channels = x.shape
        side = self.side
        inner = (side, -1) if self.grid else (-1, side)
        cells = x.unflatten(2, inner).unflatten(1, inner)  # B, H / p, p, W / p, p, D; for grids p before the others
        order = (0, 1, 3, 2, 4, 5) if self.grid else (0, 2, 4, 1, 3, 5)
        positions = cells.permute(order).reshape(batch, side**2, -1)  # B, p * p, all that is mixed alike
        # The positions in front make it one large product per image.
        mixed = torch.baddbmm(self.mix.bias[:, None], self.mix.weight.expand(batch, -1, -1), positions)
        back = (0, 1, 3, 2, 4, 5) if self.grid else (0, 3, 1, 4, 2, 5)
        apart = (height // side, width // side)
        cells = mixed.view(batch, side, side, *apart, channels).permute(back)
        return cells.reshape(batch, height, width, channels)

    def extra_repr(self) -> str:
        """What is mixed."""
        return f"side={self.side}, grid={self.grid}"


class GatedMlp(nn.Module):
    """A gated MLP whose gates are mixed over positions, added to its input.

    Args:
        width: D.
        mixing: The mixing of positions.

    Source: Tu et al. 2022, section 3.2, after Liu et al. 2021 ("Pay Attention to MLPs").
    """

    def __init__(self, width: int, mixing: SpatialLinear) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.expand = nn.Linear(width, 2 * width)
        self.gate_norm = nn.LayerNorm(width, eps=EPS)
        self.mixing = mixing
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        values, gates = gelu(self.expand(self.norm(x))).chunk(2, -1)
        gates = self.mixing(self.gate_norm(gates))
        mixed: Tensor = x + self.out(values * (gates + 1))
        return mixed


class MultiAxisBlock(nn.Module):
    """Half of the features mixed over the grid, half over blocks, added to the input.

    Args:
        width: D.
        grid: Side of the grid.
        block: Side of the blocks, in pixels.

    Source: Tu et al. 2022, section 3.2, figure 3.
    """

    def __init__(self, width: int, grid: int, block: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.expand = nn.Linear(width, 2 * width)
        self.over_grid = GatedMlp(width, SpatialLinear(grid, grid=True))
        self.over_blocks = GatedMlp(width, SpatialLinear(block, grid=False))
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        far, near = gelu(self.expand(self.norm(x))).chunk(2, -1)
        mixed: Tensor = x + self.out(torch.cat([self.over_grid(far), self.over_blocks(near)], -1))
        return mixed


class ChannelAttention(nn.Module):
    """Weighs channels by their means over the map.

    Args:
        width: D.

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, max(1, width // REDUCTION))
        self.excite = nn.Linear(max(1, width // REDUCTION), width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        means = x.mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class ConvolutionBlock(nn.Module):
    """Two convolutions and channel attention, added to the input.

    Args:
        width: D.

    Source: RCAB of Zhang et al. 2018, with the layer norm of Tu et al. 2022.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.attention = ChannelAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        y = F.leaky_relu(convolved(self.first, self.norm(x)), SLOPE)
        mixed: Tensor = x + self.attention(convolved(self.second, y))
        return mixed


class PointwiseBlock(nn.Module):
    """An MLP over channels and channel attention, added to the input.

    Args:
        width: D.

    Source: Tu et al. 2022, bottleneck of the network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.attention = ChannelAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        mixed: Tensor = x + self.attention(self.contract(gelu(self.expand(self.norm(x)))))
        return mixed


class SpatialGates(nn.Module):
    """Gates for another map, from this one: mixed over the grid and over blocks.

    Args:
        width: D.
        grid: Side of the grid.
        block: Side of the blocks, in pixels.
    """

    def __init__(self, width: int, grid: int, block: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.LayerNorm(width, eps=EPS), nn.Linear(width, width), nn.GELU("tanh"))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.expand = nn.Linear(width, 2 * width)
        self.over_grid = SpatialLinear(grid, grid=True)
        self.over_blocks = SpatialLinear(block, grid=False)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, D] to values and gates of the same shape."""
        values = self.before(x)
        far, near = gelu(self.expand(self.norm(values))).chunk(2, -1)
        return values, self.out(torch.cat([self.over_grid(far), self.over_blocks(near)], -1))


class CrossGating(nn.Module):
    """Two maps gate each other.

    Args:
        narrow: Features of the first map as it comes; D after a 1x1 projection.
        other: Features of the second map as it comes.
        width: D.
        grid: Side of the grid.
        block: Side of the blocks, in pixels.
        enlarge: The second map comes at half the resolution and is brought up by a transposed convolution.

    Source: Tu et al. 2022, section 3.3.
    """

    def __init__(self, narrow: int, other: int, width: int, grid: int, block: int, *, enlarge: bool = False) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(other, width, 2, stride=2) if enlarge else None
        self.project_first = nn.Linear(narrow, width)
        self.project_second = nn.Linear(width if enlarge else other, width)
        self.gates_first = SpatialGates(width, grid, block)
        self.gates_second = SpatialGates(width, grid, block)
        self.out_first = nn.Linear(width, width)
        self.out_second = nn.Linear(width, width)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, narrow] and [B, H, W, other] to both together, and the second gated, [B, H, W, D] each."""
        if self.up is not None:
            second = convolved(self.up, second)
        first, second = self.project_first(first), self.project_second(second)
        values, gates = self.gates_first(first)
        other_values, other_gates = self.gates_second(second)
        second = second + self.out_second(other_values * gates)
        return first + self.out_first(values * other_gates) + second, second


class SupervisedAttention(nn.Module):
    """Gives a restored image between stages, and features weighed by it for the next.

    Args:
        width: D.
        channels: Of images.

    Source: Zamir et al. 2021 (MPRNet), section 3.2.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(width, width, 3, padding=1)
        self.image = nn.Conv2d(width, channels, 3, padding=1)
        self.attention = nn.Conv2d(channels, width, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, H, W, D] and the image [B, H, W, C] to features for the next stage, and the restored image."""
        restored = convolved(self.image, x) + image
        weights = torch.sigmoid(convolved(self.attention, restored))
        return x + convolved(self.features, x) * weights, restored


class ScaleMixing(nn.Module):
    """Maps of all levels brought to the size of one, each projected to its features, side by side.

    Args:
        widths: Features of every map.
        width: D, features that each gets.

    Source: Tu et al. 2022, section 3.1. A projection of positions changes places with a bilinear enlargement without a
    change of the result, and costs less before it.
    """

    def __init__(self, widths: list[int], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(own, width) for own in widths)

    def forward(self, maps: list[Tensor], height: int, width: int) -> Tensor:
        """Maps [B, h, w, own] to [B, H, W, maps * D]."""
        sized = [
            resized(project(x), height, width) if x.shape[1] < height else project(resized(x, height, width))
            for x, project in zip(maps, self.projections, strict=True)
        ]
        return torch.cat(sized, -1)


def init_weights(module: nn.Module) -> None:
    """First values, for ``Module.apply``: Flax's, but gates of gated MLPs begin near one.

    Flax's are truncated normal weights of variance 1 / inputs, and zero biases. The gates follow Liu et al. 2021.
    """
    if isinstance(module, GatedMlp):
        nn.init.normal_(module.mixing.mix.weight, std=GATE_STD)
    if not isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        return
    weight = module.weight  # outputs first, but for transposed convolutions
    inputs = weight.transpose(0, 1)[0].numel() if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
    std = 1 / math.sqrt(inputs) / CUT_DEVIATION
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
