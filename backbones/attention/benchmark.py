"""Cost of the attention operators on maps and packed sequences: fast form against literal one, memory against size.

Sizes are those of the papers' models at 224 x 224 pixels, of a deformable decoder at 512 x 512, and of networks that
restore crops of 64 x 64 or a frame of 320 x 180.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.attention.attend import attend
from backbones.attention.channel import projected_channel_attention
from backbones.attention.deformable import deformable_attention
from backbones.attention.dynamic import dynamic_convolution, projected_dynamic_convolution
from backbones.attention.gated_linear import gated_linear_attention
from backbones.attention.neighborhood import neighborhood_attention
from backbones.attention.packed import attend_packed
from backbones.attention.routed import routed_attention
from backbones.attention.window import window_attention
from backbones.comparison import Memory, Speed, compare, grow, training_call
from backbones.timing import peak_memory

SIDES = (28, 56, 112, 224)
"""Sides of the maps over which the growth of memory is measured."""


class Call(NamedTuple):
    """An operator with its inputs: ``run(backend)`` gives the output, ``leaves`` are what gradients are taken of."""

    run: Callable[[str], Tensor]
    leaves: list[Tensor]


class Case(NamedTuple):
    """What is measured of an operator.

    Attributes:
        build: From the side of the map and the device to the call.
        side: Side of the map whose time is measured.
        what: Sizes in words.
        linear: Memory is promised to grow linearly with the positions of the map.
    """

    build: Callable[[int, str], Call]
    side: int
    what: str
    linear: bool = False


class Peak(NamedTuple):
    """Peak bytes of a call in both forms."""

    name: str
    fast: int
    math: int


def _leaves(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def _neighborhood(heads: int, dilation: int) -> Callable[[int, str], Call]:
    def build(side: int, device: str) -> Call:
        q, k, v, bias = leaves = _leaves(device, *[(1, side, side, heads, 32)] * 3, (heads, 13, 13))
        options: dict[str, Any] = {"kernel_size": 7, "dilation": dilation, "bias": bias}
        return Call(lambda backend: neighborhood_attention(q, k, v, backend=backend, **options), leaves)

    return build


def _window(side: int, device: str) -> Call:
    q, k, v, bias = leaves = _leaves(device, *[(1, side, side, 3, 32)] * 3, (3, 49, 49))
    return Call(lambda backend: window_attention(q, k, v, window=7, shift=3, bias=bias, backend=backend), leaves)


def _routed(side: int, device: str) -> Call:
    """Regions of 8 x 8 positions, the first stage of BiFormer at 224 pixels (there topk is 1)."""
    side += -side % 8
    q, k, v = leaves = _leaves(device, *[(1, side, side, 2, 32)] * 3)
    return Call(lambda backend: routed_attention(q, k, v, regions=side // 8, topk=4, backend=backend), leaves)


def _gated_linear(side: int, device: str) -> Call:
    tokens = side * side
    q, k, v, ahead, back = leaves = _leaves(
        device, *[(1, tokens, 3, 16)] * 2, (1, tokens, 3, 32), *[(1, tokens, 3, 16)] * 2
    )

    def run(backend: str) -> Tensor:
        gates = (F.logsigmoid(ahead) / 16, F.logsigmoid(back) / 16)
        return gated_linear_attention(q, k, v, gates[0], backward_gate=gates[1], backend=backend)[0]

    return Call(run, leaves)


def _deformable(side: int, device: str) -> Call:
    shapes = [(side, side), (side // 2, side // 2), (side // 4, side // 4)]
    positions = sum(height * width for height, width in shapes)
    values, places, logits = leaves = _leaves(
        device, (1, positions, 8, 32), (1, positions, 8, 3, 4, 2), (1, positions, 8, 3, 4)
    )

    def run(backend: str) -> Tensor:
        weights = logits.flatten(-2).softmax(-1).unflatten(-1, (3, 4))
        return deformable_attention(values, shapes, torch.sigmoid(places), weights, backend=backend)

    return Call(run, leaves)


def _channel(side: int, device: str) -> Call:
    """Maps with their channels last in memory, as networks for restoration keep them."""
    *maps, temperature, projection = leaves = _leaves(device, *[(1, side, side, 48)] * 3, (6,), (48, 48))

    def run(backend: str) -> Tensor:
        q, k, v = (x.permute(0, 3, 1, 2) for x in maps)
        return projected_channel_attention(q, k, v, temperature, projection, heads=6, backend=backend)

    return Call(run, leaves)


def _dynamic(side: int, device: str) -> Call:
    x, kernels = leaves = _leaves(device, (1, 48, side, side), (1, 8, 7, 7, side, side))
    return Call(lambda backend: dynamic_convolution(x, kernels, backend=backend), leaves)


def _dynamic_frame(side: int, device: str) -> Call:
    """A map of 16 x 9 with about as many positions as a square of this side."""
    size = (side * 3 // 4, side * 4 // 3)
    x, kernels = leaves = _leaves(device, (1, 48, *size), (1, 8, 7, 7, *size))
    return Call(lambda backend: dynamic_convolution(x, kernels, backend=backend), leaves)


def _dynamic_projected(side: int, device: str) -> Call:
    x, *rest = leaves = _leaves(device, (1, 48, side, side), (1, 12, side, side), (8 * 49, 12), (8 * 49,))
    return Call(lambda backend: projected_dynamic_convolution(x, *rest, kernel=7, backend=backend), leaves)


def _packed(side: int, device: str) -> Call:
    """Sequences of 1 to 2 * side tokens, side of them."""
    lengths = [1 + (37 * i) % (2 * side) for i in range(side)]
    q, k, v = leaves = _leaves(device, *[(sum(lengths), 4, 32)] * 3)
    return Call(lambda backend: attend_packed(q, k, v, q_lengths=lengths, backend=backend), leaves)


def _attend(side: int, device: str) -> Call:
    q, k, v = leaves = _leaves(device, *[(1, side * side, 4, 32)] * 3)
    return Call(lambda backend: attend(q, k, v, backend=backend), leaves)


CASES = {
    "neighborhood_attention": Case(_neighborhood(4, 1), 56, "56 x 56, kernel 7, 4 heads of 32, bias", linear=True),
    "neighborhood_attention_dilated": Case(_neighborhood(2, 8), 56, "the same with dilation 8, 2 heads"),
    "routed_attention": Case(_routed, 56, "56 x 56, regions of 8 x 8, top 4, 2 heads of 32", linear=True),
    "gated_linear_attention": Case(_gated_linear, 56, "3,136 tokens, 3 heads of 16 / 32, both directions", linear=True),
    "window_attention": Case(_window, 56, "56 x 56, window 7 shifted by 3, 3 heads of 32, bias", linear=True),
    "deformable_attention": Case(_deformable, 64, "3 levels from 64 x 64, 5,376 queries, 8 heads of 32, 4 points"),
    "channel_attention": Case(_channel, 64, "64 x 64, 6 heads of 8 channels, projected", linear=True),
    "dynamic_convolution": Case(_dynamic, 64, "64 x 64, kernel 7, 8 groups of 6 channels", linear=True),
    "dynamic_convolution_frame": Case(_dynamic_frame, 240, "the same on 180 x 320"),
    "dynamic_convolution_projected": Case(_dynamic_projected, 64, "64 x 64, kernels from 12 features", linear=True),
    "attend_packed": Case(_packed, 56, "56 sequences of 1 to 112 tokens, 4 heads of 32"),
    "attend": Case(_attend, 28, "784 tokens, 4 heads of 32"),
}
"""Name to what is measured; ``<operator>_<form>`` is a form of that operator."""


def chosen(names: Iterable[str]) -> list[str]:
    """The cases of these names, an operator's name standing for all its forms; all cases where none is given."""
    names = list(names)
    return [case for case in CASES if not names or any(case == name or case.startswith(f"{name}_") for name in names)]


