"""Adapters of single layers: flow-attention and the Mamba block."""

from __future__ import annotations

from torch import Tensor

from backbones.sequence.flow import FlowMixer
from backbones.sequence.selective_scan import MambaState, SelectiveScanMixer
from checkpoints.keymap import load_official
from checkpoints.official.forecasting import KEYMAPS
from tests.parity.case import Case
from tests.parity.recording import gradient_keys, official_gradients


def flow_attention(case: Case) -> dict[str, Tensor]:
    """Causal or not stands in the title of the case only."""
    official = case.config
    words = f"{case.name} {case.meta.get('title', '')}".lower()
    clamp = official.get("clamp")
    mixer = FlowMixer(
        official["d_input"],
        heads=official["n_heads"],
        clamp=float(max(clamp)) if isinstance(clamp, list | tuple) else clamp,
        causal=bool(official.get("causal", "causal" in words)),
        eps=official.get("eps", 1e-6),
        inner=official["d_model"],
        out_width=official["d_output"],
        memory_width=case.inputs["keys_values"].shape[-1],
    ).eval()
    load_official(mixer, case.weights, KEYMAPS["flow"])
    mixed, _ = mixer(case.inputs["queries"], memory=case.inputs["keys_values"])
    return {"y": mixed}


def mamba_block(case: Case) -> dict[str, Tensor]:
    """One pass for outputs and gradients; token by token for the final states."""
    official = case.config
    rank = official.get("dt_rank", "auto")
    block = SelectiveScanMixer(
        official["d_model"],
        state_size=official.get("d_state", 16),
        kernel=official.get("d_conv", 4),
        expand=official.get("expand", 2),
        rank=None if rank in ("auto", None) else int(rank),
        conv_bias=bool(official.get("conv_bias", True)),
        bias=bool(official.get("bias", False)),
    ).eval()
    keymap, inputs = KEYMAPS["selective_scan"], case.inputs["x"]
    load_official(block, case.weights, keymap)
    mixed, _ = block(inputs)
    state: MambaState | None = None
    for token in inputs.split(1, dim=1):
        _, state = block(token, state=state)
    assert state is not None
    outputs = {
        "y": mixed,
        "mean_square": mixed.square().mean(),
        "final_conv_state": state.conv,
        "final_ssm_state": state.ssm,
    }
    keys = gradient_keys(case.expected, "grad")
    found = official_gradients(block, keymap, case.weights, keys, lambda call: call(inputs)[0].square().mean())
    return outputs | {f"grad.{key}": value for key, value in found.items()}
