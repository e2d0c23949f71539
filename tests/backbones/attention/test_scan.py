"""The recurrence equals causal softmax attention with a constant query, in one pass and step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention.attend import attend
from backbones.attention.scan import scan_attention
from graftwork.errors import ConfigError, ShapeError


def inputs(batch=2, tokens=9, heads=2, width=3, size=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    logits = size * torch.randn(batch, tokens, heads, dtype=dtype, generator=generator)
    values = torch.randn(batch, tokens, heads, width, dtype=dtype, generator=generator)
    return logits.requires_grad_(), values.requires_grad_()


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 80), heads=st.integers(1, 3), width=st.integers(1, 5), chunk=st.integers(2, 40))
def test_equals_attention_with_a_constant_query(tokens, heads, width, chunk):
    generator = torch.Generator().manual_seed(tokens)
    query = torch.randn(heads, width, dtype=torch.float64, generator=generator)
    keys, values = torch.randn(2, 2, tokens, heads, width, dtype=torch.float64, generator=generator)
    expected = attend(query.expand(2, tokens, heads, width), keys, values, causal=True, backend="math")
    found, _ = scan_attention((keys * query).sum(-1) * width**-0.5, values, chunk=chunk)
    torch.testing.assert_close(found, expected)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    size = draw(st.sampled_from([0.1, 1.0, 30.0, 1e4]))
    sizes = [draw(st.integers(1, most)) for most in (2, 70, 3, 4)]
    logits, values = inputs(*sizes, size=size)
    hidden = draw(st.sampled_from([None, torch.rand(logits.shape) > 0.6]))
    cut = draw(st.integers(0, sizes[1]))
    results = []
    for backend in ("auto", "math"):
        scores = logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
        options = {"backend": backend, "chunk": draw(st.integers(2, 40))}
        first, state = scan_attention(scores[:, :cut], values[:, :cut], **options)
        second, state = scan_attention(scores[:, cut:], values[:, cut:], state=state, **options)
        out = torch.cat([first, second], dim=1)
        results.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), [logits, values])])
    for fast, literal in zip(*results, strict=True):
        assert fast.isfinite().all()
        torch.testing.assert_close(fast, literal, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_step_by_step_with_a_constant_state(backend):
    logits, values = inputs(tokens=40)
    whole, end = scan_attention(logits, values, backend=backend)
    parts, state = [], None
    for step in range(40):
        out, state = scan_attention(
            logits[:, step : step + 1], values[:, step : step + 1], state=state, backend=backend
        )
        parts.append(out)
        assert state.total.shape == (2, 2, 3) and state.weight.shape == state.shift.shape == (2, 2)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    for stepped, once in zip(state, end, strict=True):
        torch.testing.assert_close(stepped, once)


def test_huge_logits_keep_float32_precision():
    logits, values = inputs(tokens=1000, size=1.0, dtype=torch.float32)
    shifted = (logits.detach() * 1024).round() / 1024 + 1e4  # exact at that size, so that only the scan can lose
    expected, _ = scan_attention((shifted - 1e4).double(), values.double(), backend="math")
    found, _ = scan_attention(shifted, values)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    wild, _ = scan_attention(torch.where(torch.rand_like(logits) > 0.5, 1e4, -1e4), values)
    assert wild.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_hidden_tokens_are_as_good_as_absent_and_an_empty_prefix_gives_zeros(backend):
    logits, values = inputs(batch=1, tokens=6)
    hidden = torch.tensor([True, True, False, True, False, False])
    masked, _ = scan_attention(logits.masked_fill(hidden[None, :, None], -torch.inf), values, backend=backend)
    short, _ = scan_attention(logits[:, ~hidden], values[:, ~hidden], backend=backend)
    torch.testing.assert_close(masked[:, ~hidden], short)
    assert (masked[:, :2] == 0).all()
    gradients = torch.autograd.grad(masked.sum(), (logits, values))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_numerical_gradient_check_through_the_state():
    logits, values = inputs(batch=1, tokens=7, heads=1, width=2)

    def call(logits, values):
        _, state = scan_attention(logits[:, :3], values[:, :3], chunk=2)
        return scan_attention(logits[:, 3:], values[:, 3:], state=state, chunk=2)[0]

    assert torch.autograd.gradcheck(call, (logits, values))


def saved_numbers(tokens, **options):
    """How many numbers the backward pass holds beside what the caller has anyway."""
    logits, values = inputs(1, tokens, 1, 4, dtype=torch.float32)
    sizes: dict[int, int] = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan_attention(logits, values, **options)
    return sum(sizes.values())


def test_memory_of_the_backward_grows_with_the_length_not_its_square():
    assert saved_numbers(2048) < 2.5 * saved_numbers(1024)
    assert saved_numbers(2048, backend="math") > 3.5 * saved_numbers(1024, backend="math")


def test_half_types_sum_in_float32():
    logits, values = inputs(1, 3000, 1, 8, dtype=torch.float32)
    expected, _ = scan_attention(logits, values)
    found, state = scan_attention(logits.bfloat16(), values.bfloat16())
    assert found.dtype == torch.bfloat16 and state.total.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=3e-2, atol=3e-2)


def test_empty_sequence_keeps_the_state():
    logits, values = inputs()
    _, state = scan_attention(logits, values)
    out, after = scan_attention(logits[:, :0], values[:, :0], state=state)
    assert out.shape == (2, 0, 2, 3)
    assert all(torch.equal(before, now) for before, now in zip(state, after, strict=True))


def test_wrong_inputs_are_named():
    logits, values = inputs()
    with pytest.raises(ShapeError, match=r"logits: expected \[2, 9, 2\] to fit the values, got \[2, 8, 2\]"):
        scan_attention(logits[:, 1:], values)
    _, state = scan_attention(logits, values)
    with pytest.raises(ShapeError, match=r"state\.total: expected \[1, 2, 3\]"):
        scan_attention(logits[:1], values[:1], state=state)
    with pytest.raises(ConfigError, match="chunk=1"):
        scan_attention(logits, values, chunk=1)