def speeds(names: Iterable[str], repeats: int = 5, device: str = "cpu", *, train: bool = False) -> list[Speed]:
    """Time both forms in turns: a forward pass without gradients, or forward and backward."""
    rows = []
    for name in names:
        call = CASES[name].build(CASES[name].side, device)
        rows.append(compare(name, _training(call) if train else _inference(call), repeats))
    return rows


def memory_growth(name: str, sides: Sequence[int] = SIDES, device: str = "cpu") -> Memory:
    """Peak memory of a training step of the fast form over maps of growing size, by number of positions."""

    def step(positions: int) -> Callable[[], Any]:
        training = _training(CASES[name].build(round(positions**0.5), device))
        return lambda: training("auto")

    return grow(name, [side * side for side in sides], step, device)


def peaks(names: Iterable[str], device: str = "cpu", *, train: bool = True) -> list[Peak]:
    """Peak memory of a training step, or of a forward pass without gradients, in both forms at the measured size."""
    rows = []
    for name in names:
        call = CASES[name].build(CASES[name].side, device)
        rows.append(_peak(name, _training(call) if train else _inference(call), device))
    return rows


def _peak(name: str, step: Callable[[str], Any], device: str) -> Peak:
    return Peak(name, peak_memory(lambda: step("auto"), device), peak_memory(lambda: step("math"), device))


def _training(call: Call) -> Callable[[str], Any]:
    return training_call(call.leaves, call.run)


def _inference(call: Call) -> Callable[[str], Any]:
    def run(backend: str) -> Tensor:
        with torch.inference_mode():
            return call.run(backend)

    return run
