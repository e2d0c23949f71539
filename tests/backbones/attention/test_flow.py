"""Flow-attention: linear and chunked forms against the paper's sums, written out a token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention.flow import CausalProduct, causal_flow, flow_attention
from graftwork.errors import ConfigError, ShapeError


def inputs(batch=2, sinks=5, sources=7, heads=2, width=4, value_width=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sinks * 31 + sources)
    shapes = [(batch, sinks, heads, width), (batch, sources, heads, width), (batch, sources, heads, value_width)]
    return [(2 * torch.randn(shape, dtype=dtype, generator=generator)).requires_grad_() for shape in shapes]


def bounded(x, clamp):
    return x if clamp is None else x.clamp(-clamp, clamp)


def by_formula(q, k, v, clamp=None, eps=1e-6):
    """One head of the bidirectional form: [L, d], [S, d], [S, e]."""
    a, b = torch.sigmoid(q), torch.sigmoid(k)
    incoming = (a + eps) @ (b.sum(0) + eps)
    outgoing = (b + eps) @ (a.sum(0) + eps)
    conserved_in = (a + eps) @ ((b / outgoing[:, None]).sum(0) + eps)
    conserved_out = (b + eps) @ ((a / incoming[:, None]).sum(0) + eps)
    competition = len(k) * torch.softmax(bounded(conserved_out, clamp), 0)
    matrix = b.T @ (competition[:, None] * v)
    return torch.sigmoid(conserved_in * len(q) / len(k))[:, None] * ((a / incoming[:, None]) @ matrix)


def by_prefixes(q, k, v, clamp=None, eps=1e-6):
    """One head of the causal form, every sum over a prefix made anew."""
    a, b = torch.sigmoid(q), torch.sigmoid(k)
    tokens = range(len(q))
    incoming = [(a[i] + eps) @ (b[: i + 1].sum(0) + eps) for i in tokens]
    outgoing = [(b[i] + eps) @ (a[: i + 1].sum(0) + eps) for i in tokens]
    rows, logits = [], []
    for i in tokens:
        n = i + 1
        key_flow = sum(b[j] * (j + 1) / outgoing[j] for j in range(n))
        query_flow = sum(a[j] * (j + 1) / incoming[j] for j in range(n))
        conserved_in = (a[i] + eps) @ (key_flow + eps) / n
        logits.append(bounded((b[i] + eps) @ (query_flow + eps) / n, clamp))
        competing = [(j + 1) * logits[j].exp() / sum(logit.exp() for logit in logits[: j + 1]) for j in range(n)]
        matrix = sum(torch.outer(b[j], competing[j] * v[j]) for j in range(n))
        rows.append(torch.sigmoid(conserved_in) * (a[i] / incoming[i]) @ matrix)
    return torch.stack(rows)


def per_head(formula, q, k, v, **options):
    batches = range(q.shape[0])
    heads = [[formula(q[b, :, h], k[b, :, h], v[b, :, h], **options) for h in range(q.shape[2])] for b in batches]
    return torch.stack([torch.stack(head, dim=1) for head in heads])


@pytest.mark.parametrize("clamp", [None, 1.0, 0.3])
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_bidirectional_formula(clamp, backend):
    q, k, v = inputs()
    torch.testing.assert_close(
        flow_attention(q, k, v, clamp=clamp, backend=backend), per_head(by_formula, q, k, v, clamp=clamp)
    )


@pytest.mark.parametrize("clamp", [None, 1.0, 0.3])
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_causal_formula(clamp, backend):
    q, k, v = inputs(sinks=6, sources=6)
    found = flow_attention(q, k, v, causal=True, clamp=clamp, chunk=4, backend=backend)
    torch.testing.assert_close(found, per_head(by_prefixes, q, k, v, clamp=clamp))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    causal = draw(st.booleans())
    sinks = draw(st.integers(1, 20))
    sources = sinks if causal else draw(st.integers(1, 20))
    sizes = [draw(st.integers(1, 4)) for _ in range(3)]
    leaves = inputs(draw(st.integers(1, 2)), sinks, sources, *sizes)
    mask = draw(st.sampled_from([None, torch.rand(leaves[1].shape[:2]) > 0.4]))
    options = {"causal": causal, "clamp": draw(st.sampled_from([None, 0.5, 10.0])), "key_mask": mask}
    results = []
    for backend in ("auto", "math"):
        out = flow_attention(*leaves, backend=backend, chunk=draw(st.integers(1, 24)), **options)
        results.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)])
    for fast, literal in zip(*results, strict=True):
        assert fast.isfinite().all()
        torch.testing.assert_close(fast, literal, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_masked_tokens_are_as_good_as_absent(causal, backend):
    q, k, v = inputs(batch=1, sinks=7, sources=7)
    mask = torch.tensor([[False, True, True, False, True, True, False]])
    masked = flow_attention(q, k, v, causal=causal, key_mask=mask, query_mask=mask, backend=backend)
    short = flow_attention(*(x[:, mask[0]] for x in (q, k, v)), causal=causal, backend=backend)
    torch.testing.assert_close(masked[:, mask[0]], short)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_valid_gives_finite_gradients(causal):
    leaves = inputs(sinks=4, sources=4)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    out = flow_attention(*leaves, causal=causal, key_mask=mask, query_mask=mask)
    assert (out == 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("cuts", [[1] * 11, [4, 1, 6], [11, 0]])
def test_state_continues_the_sequence(cuts):
    q, k, v = inputs(sinks=11, sources=11)
    whole = flow_attention(q, k, v, causal=True, clamp=1.0)
    parts, state, start = [], None, 0
    for cut in cuts:
        step = (x[:, start : start + cut] for x in (q, k, v))
        out, state = causal_flow(*step, clamp=1.0, state=state, chunk=3)
        parts.append(out)
        start += cut
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_gradients_of_the_chunked_product_are_exact_twice():
    q, k, v = (torch.randn(1, 2, 5, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 2))

    def product(q, k, v):
        return CausalProduct.apply(q, k, v, 2)

    assert torch.autograd.gradcheck(product, (q, k, v))
    assert torch.autograd.gradgradcheck(product, (q, k, v))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_sums_keep_precision_in_half_types(causal, dtype):
    q, k, v = inputs(1, 4000, 4000, 1, 8, 8, dtype=torch.float32)
    expected = flow_attention(q, k, v, causal=causal)
    found = flow_attention(q.to(dtype), k.to(dtype), v.to(dtype), causal=causal)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=3e-2, atol=3e-2)


def test_competition_without_a_bound_does_not_overflow():
    q, k, v = (tensor.detach() for tensor in inputs(1, 64, 64, 1, 64, 4, dtype=torch.float32))
    out = flow_attention(q + 30, k - 30 * torch.rand_like(k), v, causal=True)
    assert out.isfinite().all()


def test_wrong_inputs_are_named():
    q, k, v = inputs()
    with pytest.raises(ShapeError, match=r"as many keys as queries \[2, 5, 2, 4\], got \[2, 7, 2, 4\]"):
        flow_attention(q, k, v, causal=True)
    with pytest.raises(ShapeError, match=r"key_mask: expected \[2, 7\], got \[2, 5\]"):
        flow_attention(q, k, v, key_mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="clamp=-1"):
        flow_attention(q, k, v, clamp=-1)
