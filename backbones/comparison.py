"""Fast against literal forms of operators and models, and the growth of their memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.timing import measure, peak_memory, ratio


class Speed(NamedTuple):
    """Seconds of a call in both forms, and paired ratios literal / fast."""

    name: str
    fast_s: float
    math_s: float
    ratio: float
    ratio_min: float
    ratio_max: float


class Memory(NamedTuple):
    """Peak bytes of a call over numbers of tokens; bytes grow like tokens ** exponent."""

    name: str
    lengths: list[int]
    bytes: list[int]
    exponent: float


class Part(NamedTuple):
    """A part of a model in two forms.

    Attributes:
        name: What it is.
        fast_ms: Median of the fast form.
        literal_ms: Median of the literal one.
        ratio: literal / fast, the median over paired runs.
        ratio_min: Smallest.
        ratio_max: Largest.
        fast_mib: Peak memory of the fast form.
        literal_mib: Peak memory of the literal one.
        difference: Largest difference of the results, by the largest number in them.
    """

    name: str
    fast_ms: float
    literal_ms: float
    ratio: float
    ratio_min: float
    ratio_max: float
    fast_mib: float
    literal_mib: float
    difference: float


def compare_forms(
    name: str, fast: Callable[[], Any], literal: Callable[[], Any], repeats: int, *, of: Callable[[Any], Tensor]
) -> Part:
    """Measure two forms in turns.

    Args:
        name: What they are forms of.
        fast: One call of the fast form.
        literal: One call of the other.
        repeats: Measured calls of each.
        of: From a result to the tensor that the forms are compared by.
    """
    timings = measure({"fast": fast, "literal": literal}, repeats=repeats)
    ours, plain = of(fast()), of(literal())
    return Part(
        name,
        timings["fast"].p50 * 1e3,
        timings["literal"].p50 * 1e3,
        *ratio(timings["literal"], timings["fast"]),
        peak_memory(fast, ours.device) / 2**20,
        peak_memory(literal, ours.device) / 2**20,
        float((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-12)),
    )


def compare(name: str, call: Callable[[str], Any], repeats: int = 5) -> Speed:
    """Time ``call("auto")`` and ``call("math")`` in turns, after a warm-up of each."""
    timings = measure({"fast": lambda: call("auto"), "math": lambda: call("math")}, repeats=repeats)
    paired = ratio(timings["math"], timings["fast"])
    return Speed(name, timings["fast"].p50, timings["math"].p50, *paired)


def training_call(leaves: Sequence[Tensor], run: Callable[[str], Tensor]) -> Callable[[str], Any]:
    """Forward and backward with one fixed gradient of the output, as a function of the backend."""
    with torch.no_grad():
        grad = torch.ones_like(run("auto"))
    return lambda backend: torch.autograd.grad(run(backend), leaves, grad)


def grow(
    name: str, lengths: Sequence[int], call: Callable[[int], Callable[[], Any]], device: torch.device | str = "cpu"
) -> Memory:
    """Peak memory of ``call(length)()`` at each length, see :func:`backbones.timing.peak_memory`."""
    peaks = [peak_memory(call(length), device) for length in lengths]
    return Memory(name, list(lengths), peaks, growth_exponent(lengths, peaks))


def growth_exponent(lengths: Sequence[int], peaks: Sequence[int]) -> float:
    """Slope of log(bytes) over log(length), by least squares: 1 is linear, 2 quadratic."""
    xs, ys = [math.log(length) for length in lengths], [math.log(peak) for peak in peaks]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)
