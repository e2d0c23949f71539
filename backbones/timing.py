"""Time and memory of functions, measured side by side so that a busy machine is fair to all of them."""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Timing(NamedTuple):
    """Seconds per call.

    Attributes:
        p50: Median.
        p90: 90th percentile (the nearest measured run).
        min: Fastest run.
        max: Slowest run.
        runs: Every run, in order; run i of one function was made right beside run i of the others.
    """

    p50: float
    p90: float
    min: float
    max: float
    runs: tuple[float, ...]


class Ratio(NamedTuple):
    """How many times slower one function is than another: median and range over paired runs."""

    median: float
    min: float
    max: float


def measure(functions: Mapping[str, Callable[[], Any]], repeats: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Time functions in turns: each repeat runs all of them once, so that load on the machine hits all alike.

    Args:
        functions: Name to function without arguments.
        repeats: Measured runs of each.
        warmup: Runs of each before that.

    Returns:
        Name to timing, in seconds of wall clock. With a GPU each run ends when the device is idle.
    """
    runs: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(warmup + repeats):
        for name, function in functions.items():
            seconds = _seconds(function)
            if repeat >= warmup:
                runs[name].append(seconds)
    return {name: _summary(values) for name, values in runs.items()}


def ratio(slow: Timing, fast: Timing) -> Ratio:
    """Paired ratio of two timings of one :func:`measure` call."""
    ratios = [a / b for a, b in zip(slow.runs, fast.runs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _seconds(function: Callable[[], Any]) -> float:
    _synchronise()
    start = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _summary(runs: list[float]) -> Timing:
    ordered = sorted(runs)
    p90 = ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))]
    return Timing(statistics.median(ordered), p90, ordered[0], ordered[-1], tuple(runs))


def peak_memory(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Bytes of tensor memory that ``function`` holds at once at most, on top of what existed before.

    On a CUDA device torch's allocator counts them, whose peak statistics of that device start anew. Elsewhere every
    storage that an operator makes, forward or backward, is counted from its birth to its end, whichever tensor keeps it
    alive; scratch memory inside an operator's kernel is not seen. Run it apart from timing: counting is slow.

    Args:
        function: What is measured.
        device: Where its tensors lie, whatever else the process has used.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    counter = _LiveBytes()
    with counter:
        function()
    return counter.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages born under it that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        for leaf in tree_leaves(result):
            if _has_storage(leaf):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._known:  # a view or an in-place result
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _has_storage(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
