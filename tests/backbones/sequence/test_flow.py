"""The flow mixer gives the numbers of the paper's code."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from backbones.attention import force
from backbones.sequence.flow import FlowMixer
from graftwork.errors import ShapeError

CASES = ["flow_attention_self", "flow_attention_cross", "flow_attention_causal"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["auto", "math"])
def test_golden(shared, case, form):
    path = shared / "goldens" / "forecasting" / case
    tensors, facts = load_file(path.with_suffix(".safetensors")), json.loads(path.with_suffix(".json").read_text())
    config, tolerance = facts["config"], facts["tolerance"]
    mixer = FlowMixer(
        config["d_input"],
        heads=config["n_heads"],
        clamp=config["clamp"][1],
        eps=config["eps"],
        inner=config["d_model"],
        out_width=config["d_output"],
        causal="causal" in case,
    )
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    mixer.load_state_dict({name.replace("_projection", ""): value for name, value in weights.items()})
    with force(form):
        found, _ = mixer.eval()(tensors["input.queries"], memory=tensors["input.keys_values"])
    torch.testing.assert_close(found, tensors["output.y"], rtol=tolerance["rtol"], atol=tolerance["atol"])


def test_causal_form_streams_where_the_other_cannot():
    assert FlowMixer(8, heads=2, causal=True).supports_state and not FlowMixer(8, heads=2).supports_state
    assert FlowMixer(8, heads=2).supports_cross and not FlowMixer(8, heads=2, causal=True).supports_cross


def test_causal_memory_of_another_length_is_refused():
    with pytest.raises(ShapeError, match="memory of causal FlowMixer"):
        FlowMixer(8, heads=2, causal=True)(torch.zeros(1, 4, 8), memory=torch.zeros(1, 5, 8))


def test_dropout_follows_the_output_projection():
    mixer = FlowMixer(8, heads=2, dropout=0.5)
    assert (mixer.train()(torch.randn(2, 20, 8))[0] == 0).float().mean() > 0.3
    assert (mixer.eval()(torch.randn(2, 20, 8))[0] != 0).all()


def test_bound_changes_the_competition():
    torch.manual_seed(0)
    bounded, free = FlowMixer(8, heads=2, clamp=0.01).eval(), FlowMixer(8, heads=2).eval()
    free.load_state_dict(bounded.state_dict())
    x = torch.randn(1, 6, 8)
    assert not torch.allclose(bounded(x)[0], free(x)[0])
