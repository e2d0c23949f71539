"""Auto-correlation: both forms agree, and it finds and averages over the periods of a series."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backbones.attention.autocorrelation import auto_correlation, delay_count, kept_delays
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError


def make(batch, queries, keys, heads=2, channels=3, seed=0, dtype=torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = (queries, keys, keys)
    return [torch.randn(batch, n, heads, channels, generator=g, dtype=dtype).requires_grad_() for n in lengths]


def values_and_gradients(tensors: list[Tensor], **options) -> list[Tensor]:
    out = auto_correlation(*tensors, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    heads=st.integers(1, 3),
    factor=st.sampled_from([0.5, 1, 3, 50]),
    shared=st.booleans(),
    seed=st.integers(0, 9),
)
def test_fast_equals_literal_in_values_and_gradients(batch, queries, keys, heads, factor, shared, seed):
    tensors = make(batch, queries, keys, heads, seed=seed)
    options = {"factor": factor, "shared_delays": shared}
    expected = values_and_gradients(tensors, backend="math", **options)
    for found, exact in zip(values_and_gradients(tensors, **options), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_equals_the_sum_written_out(length, backend):
    """Correlation by its definition on an even grid; on an odd one by the shorter inverse transform."""
    q, k, v = make(1, length, length, 1, 1)
    spectrum = torch.fft.fft(q[0, :, 0, 0]) * torch.fft.fft(k[0, :, 0, 0]).conj()
    corr = torch.fft.irfft(spectrum[: length // 2 + 1])
    if length % 2 == 0:
        direct = [sum(q[0, (t + tau) % length] * k[0, t] for t in range(length)).item() for tau in range(length)]
        torch.testing.assert_close(corr, torch.tensor(direct, dtype=corr.dtype))
    values, delays = corr.topk(math.floor(2 * math.log(length)))
    expected = sum(w * v.roll(-int(tau), 1) for w, tau in zip(values.softmax(0), delays, strict=True))
    torch.testing.assert_close(auto_correlation(q, k, v, factor=2, backend=backend), expected)


def test_a_delayed_copy_is_brought_back():
    """Values that lag by 5 steps come back in step where queries are keys shifted by 5."""
    k = torch.randn(1, 64, 2, 16, generator=torch.Generator().manual_seed(0)) * 4
    out = auto_correlation(k.roll(5, 1), k, k, factor=1)
    torch.testing.assert_close(out, k.roll(-5, 1))


def test_odd_lengths_have_one_delay_less():
    assert [delay_count(n) for n in (1, 2, 3, 4, 9)] == [1, 2, 2, 4, 8]
    assert [kept_delays(n, 1) for n in (1, 2, 3, 96, 720)] == [1, 1, 1, 4, 6]
    assert kept_delays(5, 100) == 4


def test_shared_delays_depend_on_the_batch_and_own_ones_do_not():
    q, k, v = (tensor.detach() for tensor in make(4, 24, 24))
    alone = auto_correlation(q[:1], k[:1], v[:1])
    torch.testing.assert_close(auto_correlation(q, k, v)[:1], alone)
    assert not torch.allclose(auto_correlation(q, k, v, shared_delays=True)[:1], alone)


def test_longer_keys_are_cut_and_shorter_ones_padded():
    q, k, v = (tensor.detach() for tensor in make(2, 12, 20))
    torch.testing.assert_close(auto_correlation(q, k, v), auto_correlation(q, k[:, :12], v[:, :12]))
    zeros = torch.zeros(2, 5, *k.shape[2:], dtype=k.dtype)
    expected = auto_correlation(q, torch.cat([k[:, :7], zeros], 1), torch.cat([v[:, :7], zeros], 1))
    torch.testing.assert_close(auto_correlation(q, k[:, :7], v[:, :7]), expected)


def test_half_precision_is_computed_in_single():
    q, k, v = (tensor.detach().bfloat16() for tensor in make(2, 24, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = auto_correlation(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, auto_correlation(q.float(), k.float(), v.float()).bfloat16())


def test_fast_form_needs_a_fraction_of_the_memory():
    tensors = make(2, 256, 256, 4, 16, dtype=torch.float32)
    literal = peak_memory(lambda: values_and_gradients(tensors, factor=3, backend="math"))
    assert peak_memory(lambda: values_and_gradients(tensors, factor=3)) < literal / 3


def test_what_does_not_fit_is_refused():
    q, k, v = make(2, 6, 8)
    with pytest.raises(ShapeError, match="do not fit"):
        auto_correlation(q, k, v[:, :5])
    with pytest.raises(ShapeError, match="expected"):
        auto_correlation(q[0], k, v)
    with pytest.raises(ConfigError, match="factor=0"):
        auto_correlation(q, k, v, factor=0)
