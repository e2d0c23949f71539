"""The scan mixer is causal attention whose query is one learned token."""

from __future__ import annotations

import pytest
import torch

from backbones.sequence import create_mixer
from backbones.sequence.scan import ScanMixer
from backbones.sequence.softmax import SoftmaxMixer


def test_equals_softmax_attention_with_a_constant_query():
    torch.manual_seed(0)
    scan, softmax = ScanMixer(12, heads=3).double(), SoftmaxMixer(12, heads=3, causal=True).double()
    weights = scan.state_dict()
    token = weights.pop("token")
    softmax.load_state_dict(weights)
    with torch.no_grad():  # a query that does not look at its token
        softmax.query.bias.copy_(scan.query(token))
        softmax.query.weight.zero_()
    x = torch.randn(2, 50, 12, dtype=torch.float64)
    torch.testing.assert_close(scan(x)[0], softmax(x)[0])


def test_one_token_per_layer_is_all_it_adds():
    scan, softmax = ScanMixer(16, heads=4), SoftmaxMixer(16, heads=4)
    added = sum(p.numel() for p in scan.parameters()) - sum(p.numel() for p in softmax.parameters())
    assert added == 16


def test_learned_token_is_trained():
    mixer = ScanMixer(8, heads=2)
    mixer(torch.randn(2, 6, 8))[0].square().sum().backward()
    assert mixer.token.grad is not None and mixer.token.grad.abs().sum() > 0


def test_state_does_not_grow():
    mixer = ScanMixer(8, heads=2)
    _, early = mixer(torch.randn(1, 3, 8))
    _, late = mixer(torch.randn(1, 300, 8), state=early)
    assert [part.shape for part in early] == [part.shape for part in late]
    assert late.total.shape == (1, 2, 4)


def test_both_directions_are_a_forward_and_a_flipped_scan():
    torch.manual_seed(0)
    mixer, x = ScanMixer(8, heads=2, bidirectional=True), torch.randn(2, 7, 8)
    forward, backward = ScanMixer(8, heads=2), ScanMixer(8, heads=2)
    own = mixer.state_dict()
    forward.load_state_dict({k: v for k, v in own.items() if not k.startswith("reverse.")})
    backward.load_state_dict({k.removeprefix("reverse."): v for k, v in own.items() if k.startswith("reverse.")})
    y, state = mixer(x)
    torch.testing.assert_close(y, forward(x)[0] + backward(x.flip(1))[0].flip(1))
    assert state is None and not mixer.causal and not mixer.supports_state


@pytest.mark.parametrize("left", [0, 3])
def test_padded_tokens_change_nothing_in_both_directions(left):
    torch.manual_seed(0)
    mixer, x = ScanMixer(8, heads=2, bidirectional=True), torch.randn(2, 9, 8)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, left : left + 6] = True
    y, _ = mixer(x, mask=mask)
    torch.testing.assert_close(y[:, left : left + 6], mixer(x[:, left : left + 6])[0])


@pytest.mark.parametrize("name", ["scan", "selective_scan"])
def test_a_free_scan_reads_both_ways_unless_told_otherwise(name):
    assert not create_mixer(name, 8).causal
    assert create_mixer(name, 8, causal=True).causal
    assert create_mixer(name, 8, bidirectional=False).causal
