"""Networks computed as their papers write them down: what the fast forms are measured against.

Shape legend: B batch, D features, H x W map.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models import craft_attention, hat_attention
from apps.superres.models.cfsr import EDGE_MASKS, EdgeConvolution
from backbones.attention import dispatch
from backbones.attention.partition import Pair, merge, pair, partition
from backbones.attention.tables import table
from backbones.vision.layers import ChannelNorm


class LiteralEdges(nn.Module):
    """The edge branches of CFSR one by one, each a convolution of its own.

    Args:
        edges: Whose weights are taken.
    """

    def __init__(self, edges: EdgeConvolution) -> None:
        super().__init__()
        self.edges = edges

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        edges = self.edges
        found = F.conv2d(x, edges.weight, edges.bias, padding=1, groups=edges.groups)
        for index in range(len(EDGE_MASKS) if edges.branches else 0):
            kernel = edges.edge_scales[index][:, None, None, None] * edges.edge_masks[index]
            found = found + F.conv2d(x, kernel, edges.edge_biases[index], padding=1, groups=edges.groups)
        return found


class LiteralNorm(nn.Module):
    """A layer norm over the second axis, step by step.

    Args:
        norm: Whose weights are taken.
    """

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to the same."""
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        normed = (x - mean) / (variance + self.norm.eps).sqrt()
        return normed * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def literal(model: nn.Module) -> nn.Module:
    """A copy whose norms and edge branches are computed step by step; for attention see :func:`literal_attention`."""
    written = copy.deepcopy(model)
    for name, module in list(written.named_modules()):
        parent = written.get_submodule(name.rpartition(".")[0])
        if isinstance(module, EdgeConvolution):
            setattr(parent, name.rpartition(".")[2], LiteralEdges(module))
        elif isinstance(module, ChannelNorm):
            setattr(parent, name.rpartition(".")[2], LiteralNorm(module))
    return written


@contextmanager
def literal_attention() -> Iterator[None]:
    """Within, attention is matrix products and a softmax; that within windows is cut out, masked and put back."""
    layers: tuple[Any, ...] = (hat_attention, craft_attention)
    before = [layer.window_attention for layer in layers]
    try:
        for layer in layers:
            layer.window_attention = windows_by_products
        with dispatch.force("math"):
            yield
    finally:
        for layer, function in zip(layers, before, strict=True):
            layer.window_attention = function


def windows_by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | Pair,
    shift: int | Pair = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
    wrap: bool = False,
) -> Tensor:
    """Window attention as Swin's code has it: roll, cut, product, bias, mask of -100, softmax, product, put back, roll.

    Args:
        q: Queries, [B, H, W, h, d]; both sides multiples of the window.
        k: Keys, likewise.
        v: Values, likewise.
        window: Side of a window, or (height, width).
        shift: Of the windows, down and to the right.
        bias: [h, n, n].
        scale: Factor on the queries.
        wrap: Windows that hold tokens from both sides of the map are not masked.
    """
    sides, shifts = pair("window", window), pair("shift", shift, least=0)
    height, width, _, channels = q.shape[1:]
    away, back = [-by for by in shifts], list(shifts)
    q, k, v = (
        partition(tensor.roll(away, (1, 2)) if any(shifts) else tensor, sides).transpose(1, 2) for tensor in (q, k, v)
    )  # B * windows, h, n, d
    logits = (q * (channels**-0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    logits = logits if bias is None else logits + bias
    if any(shifts) and not wrap:
        mask = _mask(height, width, sides, shifts, logits.dtype, logits.device)
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    mixed = merge((logits.softmax(-1) @ v).transpose(1, 2), sides, height, width)
    return mixed.roll(back, (1, 2)) if any(shifts) else mixed


@table(maxsize=8)
def _mask(height: int, width: int, sides: Pair, shifts: Pair, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-100 between tokens that a shift brought together, [windows, n, n]; kept, as careful code does."""
    parts = []
    for length, side, shift in zip((height, width), sides, shifts, strict=True):
        place = torch.arange(length, device=device)
        parts.append((place >= length - side).long() + (place >= length - shift).long() if shift else 0 * place)
    regions = (3 * parts[0][:, None] + parts[1])[None, :, :, None, None]
    tokens = partition(regions, sides).flatten(1)
    return torch.where(tokens[:, :, None] == tokens[:, None], 0.0, -100.0).to(dtype)
