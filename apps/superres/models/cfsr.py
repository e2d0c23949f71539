"""CFSR: a light convolutional network whose large depth-wise kernels stand in for attention.

Paper: Wu et al., "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach", IEEE TIP 2024. Origin:
Aitical/CFSR, published without a licence file; written here from the paper's formulas. Three surprises: two of the
three edge masks are not the textbook ones (see ``EDGE_MASKS``), and published weights hold their sums, so they must be
kept; there is no residual around a layer's blocks, only around the 1x1 convolution after them; the layer norm's
epsilon is 1e-6.

Three forms compute the same function: with edge branches, for training (``edges="branches"``); with the branches
summed up, as weights are published (``edges="merged"``); and :class:`MergedCFSR`, for inference, which ``merge()``
makes of either. Features have their channels last in memory in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.config import resolved_upsampler
from apps.superres.models.network import ResidualTrunk, run_block
from apps.superres.models.upsample import reach
from backbones.vision.layers import ChannelNorm, DropPath, drop_path_rates

if TYPE_CHECKING:
    from apps.superres.models.config import CFSRConfig
    from apps.superres.models.info import ImageInfo

EPS = 1e-6
"""Of the layer norms."""

EDGE_MASKS = (
    ((0, 1, -1), (2, 0, -2), (1, 0, -1)),
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((1, 0, 0), (1, -4, 1), (0, 1, 0)),
)
"""Sobel across, Sobel down and Laplacian as the official network has them: the first one's top left number stands in
the top middle, the last one's top middle number in the top left."""


class EdgeConvolution(nn.Conv2d):
    """A depth-wise 3x3 convolution, in training beside others whose kernels are scaled edge masks.

    The sum of convolutions of one map is the convolution with the sum of kernels, and that is what is computed.

    Args:
        channels: Channels of the map.
        branches: Whether there are edge branches.
    """

    edge_masks: Tensor

    def __init__(self, channels: int, branches: bool = True) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        self.branches = branches
        if branches:
            self.edge_scales = nn.Parameter(torch.randn(len(EDGE_MASKS), channels) * 1e-3)
            self.edge_biases = nn.Parameter(torch.randn(len(EDGE_MASKS), channels) * 1e-3)
            self.register_buffer("edge_masks", torch.tensor(EDGE_MASKS, dtype=torch.float32), persistent=False)

    def summed(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Kernel [channels, 1, 3, 3] and bias [channels] of all branches together, computed in ``dtype``."""
        assert self.bias is not None
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        if self.branches:
            scales, masks = self.edge_scales.to(dtype), self.edge_masks.to(dtype)
            weight = weight + torch.einsum("mc,mij->cij", scales, masks)[:, None]
            bias = bias + self.edge_biases.to(dtype).sum(0)
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        weight, bias = self.summed()
        return F.conv2d(x, weight, bias, padding=1, groups=self.groups)


class ConvolutionalModulation(nn.Module):
    """Values weighted by what a large depth-wise kernel sees around them, where a transformer has attention.

    Args:
        width: D, features.
        kernel: Side of the depth-wise kernel, odd.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, eps=EPS)
        self.gate = nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.value = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        normed = self.norm(x)
        weights = self.depthwise(F.gelu(self.gate(normed)))
        mixed: Tensor = self.out(weights * self.value(normed))
        return mixed


class EdgeFeedForward(nn.Module):
    """Feed-forward network with a small convolution that keeps edges.

    Args:
        width: D, features.
        hidden: Features inside.
        branches: Whether the convolution has edge branches.
    """

    def __init__(self, width: int, hidden: int, branches: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, eps=EPS)
        self.expand = nn.Conv2d(width, hidden, 1)
        self.edges = EdgeConvolution(hidden, branches)
        self.contract = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        hidden = F.gelu(self.expand(self.norm(x)))
        mixed: Tensor = self.contract(hidden + F.gelu(self.edges(hidden)))
        return mixed


