"""Timing in turns and the count of live tensor memory."""

from __future__ import annotations

import time

import pytest
import torch

from backbones.timing import measure, peak_memory, ratio


def test_functions_run_in_turns_after_a_warm_up():
    calls: list[str] = []
    timings = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert len(timings["a"].runs) == 3


def test_summary_and_ratio():
    slow, fast = (lambda: time.sleep(0.03)), (lambda: time.sleep(0.01))
    timings = measure({"slow": slow, "fast": fast}, repeats=4)
    timing = timings["slow"]
    assert 0.03 <= timing.min <= timing.p50 <= timing.p90 <= timing.max < 1
    assert ratio(timings["slow"], timings["fast"]).median > 1
    own = ratio(timing, timing)
    assert (own.median, own.min, own.max) == (1, 1, 1)


def test_peak_counts_what_is_alive_at_once():
    def one_after_another() -> None:
        for _ in range(5):
            torch.ones(1000)

    def at_once() -> None:
        kept = [torch.ones(1000) for _ in range(5)]
        del kept

    assert peak_memory(one_after_another) == 4000
    assert peak_memory(at_once) == 20000


def test_the_device_decides_how_memory_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # another model of the process lies on a GPU
    for name in ("synchronize", "memory_allocated", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("asked the GPU"))
    assert peak_memory(lambda: torch.ones(1000)) == 4000
    assert peak_memory(lambda: torch.ones(1000), torch.device("cpu")) == 4000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_by_its_allocator():
    assert 4 << 20 <= peak_memory(lambda: torch.ones(1 << 20, device="cuda"), "cuda") < 8 << 20
    assert peak_memory(lambda: torch.ones(1000)) == 4000


def test_views_and_results_in_place_cost_nothing():
    def function() -> None:
        x = torch.ones(10, 100)
        x.view(100, 10).t()[3:].mul_(2)

    assert peak_memory(function) == 4000


def test_tensors_that_only_autograd_holds_are_counted():
    weight = torch.ones(1000, requires_grad=True)

    def function() -> None:
        y = weight
        for _ in range(10):
            y = y.exp()  # each result is kept for the backward pass
        y.sum().backward()

    assert 40000 <= peak_memory(function) <= 56000
