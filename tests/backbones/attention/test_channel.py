"""Channel attention: products divided by norms, and folded projections, against normalised maps channel by channel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import force
from backbones.attention.channel import (
    ACTIVATIONS,
    channel_attention,
    channel_weights,
    folded_projection,
    project_channels,
    projected_channel_attention,
)
from backbones.attention.dispatch import reset_used, used
from graftwork.errors import ConfigError, ShapeError


def inputs(batch=2, heads=2, channels=3, height=4, width=5, dtype=torch.float64, last=False):
    """Maps [B, h * d, H, W] three times, and temperatures [h, 1, 1]."""
    generator = torch.Generator().manual_seed(heads * 31 + channels)
    shape = (batch, heads * channels, height, width)
    maps = [torch.randn(shape, dtype=dtype, generator=generator) for _ in range(3)]
    maps = [x.contiguous(memory_format=torch.channels_last) if last else x for x in maps]
    temperature = 0.5 + torch.rand(heads, 1, 1, dtype=dtype, generator=generator)
    return [tensor.requires_grad_() for tensor in (*maps, temperature)]


def by_formula(q, k, v, temperature, activation):
    """One sample, one head: [d, H, W] three times and a number."""
    channels = range(len(q))
    lengths = [[max(float(x.square().sum().sqrt()), 1e-12) for x in maps] for maps in (q, k)]
    cosines = [[(q[i] * k[j]).sum() / lengths[0][i] / lengths[1][j] for j in channels] for i in channels]
    rows = []
    for i in channels:
        logits = torch.stack(cosines[i]) * temperature
        weights = logits.exp() / logits.exp().sum() if activation == "softmax" else ACTIVATIONS[activation](logits)
        rows.append(sum(weights[j] * v[j] for j in channels))
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ["softmax", "relu", "gelu", "sigmoid"])
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_the_papers_sums_channel_by_channel(activation, backend):
    q, k, v, temperature = (tensor.detach() for tensor in inputs())
    found = channel_attention(q, k, v, temperature, heads=2, activation=activation, backend=backend)
    for sample in range(2):
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            expected = by_formula(*(x[sample, own] for x in (q, k, v)), temperature[head, 0, 0], activation)
            torch.testing.assert_close(found[sample, own], expected)


@settings(max_examples=12)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 5),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    last=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_both_forms_in_values_and_gradients(batch, heads, channels, height, width, last, activation):
    leaves = inputs(batch, heads, channels, height, width, last=last)
    projection = torch.randn(4, heads * channels, dtype=torch.float64).requires_grad_()
    results = []
    for backend in ("auto", "math"):
        options = {"heads": heads, "activation": activation, "backend": backend}
        mixed = channel_attention(*leaves, **options)
        projected = projected_channel_attention(*leaves, projection, **options)
        total = (mixed * mixed.detach().cos()).sum() + (projected * projected.detach().sin()).sum()
        results.append([mixed, projected, *torch.autograd.grad(total, [*leaves, projection])])
    for fast, literal in zip(*results, strict=True):
        torch.testing.assert_close(fast, literal, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [False, True])
def test_projection_equals_a_convolution_afterwards(last):
    q, k, v, temperature = inputs(last=last)
    kernel, bias = torch.randn(7, 6, 1, 1, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    expected = F.conv2d(channel_attention(q, k, v, temperature, heads=2, backend="math"), kernel, bias)
    weights = channel_weights(q, k, temperature, heads=2)
    assert weights.shape == (2, 2, 3, 3)
    found = project_channels(v, folded_projection(weights, kernel), bias)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    projected = projected_channel_attention(q, k, v, temperature, kernel, heads=2)
    torch.testing.assert_close(projected, expected - bias[:, None, None])


def test_values_that_are_a_part_of_wider_maps():
    packed = torch.randn(2, 18, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    q, k, v = packed.chunk(3, 1)
    temperature = torch.ones(3, dtype=torch.float64)
    expected = channel_attention(*(x.contiguous() for x in (q, k, v)), temperature, heads=3, backend="math")
    torch.testing.assert_close(channel_attention(q, k, v, temperature, heads=3), expected)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_maps_of_zeros_give_finite_gradients(backend):
    q, k, v, temperature = inputs()
    with torch.no_grad():
        q[:, 1], k[0] = 0, 0
    output = channel_attention(q, k, v, temperature, heads=2, backend=backend)
    gradients = torch.autograd.grad(output.square().sum(), (q, k, v, temperature))
    assert all(gradient.isfinite().all() for gradient in (output, *gradients))


def test_channels_without_likeness_are_averaged():
    q, k, v, temperature = (tensor.detach() for tensor in inputs())
    found = channel_attention(torch.zeros_like(q), k, v, temperature, heads=2)
    means = v.unflatten(1, (2, 3)).mean(2, keepdim=True).expand(-1, -1, 3, -1, -1).flatten(1, 2)
    torch.testing.assert_close(found, means)


def test_brightness_of_queries_and_keys_does_not_matter():
    q, k, v, temperature = (tensor.detach() for tensor in inputs())
    expected = channel_attention(q, k, v, temperature, heads=2)
    torch.testing.assert_close(channel_attention(1e3 * q, 1e-3 * k, v, temperature, heads=2), expected)


def test_empty_batches_and_maps_pass():
    for batch, height in ((0, 4), (2, 0)):
        leaves = inputs(batch=batch, height=height)
        output = channel_attention(*leaves, heads=2)
        assert output.shape == (batch, 6, height, 5)
        output.sum().backward()


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_close_on_large_maps(dtype, backend):
    """The squares of these maps add up to more than float16 holds."""
    q, k, v, temperature = (tensor.detach() for tensor in inputs(height=64, width=64, last=True))
    q, k = 6 * q, 6 * (k + q)
    expected = channel_attention(q, k, v, temperature, heads=2, backend="math")
    half = [tensor.to(dtype) for tensor in (q, k, v, temperature)]
    found = channel_attention(*half, heads=2, backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05)
    assert channel_weights(*half[:2], half[3], heads=2, backend=backend).dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_autocast_gives_its_type(backend):
    leaves = inputs(dtype=torch.float32)
    projection = torch.randn(4, 6)
    expected = projected_channel_attention(*leaves, projection, heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = channel_attention(*leaves, heads=2, backend=backend)
        projected = projected_channel_attention(*leaves, projection, heads=2, backend=backend)
    assert mixed.dtype == projected.dtype == torch.bfloat16
    torch.testing.assert_close(projected.float(), expected, rtol=0.05, atol=0.1)
    torch.autograd.grad(projected.sum(), leaves)


def test_the_form_is_recorded():
    reset_used()
    leaves = inputs()
    channel_attention(*leaves, heads=2)
    with force("math"):
        channel_attention(*leaves, heads=2)
    assert [choice["backend"] for choice in used()["channel_attention"]] == ["fast", "math"]


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"heads": 4}, ShapeError, r"q: expected .* channels a multiple of 4 heads, got \[2, 6, 4, 5\]"),
        ({"heads": 0}, ConfigError, r"heads=0 must be at least 1"),
        ({"k": torch.zeros(2, 6, 4, 4)}, ShapeError, r"k: expected \[2, 6, 4, 5\] as q, got \[2, 6, 4, 4\]"),
        ({"v": torch.zeros(2, 3, 4, 5)}, ShapeError, r"v: expected \[2, 6, 4, 5\] as q, got \[2, 3, 4, 5\]"),
        ({"temperature": torch.ones(3)}, ShapeError, r"temperature: expected 2 numbers for 2 heads, got \[3\]"),
        ({"activation": "softmx"}, ConfigError, r"unknown activation 'softmx'; did you mean softmax"),
        ({"backend": "mth"}, ConfigError, r"unknown attention backend 'mth'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    q, k, v, temperature = inputs(dtype=torch.float32)
    call = {"q": q, "k": k, "v": v, "temperature": temperature, "heads": 2} | change
    with pytest.raises(error, match=message):
        channel_attention(**call)


def test_projections_that_do_not_fit_are_named():
    q, k, v, temperature = inputs()
    weights = channel_weights(q, k, temperature, heads=2)
    for shape in ((4, 5), (4, 6, 3, 3), (6,)):
        with pytest.raises(ShapeError, match=r"projection: expected \[outputs, 6\] or \[outputs, 6, 1, 1\]"):
            folded_projection(weights, torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"matrices: expected \[2, outputs, 6\] for maps .*, got \[3, 4, 6\]"):
        project_channels(v, torch.zeros(3, 4, 6))