class CFSRBlock(nn.Module):
    """Modulation and feed-forward network, each scaled by channel and added.

    Args:
        config: Sizes of the network.
        drop_path: Share of samples whose branches are left out in training.
    """

    def __init__(self, config: CFSRConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width = config.width
        self.modulation = ConvolutionalModulation(width, config.kernel)
        self.modulation_scale = nn.Parameter(torch.full((width,), config.layer_scale))
        self.feedforward = EdgeFeedForward(width, int(width * config.mlp_ratio), config.edges == "branches")
        self.feedforward_scale = nn.Parameter(torch.full((width,), config.layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        x = x + self.drop_path(self.modulation_scale[:, None, None] * self.modulation(x))
        return x + self.drop_path(self.feedforward_scale[:, None, None] * self.feedforward(x))


class CFSRLayer(nn.Module):
    """Blocks, then a 1x1 convolution.

    Args:
        blocks: Applied in order.
        width: D, features.
        skip: Add the convolution to its own input, not to that of the blocks.
        checkpointing: Compute blocks again in the backward pass.
    """

    blocks: nn.ModuleList

    def __init__(self, blocks: Sequence[nn.Module], width: int, *, skip: bool, checkpointing: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.convolution = nn.Conv2d(width, width, 1)
        self.skip = skip
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        for block in self.blocks:
            x = run_block(block, x, self.checkpointing)
        mixed: Tensor = self.convolution(x)
        return x + mixed if self.skip else mixed


class CFSRTrunk(ResidualTrunk):
    """What the forms of CFSR share: everything outside the layers.

    Args:
        config: Sizes of the network.
        info: Scale and channels.
    """

    layers: nn.ModuleList

    def __init__(self, config: CFSRConfig, info: ImageInfo) -> None:
        upsampler = resolved_upsampler(config.upsampler, "light", info)
        # One pixel for each 3x3 convolution: the first, the last of the body, and one in every block.
        body = 2 + sum(config.depths) * (config.kernel // 2 + 1)
        super().__init__(
            info,
            width=config.width,
            upsampler=upsampler,
            image_range=config.image_range,
            receptive_radius=body + reach(upsampler, info.scale),
        )
        self.config = config
        self.info = info
        self.norm = ChannelNorm(config.width, eps=EPS)
        self.after_body = nn.Conv2d(config.width, config.width, 3, padding=1)

    @property
    def built_layers(self) -> list[CFSRLayer]:
        """The layers, in order."""
        return cast("list[CFSRLayer]", list(self.layers))

    def layer(self, blocks: Sequence[nn.Module], skip: bool) -> CFSRLayer:
        """A layer of these blocks."""
        return CFSRLayer(blocks, self.config.width, skip=skip, checkpointing=self.config.checkpointing)

    def deep(self, shallow: Tensor) -> Tensor:
        """Deep features, [B, D, H, W] to the same."""
        x = shallow
        for layer in self.built_layers:
            x = layer(x)
        features: Tensor = self.after_body(self.norm(x))
        return features


class CFSR(CFSRTrunk):
    """CFSR in a form that can be trained.

    Args:
        config: Sizes of the network.
        info: Scale and channels.
    """

    def __init__(self, config: CFSRConfig, info: ImageInfo) -> None:
        super().__init__(config, info)
        self.layers = nn.ModuleList(
            self.layer([CFSRBlock(config, rate) for rate in rates], skip=True)
            for rates in drop_path_rates(config.drop_path, config.depths)
        )

    def merge(self) -> MergedCFSR:
        """The same function in fewer steps, for inference; this network stays as it is.

        Kernels are folded in float64, so the two differ by no more than the rounding of single operations.
        """
        merged = MergedCFSR(self.config, self.info)
        merged.fold(self)
        return merged


class PlainNorm(nn.Module):
    """Layer norm over the channels of a map without scale and shift, [B, D, H, W] to the same.

    Args:
        width: D, features.
    """

    ones: Tensor
    zeros: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # The kernel for a CPU is faster with a scale and a shift than without.
        self.register_buffer("ones", torch.ones(width), persistent=False)
        self.register_buffer("zeros", torch.zeros(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position by itself."""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.ones.shape, self.ones, self.zeros, EPS)
        return normed.permute(0, 3, 1, 2)


class MergedBlock(nn.Module):
    """A block whose norms, scales and edge branches are inside its convolutions.

    Gate and value stay two convolutions: halves of one's result would be read with gaps, which costs more.

    Args:
        width: D, features.
        hidden: Features of the feed-forward network.
        kernel: Side of the depth-wise kernel.
    """

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.norm = PlainNorm(width)
        self.gate = nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.value = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.expand = nn.Conv2d(width, hidden, 1)
        self.edges = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        normed = self.norm(x)
        x = _add(self.out(_multiply(self.depthwise(F.gelu(self.gate(normed))), self.value(normed))), x)
        hidden = F.gelu(self.expand(self.norm(x)))
        return _add(self.contract(_add(F.gelu(self.edges(hidden)), hidden)), x)

    @torch.no_grad()
    def fold(self, block: CFSRBlock) -> None:
        """Take over the function of a block."""
        modulation, feedforward = block.modulation, block.feedforward
        _set(self.gate, *_after_norm(modulation.gate, modulation.norm))
        _set(self.value, *_after_norm(modulation.value, modulation.norm))
        _set(self.depthwise, *_precise(modulation.depthwise))
        _set(self.out, *_scaled(modulation.out, block.modulation_scale))
        _set(self.expand, *_after_norm(feedforward.expand, feedforward.norm))
        _set(self.edges, *feedforward.edges.summed(torch.float64))
        _set(self.contract, *_scaled(feedforward.contract, block.feedforward_scale))


class MergedCFSR(CFSRTrunk):
    """CFSR for inference; gives what the network gives that it was made of by :meth:`CFSR.merge`.

    The norm before the 3x3 convolution after the body keeps its scale and shift: zeros around the map are not shifted.

    Args:
        config: Sizes of the network.
        info: Scale and channels.
    """

    def __init__(self, config: CFSRConfig, info: ImageInfo) -> None:
        super().__init__(config, info)
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.layers = nn.ModuleList(
            self.layer([MergedBlock(width, hidden, config.kernel) for _ in range(depth)], skip=False)
            for depth in config.depths
        )

    @torch.no_grad()
    def fold(self, source: CFSR) -> None:
        """Take over the function of a network of the same sizes, its device and type too."""
        self.to(source.after_body.weight)
        for name in ("range", "shallow", "norm", "after_body", "reconstruction"):
            self.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
        for merged, layer in zip(self.built_layers, source.built_layers, strict=True):
            for merged_block, block in zip(merged.blocks, layer.blocks, strict=True):
                cast(MergedBlock, merged_block).fold(cast(CFSRBlock, block))
            weight, bias = _precise(layer.convolution)
            _set(merged.convolution, weight + torch.eye(len(weight)).to(weight)[..., None, None], bias)
        self.eval()


def _add(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of ``fresh`` where no gradient needs its present content."""
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _multiply(fresh: Tensor, other: Tensor) -> Tensor:
    """The product, in the memory of ``fresh`` where no gradient needs its present content."""
    return fresh * other if torch.is_grad_enabled() else fresh.mul_(other)


def _precise(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias in float64."""
    assert convolution.bias is not None
    return convolution.weight.double(), convolution.bias.double()


def _after_norm(convolution: nn.Conv2d, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a 1x1 convolution together with the scale and shift of a norm before it."""
    weight, bias = _precise(convolution)
    return weight * norm.weight.double()[:, None, None], bias + weight.flatten(1) @ norm.bias.double()


def _scaled(convolution: nn.Conv2d, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution together with a scale of its outputs."""
    weight, bias = _precise(convolution)
    return weight * scale.double()[:, None, None, None], bias * scale.double()


def _set(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    assert convolution.bias is not None
    convolution.weight.copy_(weight)
    convolution.bias.copy_(bias)
