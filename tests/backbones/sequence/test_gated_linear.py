"""The gated linear mixer: what its gates, masks and directions promise beyond the contract of all mixers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from backbones.attention import force
from backbones.sequence import create_mixer
from backbones.sequence.gated_linear import GatedLinearMixer
from graftwork.errors import ConfigError, ShapeError


def mixer_of(width=12, heads=3, **options):
    torch.manual_seed(0)
    mixer = GatedLinearMixer(width, heads=heads, **options).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return mixer


def tokens(length=9, width=12):
    return torch.randn(2, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_equals_the_layer_written_out():
    mixer, x = mixer_of(), tokens()
    q, k, v = (part(x).unflatten(-1, (3, -1)) for part in (mixer.query, mixer.key, mixer.value))
    decay = torch.sigmoid(mixer.gate(x)).pow(1 / 16).unflatten(-1, (3, -1))
    state, rows = x.new_zeros(2, 3, 2, 4), []
    for t in range(9):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        read = (q[:, t, :, None] @ state).squeeze(-2) * 2**-0.5
        read = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
        rows.append(mixer.out(read.flatten(1) * F.silu(mixer.out_gate(x[:, t]))))
    torch.testing.assert_close(mixer(x)[0], torch.stack(rows, dim=1))


def test_larger_temperature_remembers_longer():
    x = tokens(40)
    changed = x.clone()
    changed[:, 0] += 5.0
    reach = []
    for temperature in (1.0, 16.0, 64.0):
        mixer = mixer_of(temperature=temperature)
        reach.append((mixer(x)[0] - mixer(changed)[0])[:, -1].abs().max())
    assert reach[0] < reach[1] < reach[2]


def test_state_does_not_grow_and_is_float32():
    mixer = GatedLinearMixer(16, heads=2)
    _, early = mixer(torch.randn(1, 3, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, late = mixer(torch.randn(1, 300, 16), state=early)
    assert early.shape == late.shape == (1, 2, 4, 8) and late.dtype == torch.float32


@pytest.mark.parametrize("form", ["auto", "math"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_hidden_tokens_are_as_good_as_absent(bidirectional, form):
    mixer, x = mixer_of(bidirectional=bidirectional), tokens()
    mask = torch.tensor([True, False, True, True, False, False, True, True, False]).expand(2, -1)
    with force(form):
        masked, after = mixer(x, mask=mask)
        short, expected = mixer(x[:, mask[0]])
    torch.testing.assert_close(masked[:, mask[0]], short)
    assert bidirectional or torch.allclose(after, expected)


def test_directions_have_gates_of_their_own():
    mixer, x = mixer_of(bidirectional=True), tokens()
    swapped = mixer_of(bidirectional=True)
    with torch.no_grad():
        for parameter in (swapped.gate[1].weight, swapped.gate[1].bias):
            parameter.copy_(torch.cat(list(reversed(parameter.chunk(2)))))
    torch.testing.assert_close(swapped(x.flip(1))[0].flip(1), mixer(x)[0])
    assert not torch.allclose(swapped(x)[0], mixer(x)[0])


def test_reads_both_ways_unless_told_otherwise():
    assert not create_mixer("gated_linear", 8).causal
    assert create_mixer("gated_linear", 8, causal=True).supports_state
    assert create_mixer("gated_linear", 8, bidirectional=False).causal
    with pytest.raises(ConfigError, match="bidirectional=true reads the future"):
        create_mixer("gated_linear", 8, bidirectional=True, causal=True)


def test_a_head_of_one_channel_works():
    mixer = GatedLinearMixer(4, heads=4)
    assert mixer(torch.randn(2, 5, 4))[0].shape == (2, 5, 4)


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="2 problems"):
        create_mixer("gated_linear", 8, rank=0, temperature=0.0)
    with pytest.raises(ShapeError, match=r"mask of GatedLinearMixer: expected \[2, 1\], got \[2, 9\]"):
        mixer_of()(tokens(1), mask=torch.ones(2, 9, dtype=torch.bool), state=torch.zeros(2, 3, 2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_exported_graph_takes_other_lengths(bidirectional):
    mixer = GatedLinearMixer(16, heads=2, bidirectional=bidirectional).eval()
    length = torch.export.Dim("length", min=2, max=500)
    given = torch.randn(2, 12, 16)
    exported = torch.export.export(mixer, (given,), dynamic_shapes={"x": {1: length}}, strict=False).module()
    x = torch.randn(2, 150, 16)
    torch.testing.assert_close(exported(x)[0], mixer(x)[0], rtol=1e-4, atol=1e-5)
