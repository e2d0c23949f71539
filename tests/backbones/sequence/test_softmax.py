"""The softmax mixer is multi-head attention as torch defines it."""

from __future__ import annotations

import pytest
import torch

from backbones.attention import force, reset_used, used
from backbones.sequence.softmax import SoftmaxMixer


def twins(causal=False):
    torch.manual_seed(0)
    ours = SoftmaxMixer(12, heads=3, causal=causal).eval()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return ours, theirs


@pytest.mark.parametrize("masked", [False, True])
def test_equals_multihead_attention(masked):
    ours, theirs = twins()
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    mask = torch.rand(2, 7) > 0.3 if masked else None
    expected, weights = theirs(
        x, memory, memory, key_padding_mask=None if mask is None else ~mask, average_attn_weights=False
    )
    found, state = ours(x, memory=memory, mask=mask)
    assert state is None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weights(x, memory=memory, mask=mask), weights, rtol=1e-4, atol=1e-5)


def test_causal_equals_multihead_attention():
    ours, theirs = twins(causal=True)
    x = torch.randn(2, 6, 12)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected, weights = theirs(x, x, x, attn_mask=future, average_attn_weights=False)
    torch.testing.assert_close(ours(x)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weights(x), weights, rtol=1e-4, atol=1e-5)


def test_streams_in_uneven_steps_with_a_mask_over_kept_keys():
    mixer = SoftmaxMixer(8, heads=2, causal=True).double().eval()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [False, False, True, True, True, False, True]])
    whole, _ = mixer(x, mask=mask)
    first, state = mixer(x[:, :3], mask=mask[:, :3])
    second, state = mixer(x[:, 3:], mask=mask, state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    assert state.keys.shape == (2, 7, 2, 4)


def test_dropout_acts_in_training_only():
    mixer = SoftmaxMixer(8, heads=2, dropout=0.5)
    x = torch.randn(2, 20, 8)
    assert not torch.equal(mixer.train()(x)[0], mixer(x)[0])
    assert torch.equal(mixer.eval()(x)[0], mixer(x)[0])


def test_forced_backend_reaches_the_mixer():
    reset_used()
    with force("math"):
        SoftmaxMixer(8, heads=2)(torch.randn(1, 4, 8))
    assert used()["attend"][0]["backend"] == "math"
