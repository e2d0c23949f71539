"""The selective scan: all forms agree with the loop over time, in values and gradients, for every size of step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from backbones import attention
from backbones.attention import selective_scan as module
from backbones.attention.selective_scan import selective_scan
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError

NAMES = ("x", "dt", "A", "B", "C", "D", "state")


def make(batch=2, tokens=9, channels=5, states=3, shift=-2.0, seed=0, dtype=torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "x": normal(batch, tokens, channels),
        "dt": F.softplus(normal(batch, tokens, channels) + shift),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, tokens, states),
        "C": normal(batch, tokens, states),
        "D": normal(channels),
        "state": normal(batch, channels, states),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}


def values_and_gradients(inputs: dict[str, Tensor], **options) -> list[Tensor]:
    y, state = selective_scan(**inputs, **options)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    loss = (y * weight).sum() + (state * state.detach().cos()).sum()
    return [y, state, *torch.autograd.grad(loss, list(inputs.values()))]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    channels=st.integers(1, 5),
    states=st.integers(1, 4),
    shift=st.sampled_from([-6.0, -2.0, 2.0, 40.0]),
    chunk=st.sampled_from([None, 1, 2, 7, 16, 64]),
    seed=st.integers(0, 9),
)
def test_fast_equals_loop_in_values_and_gradients(batch, tokens, channels, states, shift, chunk, seed):
    inputs = make(batch, tokens, channels, states, shift, seed)
    expected = values_and_gradients(inputs, backend="math")
    found = values_and_gradients(inputs, chunk=chunk)
    for name, a, b in zip(("y", "state", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("shift", [-6.0, 0.0, 30.0, 300.0])
def test_single_precision_survives_any_decay(shift):
    """Cumulative decays underflow here long before the end; the fast form must not divide by them."""
    inputs = make(2, 300, 6, 4, shift)
    expected = values_and_gradients(inputs, backend="math")
    single = {name: tensor.detach().float().requires_grad_() for name, tensor in inputs.items()}
    for found, exact in zip(values_and_gradients(single), expected, strict=True):
        assert torch.isfinite(found).all()
        scale = exact.abs().max()
        assert (found.double() - exact).abs().max() <= 2e-5 * scale + 1e-6


def test_gradients_are_those_of_finite_differences():
    inputs = make(1, 5, 2, 2)
    assert torch.autograd.gradcheck(
        lambda *tensors: selective_scan(**dict(zip(NAMES, tensors, strict=True)), chunk=2), tuple(inputs.values())
    )


@pytest.mark.parametrize("tokens", [1, 2, 13, 16])
def test_form_without_a_loop_equals_the_loop(tokens):
    inputs = make(2, tokens)
    plain = [inputs[name] for name in ("state", "x", "dt", "A", "B", "C")]
    for found, expected in zip(module._doubling(*plain), module._loop(*plain), strict=True):
        torch.testing.assert_close(found, expected)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 19), max_size=4, unique=True), seed=st.integers(0, 5))
def test_streaming_equals_one_pass(cuts, seed):
    inputs = {name: tensor.detach() for name, tensor in make(2, 20, seed=seed).items()}
    state = inputs.pop("state")
    whole, after = selective_scan(**inputs, state=state)
    parts = []
    edges = [0, *sorted(cuts), 20]
    for start, stop in pairwise(edges):
        piece = {n: t[:, start:stop] if n in ("x", "dt", "B", "C") else t for n, t in inputs.items()}
        y, state = selective_scan(**piece, state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, after)


def test_inputs_are_left_as_they_were():
    for batch, tokens in ((1, 4), (3, 1)):
        inputs = make(batch, tokens)
        copies = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        values_and_gradients(inputs)
        for name, copy in copies.items():
            assert torch.equal(inputs[name], copy), name


def test_zero_step_passes_the_state_on():
    inputs = {name: tensor.detach() for name, tensor in make().items()}
    inputs["dt"] = torch.zeros_like(inputs["dt"])
    _, state = selective_scan(**inputs)
    torch.testing.assert_close(state, inputs["state"])


def test_state_is_single_precision_for_half_inputs_and_under_autocast():
    inputs = {name: tensor.detach() for name, tensor in make(dtype=torch.float32).items()}
    expected, _ = selective_scan(**inputs)
    y, state = selective_scan(**{name: t.bfloat16() for name, t in inputs.items() if name != "state"})
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = selective_scan(**leaves)
        y.sum().backward()
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, expected)  # no product was made in half precision
    assert leaves["x"].grad is not None


def test_math_is_reachable_by_the_switch(monkeypatch):
    def refuse(*_):
        raise AssertionError("the fast form ran")

    monkeypatch.setattr(module._ChunkedScan, "apply", refuse)
    inputs = make()
    with attention.force("math"):
        selective_scan(**inputs)
    with pytest.raises(AssertionError):
        selective_scan(**inputs)


def test_memory_grows_linearly_and_stays_far_below_a_state_per_token():
    def step(tokens: int) -> int:
        inputs = make(1, tokens, 16, 16, dtype=torch.float32)
        return peak_memory(lambda: values_and_gradients(inputs))

    short, long = step(1024), step(4096)
    assert long <= 4.4 * short
    assert long < 4096 * 16 * 16 * 4  # one state per token


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.ones(2, 9, 4)}, "dt"),
        ({"B": torch.ones(2, 8, 3)}, "B: expected"),
        ({"state": torch.ones(2, 3, 5)}, "state"),
        ({"D": torch.ones(3)}, "D: expected"),
        ({"A": torch.ones(5)}, "A"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ShapeError, match=message):
        selective_scan(**{**make(dtype=torch.float32), **change})


def test_wrong_chunk_is_refused():
    with pytest.raises(ConfigError, match="chunk=0"):
        selective_scan(**make(), chunk=0)
