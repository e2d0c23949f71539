"""CFSR for inference: norms, layer scales, edge branches and the layers' skips are inside of convolutions.

Every step is an identity of linear maps: a scale and shift before a 1x1 convolution, or a scale after one, belong into
its kernel and bias; convolutions of one map add up to one; ``x + convolution(x)`` is a convolution.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.cfsr import EPS, CFSRBlock, CFSRTrunk

if TYPE_CHECKING:
    from apps.superres.models.cfsr import CFSR
    from apps.superres.models.cfsr_config import CFSRConfig
    from apps.superres.models.info import ImageInfo


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
        x = _add(self.out(_multiply(self.depthwise(_gelu(self.gate(normed))), self.value(normed))), x)
        hidden = _gelu(self.expand(self.norm(x)))
        return _add(self.contract(_add(_gelu(self.edges(hidden)), hidden)), x)

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
        source = copy.deepcopy(source).cpu()  # not every GPU knows float64
        for name in ("range", "shallow", "norm", "after_body", "reconstruction"):
            self.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
        for merged, layer in zip(self.built_layers, source.built_layers, strict=True):
            for merged_block, block in zip(merged.blocks, layer.blocks, strict=True):
                cast(MergedBlock, merged_block).fold(cast(CFSRBlock, block))
            weight, bias = _precise(layer.convolution)
            _set(merged.convolution, weight + torch.eye(len(weight)).to(weight)[..., None, None], bias)
        self.eval()


# Below, ``fresh`` is what a layer has just made: where no gradient needs it, its memory takes the result. New memory
# costs a CPU as much as the arithmetic.


def _gelu(fresh: Tensor) -> Tensor:
    """The GELU, exact."""
    result: Tensor = F.gelu(fresh) if torch.is_grad_enabled() else torch.ops.aten.gelu_(fresh)
    return result


def _add(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum."""
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _multiply(fresh: Tensor, other: Tensor) -> Tensor:
    """The product."""
    return fresh * other if torch.is_grad_enabled() else fresh.mul_(other)


def _precise(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias in float64."""
    return convolution.weight.double(), cast(Tensor, convolution.bias).double()


def _after_norm(convolution: nn.Conv2d, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a 1x1 convolution together with the scale and shift of a norm before it."""
    weight, bias = _precise(convolution)
    return weight * norm.weight.double()[:, None, None], bias + weight.flatten(1) @ norm.bias.double()


def _scaled(convolution: nn.Conv2d, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution together with a scale of its outputs."""
    weight, bias = _precise(convolution)
    return weight * scale.double()[:, None, None, None], bias * scale.double()


def _set(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    convolution.weight.copy_(weight)
    cast(Tensor, convolution.bias).copy_(bias)
