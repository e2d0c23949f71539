"""Adapters of single layers: flow-attention and the Mamba block."""

from __future__ import annotations

from torch import Tensor

from backbones.sequence.flow import FlowMixer
from checkpoints.keymap import load_official
from checkpoints.official.forecasting import KEYMAPS
from tests.parity.case import Case


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
    raise NotImplementedError
