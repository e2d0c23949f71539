"""The Mamba block: the official numbers, streaming, padding and both directions."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.sequence import create_mixer
from backbones.sequence.selective_scan import SelectiveScanMixer
from graftwork.errors import ConfigError, ShapeError


def build(width=8, seed=0, **options) -> SelectiveScanMixer:
    torch.manual_seed(seed)
    mixer = SelectiveScanMixer(width, **{"state_size": 4, "kernel": 3, **options})
    for parameter in mixer.parameters():  # away from the tidy initial values
        torch.nn.init.normal_(parameter, std=0.4)
    return mixer


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_official_block_values_states_and_gradients(shared, backend, monkeypatch):
    load_file = pytest.importorskip("safetensors.torch").load_file
    folder = shared / "goldens" / "forecasting"
    case = json.loads((folder / "mamba_block_tiny.json").read_text())
    tensors = load_file(folder / "mamba_block_tiny.safetensors")
    config, tolerance = case["config"], case["tolerance"]
    mixer = SelectiveScanMixer(config["d_model"], config["d_state"], config["d_conv"], config["expand"])
    mixer.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    monkeypatch.setenv("GRAFTWORK_ATTENTION", backend)
    y, state = mixer(tensors["input.x"])
    y.square().mean().backward()
    found = {"y": y, "final_conv_state": state.conv, "final_ssm_state": state.ssm, "mean_square": y.square().mean()}
    for name, tensor in found.items():
        expected = tensors[f"output.{name}"]
        torch.testing.assert_close(tensor, expected, rtol=tolerance["rtol"], atol=tolerance["atol"])
    for name, parameter in mixer.named_parameters():
        if f"output.grad.{name}" in tensors:
            expected = tensors[f"output.grad.{name}"]
            # the case's absolute tolerance is as large as these gradients: ask for more
            torch.testing.assert_close(parameter.grad, expected, rtol=tolerance["grad_rtol"], atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 12),
    cut=st.integers(0, 12),
    kernel=st.integers(1, 5),
    batch=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_streaming_equals_one_pass(tokens, cut, kernel, batch, seed):
    mixer = build(kernel=kernel, seed=seed)
    x = torch.randn(batch, tokens, 8)
    whole, after = mixer(x)
    state, parts = None, []
    cut = min(cut, tokens)
    pieces = [x[:, :cut]] * (cut > 0) + list(x[:, cut:].split(1, dim=1))  # a prefix at once, the rest token by token
    for piece in pieces:
        if piece.shape[1]:
            y, state = mixer(piece, state=state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.conv, after.conv)
    torch.testing.assert_close(state.ssm, after.ssm, rtol=1e-4, atol=1e-5)


def test_it_is_causal():
    mixer = build().eval()
    x = torch.randn(2, 10, 8)
    changed = x.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(mixer(x)[0][:, :6], mixer(changed)[0][:, :6])
    assert mixer.causal and mixer.supports_state


def test_both_directions_are_a_forward_and_a_flipped_block():
    mixer = build(bidirectional=True)
    x = torch.randn(2, 7, 8)
    forward, backward = build(), build()
    own = mixer.state_dict()
    forward.load_state_dict({k: v for k, v in own.items() if not k.startswith("reverse.")})
    backward.load_state_dict({k.removeprefix("reverse."): v for k, v in own.items() if k.startswith("reverse.")})
    y, state = mixer(x)
    torch.testing.assert_close(y, forward(x)[0] + backward(x.flip(1))[0].flip(1))
    assert state is None and not mixer.causal and not mixer.supports_state


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("left", [0, 3])
def test_padded_tokens_change_nothing(bidirectional, left):
    mixer = build(bidirectional=bidirectional)
    x = torch.randn(2, 9, 8)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, left : left + 6] = True
    y, _ = mixer(x, mask=mask)
    torch.testing.assert_close(y[:, left : left + 6], mixer(x[:, left : left + 6])[0])


def test_initial_values_are_those_of_the_paper():
    torch.manual_seed(0)
    mixer = create_mixer("selective_scan", 512, state_size=5)
    assert isinstance(mixer, SelectiveScanMixer)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 6.0).expand(1024, -1))
    assert torch.equal(mixer.D, torch.ones(1024))
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 1e-1 * 1.001
    assert 0.008 < steps.median() < 0.0125  # log-uniform: the median is the geometric mean of the ends
    assert mixer.dt_proj.weight.abs().max() <= 32**-0.5  # rank ceil(512 / 16)
    assert mixer.A_log._no_weight_decay and mixer.D._no_weight_decay


def test_keys_are_the_official_ones():
    shapes = {name: tuple(tensor.shape) for name, tensor in SelectiveScanMixer(24, 8).state_dict().items()}
    assert shapes == {
        "A_log": (48, 8),
        "D": (48,),
        "in_proj.weight": (96, 24),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "x_proj.weight": (18, 48),
        "dt_proj.weight": (48, 2),
        "dt_proj.bias": (48,),
        "out_proj.weight": (24, 48),
    }


def test_rank_and_biases_can_be_chosen_in_both_directions():
    mixer = create_mixer("selective_scan", 24, rank=5)
    assert isinstance(mixer, SelectiveScanMixer) and mixer.reverse is not None
    assert mixer.dt_proj.in_features == mixer.reverse.dt_proj.in_features == 5
    biased = build(24, rank=5, conv_bias=False, bias=True, bidirectional=True)
    biases = {name for name, _ in biased.named_parameters() if name.endswith("bias")}
    own = {"in_proj.bias", "dt_proj.bias", "out_proj.bias"}
    assert biases == own | {f"reverse.{name}" for name in own}
    assert biased(torch.randn(2, 6, 24))[0].shape == (2, 6, 24)
    with pytest.raises(ConfigError, match="rank=0"):
        create_mixer("selective_scan", 24, rank=0)


def test_autocast_keeps_the_state_in_single_precision():
    mixer = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(torch.randn(2, 6, 8))
        y, state = mixer(torch.randn(2, 1, 8), state=state)
        y.float().sum().backward()
    assert state.ssm.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in mixer.parameters())


def test_exports_without_a_loop_over_time():
    mixer = build().eval()
    x = torch.randn(2, 32, 8)
    program = torch.export.export(mixer, (x,))
    torch.testing.assert_close(program.module()(x)[0], mixer(x)[0], rtol=1e-4, atol=1e-5)
    assert len(program.graph.nodes) < 150


def test_what_does_not_fit_is_refused():
    mixer, x = build(), torch.randn(2, 6, 8)
    with pytest.raises(ConfigError, match="memory"):
        mixer(x, memory=x)
    with pytest.raises(ShapeError, match="mask"):
        mixer(x, mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="keeps no state"):
        build(bidirectional=True)(x, state=mixer(x)[1])
