"""The auto-correlation mixer: official layer outputs, its two modes, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from backbones.sequence import create_mixer
from backbones.sequence.autocorrelation import AutoCorrelationMixer
from graftwork.errors import ConfigError


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_official_layer_output(shared, backend, monkeypatch):
    """The first encoder layer gets the embedding; its attention output is in the official case."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    folder = shared / "goldens" / "forecasting"
    case = json.loads((folder / "autoformer_tiny.json").read_text())
    tensors, config = load_file(folder / "autoformer_tiny.safetensors"), case["config"]
    kernel = tensors["weights.enc_embedding.value_embedding.tokenConv.weight"]
    series = torch.nn.functional.pad(tensors["input.x_enc"].mT, (1, 1), mode="circular")
    marks = tensors["input.x_mark_enc"] @ tensors["weights.enc_embedding.temporal_embedding.embed.weight"].T
    x = torch.nn.functional.conv1d(series, kernel).mT + marks
    mixer = AutoCorrelationMixer(config["d_model"], config["n_heads"], config["factor"]).eval()
    prefix = "weights.encoder.attn_layers.0.attention."
    own = {k.removeprefix(prefix).replace("_projection", ""): v for k, v in tensors.items() if k.startswith(prefix)}
    mixer.load_state_dict(own)
    monkeypatch.setenv("GRAFTWORK_ATTENTION", backend)
    y, _ = mixer(x)
    expected = tensors["output.encoder_layer0_autocorrelation"]
    torch.testing.assert_close(y, expected, rtol=case["tolerance"]["rtol"], atol=case["tolerance"]["atol"])


def test_training_shares_delays_and_evaluation_does_not():
    torch.manual_seed(0)
    mixer = create_mixer("autocorrelation", 16, heads=4)
    x = torch.randn(3, 24, 16)
    own = mixer.eval()(x)[0]
    torch.testing.assert_close(own[:1], mixer(x[:1])[0])
    assert not torch.allclose(mixer.train()(x)[0], own)


def test_it_reads_a_memory_of_any_length():
    mixer = create_mixer("autocorrelation", 16, heads=2).eval()
    assert mixer.supports_cross and not mixer.causal
    for length in (5, 12, 30):
        y, state = mixer(torch.randn(2, 12, 16), memory=torch.randn(2, length, 16))
        assert y.shape == (2, 12, 16) and state is None


def test_causal_form_and_padding_are_refused():
    with pytest.raises(ConfigError, match="no causal form"):
        create_mixer("autocorrelation", 16, causal=True)
    mixer, x = create_mixer("autocorrelation", 16), torch.randn(2, 6, 16)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mixer(x, mask=mask)
    mask[0, -1] = False
    with pytest.raises(ConfigError, match="cannot leave out padded tokens"):
        mixer(x, mask=mask)
