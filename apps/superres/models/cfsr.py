"""CFSR: a light convolutional network whose large depth-wise kernels stand in for attention.

Paper: Wu et al., "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach", IEEE TIP 2024. Origin:
Aitical/CFSR, published without a licence file; written here from the paper's formulas. Three surprises: two of the
three edge masks are not the textbook ones (see ``EDGE_MASKS``), and published weights hold their sums, so they must be
kept; there is no residual around a layer's blocks, only around the 1x1 convolution after them; the layer norm's
epsilon is 1e-6.

Three forms compute the same function: with edge branches, for training (``edges="branches"``); with the branches
summed up, as weights are published (``edges="merged"``); and for inference what ``merge()`` makes of either, see
:mod:`apps.superres.models.cfsr_merged`. Features have their channels last in memory in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.config_checks import resolved_upsampler
from apps.superres.models.network import ResidualTrunk, run_block
from apps.superres.models.upsample import reach
from backbones.vision.layers import ChannelNorm, DropPath, drop_path_rates

if TYPE_CHECKING:
    from apps.superres.models.cfsr_config import CFSRConfig
    from apps.superres.models.cfsr_merged import MergedCFSR
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
        weight, bias = self.weight.to(dtype), cast(Tensor, self.bias).to(dtype)
        if self.branches:
            scales, masks = self.edge_scales.to(dtype), self.edge_masks.to(dtype)
            # Not as a product of matrices, which autocast would round.
            weight = weight + (scales[:, :, None, None] * masks[:, None]).sum(0)[:, None]
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
            image_skip=config.image_skip,
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
        from apps.superres.models.cfsr_merged import MergedCFSR

        merged = MergedCFSR(self.config, self.info)
        merged.fold(self)
        return merged
