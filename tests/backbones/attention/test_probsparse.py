"""ProbSparse attention: both forms agree, and kept and other queries output what the paper says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from backbones.attention.probsparse import draw_keys, prob_sparse_attention, sample_size
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError


def make(batch, queries, keys, heads=2, channels=4, seed=0, dtype=torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = (queries, keys, keys)
    return [torch.randn(batch, n, heads, channels, generator=g, dtype=dtype).requires_grad_() for n in lengths]


def values_and_gradients(tensors: list[Tensor], **options) -> list[Tensor]:
    out = prob_sparse_attention(*tensors, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    heads=st.integers(1, 3),
    factor=st.integers(1, 5),
    causal=st.booleans(),
    scale=st.sampled_from([None, 1.0]),
    seed=st.integers(0, 9),
)
def test_fast_equals_literal_in_values_and_gradients(batch, queries, keys, heads, factor, causal, scale, seed):
    tensors = make(batch, queries, queries if causal else keys, heads, seed=seed)
    drawn = draw_keys(queries, tensors[1].shape[1], factor, torch.Generator().manual_seed(seed))
    options = {"factor": factor, "causal": causal, "index_sample": drawn, "scale": scale}
    expected = values_and_gradients(tensors, backend="math", **options)
    for found, exact in zip(values_and_gradients(tensors, **options), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("causal", [False, True])
def test_kept_queries_attend_and_others_output_the_default(backend, causal):
    """Straight from the definition, one query at a time."""
    length, factor = 30, 1
    q, k, v = (tensor.detach() for tensor in make(1, length, length, 1))
    drawn = draw_keys(length, length, factor, torch.Generator().manual_seed(3))
    out = prob_sparse_attention(q, k, v, factor=factor, causal=causal, index_sample=drawn, backend=backend)[0, :, 0]
    q, k, v = q[0, :, 0], k[0, :, 0], v[0, :, 0]
    scores = [[(q[i] @ k[j]).item() for j in drawn[i]] for i in range(length)]
    measure = [max(row) - sum(row) / length for row in scores]
    kept = sorted(range(length), key=measure.__getitem__)[-4:]  # ceil(ln 30) = 4
    for i in range(length):
        reach = i + 1 if causal else length
        if i in kept:
            expected = torch.softmax(k[:reach] @ q[i] / 2, 0) @ v[:reach]
        else:
            expected = v[:reach].sum(0) if causal else v.mean(0)
        torch.testing.assert_close(out[i], expected)


def test_counts_round_up_before_multiplying():
    assert [sample_size(n, 5) for n in (1, 2, 3, 20, 96, 720)] == [1, 2, 3, 15, 25, 35]
    assert sample_size(40, 3) == 12


@pytest.mark.parametrize("causal", [False, True])
def test_short_sequences_get_full_attention(causal):
    q, k, v = (tensor.detach() for tensor in make(2, 12, 12))
    out = prob_sparse_attention(q, k, v, factor=5, causal=causal)
    by_head = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*by_head, is_causal=causal).transpose(1, 2))


def test_a_seeded_generator_makes_it_repeatable():
    tensors = make(2, 90, 90)

    def run(seed: int) -> Tensor:
        return prob_sparse_attention(*tensors, factor=1, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_drawn_keys_are_uniform_with_replacement():
    drawn = draw_keys(4000, 50, 5, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 20) and drawn.dtype == torch.int64
    shares = torch.bincount(drawn.flatten(), minlength=50) / drawn.numel()
    assert (shares - 0.02).abs().max() < 0.003
    assert any(len(set(row.tolist())) < 20 for row in drawn[:50])


def test_scores_of_the_drawn_keys_match_in_single_precision():
    """The long form picks the same queries as the literal one, so outputs agree row by row."""
    tensors = make(2, 200, 300, 4, 16, dtype=torch.float32)
    drawn = draw_keys(200, 300, 2)
    out = prob_sparse_attention(*tensors, factor=2, index_sample=drawn)
    expected = prob_sparse_attention(*tensors, factor=2, index_sample=drawn, backend="math")
    different = (out - expected).abs().amax(-1) > 1e-4
    assert different.float().mean() < 0.01  # a near-tie may fall either way


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_trains_in_half_precision(causal):
    tensors = [tensor.detach().bfloat16().requires_grad_() for tensor in make(2, 60, 60)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = prob_sparse_attention(*tensors, factor=1, causal=causal)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in tensors)


def test_fast_form_needs_a_fraction_of_the_memory():
    tensors = make(1, 512, 512, 4, 32, dtype=torch.float32)
    literal = peak_memory(lambda: values_and_gradients(tensors, backend="math"))
    assert peak_memory(lambda: values_and_gradients(tensors)) < literal / 3


def test_what_does_not_fit_is_refused():
    q, k, v = make(2, 6, 8)
    with pytest.raises(ShapeError, match="as many keys as queries, got 8 and 6"):
        prob_sparse_attention(q, k, v, causal=True)
    with pytest.raises(ShapeError, match="do not fit"):
        prob_sparse_attention(q, k, v[:, :5])
    with pytest.raises(ShapeError, match="index_sample"):
        prob_sparse_attention(q, k, v, index_sample=torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="holds 8 to 8, expected 0 to 7"):
        prob_sparse_attention(q, k, v, index_sample=torch.full((6, 3), 8))
    with pytest.raises(ConfigError, match="factor=0"):
        prob_sparse_attention(q, k, v, factor=0)
    assert math.isfinite(prob_sparse_attention(q, k, v).sum().item())
