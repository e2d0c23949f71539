"""Cost of the attention core's sequence operators: fast form against literal one, and memory against length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.attention.attend import attend
from backbones.attention.autocorrelation import auto_correlation
from backbones.attention.flow import flow_attention
from backbones.attention.gated_linear import gated_linear_attention
from backbones.attention.probsparse import draw_keys, prob_sparse_attention
from backbones.attention.scan import scan_attention
from backbones.attention.selective_scan import selective_scan
from backbones.comparison import Memory, Speed, compare, grow, training_call


@dataclass(kw_only=True)
class Size:
    """Sizes of the measured inputs; width / heads channels per head."""

    batch: int = 16
    length: int = 720
    heads: int = 8
    width: int = 512
    states: int = 16
    """States per channel of the selective scan, whose channels are half the width."""
    device: str = "cpu"


class Case(NamedTuple):
    """A training step of an operator: makes a function of the backend that runs it forward and backward.

    Attributes:
        build: From a size to that function.
        linear: Memory is promised to grow linearly with the length.
    """

    build: Callable[[Size], Callable[[str], Any]]
    linear: bool = False


def _leaves(size: Size, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(size.device).requires_grad_() for shape in shapes]


def _heads(size: Size) -> tuple[int, int, int, int]:
    return size.batch, size.length, size.heads, size.width // size.heads


def _on_heads(operator: Callable[..., Tensor], **options: Any) -> Callable[[Size], Callable[[str], Any]]:
    def build(size: Size) -> Callable[[str], Any]:
        leaves = _leaves(size, *[_heads(size)] * 3)
        return training_call(leaves, lambda backend: operator(*leaves, backend=backend, **options))

    return build


def _probsparse(causal: bool) -> Callable[[Size], Callable[[str], Any]]:
    def build(size: Size) -> Callable[[str], Any]:
        drawn = draw_keys(size.length, size.length, 5, torch.Generator().manual_seed(0))
        return _on_heads(prob_sparse_attention, index_sample=drawn, causal=causal)(size)

    return build


def _selective_scan(size: Size) -> Callable[[str], Any]:
    tokens, channels = (size.batch, size.length), size.width // 2
    leaves = _leaves(
        size, (*tokens, channels), (*tokens, channels), (channels, size.states), *[(*tokens, size.states)] * 2
    )
    with torch.no_grad():
        leaves[1].copy_(F.softplus(leaves[1] - 3))
        leaves[2].copy_(-leaves[2].exp())
    x, step, rate, b, c = leaves

    def run(backend: str) -> Tensor:
        return selective_scan(x, step, rate, b, c, backend=backend)[0]

    return training_call(leaves, run)


def _scan(size: Size) -> Callable[[str], Any]:
    logits, values = leaves = _leaves(size, _heads(size)[:3], _heads(size))
    return training_call(leaves, lambda backend: scan_attention(logits, values, backend=backend)[0])


def _gated_linear(causal: bool) -> Callable[[Size], Callable[[str], Any]]:
    """Queries and keys of half the width, gates around 0.96, as a fresh layer has them."""

    def build(size: Size) -> Callable[[str], Any]:
        *tokens, width = _heads(size)
        narrow = (*tokens, max(1, width // 2))
        q, k, v, *logits = leaves = _leaves(size, narrow, narrow, (*tokens, width), *[narrow] * (2 - causal))

        def run(backend: str) -> Tensor:
            ahead, *back = (F.logsigmoid(logit) / 16 for logit in logits)
            behind = back[0] if back else None
            return gated_linear_attention(q, k, v, ahead, backward_gate=behind, backend=backend)[0]

        return training_call(leaves, run)

    return build


CASES = {
    "probsparse": Case(_probsparse(causal=False)),
    "probsparse_causal": Case(_probsparse(causal=True)),
    "autocorrelation": Case(_on_heads(auto_correlation, factor=3)),
    "autocorrelation_training": Case(_on_heads(auto_correlation, factor=3, shared_delays=True)),
    "selective_scan": Case(_selective_scan, linear=True),
    "flow": Case(_on_heads(flow_attention), linear=True),
    "flow_causal": Case(_on_heads(flow_attention, causal=True), linear=True),
    "scan": Case(_scan, linear=True),
    "gated_linear": Case(_gated_linear(causal=False), linear=True),
    "gated_linear_causal": Case(_gated_linear(causal=True), linear=True),
    "softmax": Case(_on_heads(attend)),
    "softmax_causal": Case(_on_heads(attend, causal=True)),
}
"""Name to what is measured; ``<operator>_<form>`` is a form of that operator."""


def chosen(names: Iterable[str]) -> list[str]:
    """The cases of these names, an operator's name standing for all its forms; all cases where none is given."""
    names = list(names)
    return [case for case in CASES if not names or any(case == name or case.startswith(f"{name}_") for name in names)]


def compare_forms(names: Iterable[str], size: Size, repeats: int = 5) -> list[Speed]:
    """Time a training step of both forms in turns, after a warm-up of each."""
    return [compare(name, CASES[name].build(size), repeats) for name in names]


def memory_growth(name: str, size: Size, lengths: Sequence[int] = (1024, 2048, 4096, 8192, 16384)) -> Memory:
    """Peak memory of a training step of the fast form at each length, see :func:`backbones.timing.peak_memory`."""

    def step(length: int) -> Callable[[], Any]:
        call = CASES[name].build(Size(**{**vars(size), "length": length}))
        return lambda: call("auto")

    return grow(name, lengths, step, size.device)
