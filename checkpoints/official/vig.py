"""Key maps of ViG and ViG-H: official names to those of our classifiers.

Origin: hustvl/ViG (MIT). The norms ``outnorm{i}`` of dense prediction are understood too.
"""

from __future__ import annotations

from collections.abc import Mapping

from checkpoints.keymap import KeyMap

MIXER = (
    (r"\.in_proj\.0\.", ".local."),
    (r"\.qkv_proj\.", ".qkv."),
    (r"\.gk_proj\.", ".gate."),
    (r"\.g_proj\.", ".blend."),
    (r"\.g_norm\.", ".read_norm."),
    (r"\.l_norm\.", ".local_norm."),
    (r"\.o_proj\.", ".out."),
)
OUTPUT_NORMS = (r"^outnorm(\d+)\.", r"backbone.output_norms.\1.")

PLAIN = KeyMap(
    renames=(
        (r"^patch_embed\.proj\.0\.", "backbone.stem.first.conv."),
        (r"^patch_embed\.proj\.1\.", "backbone.stem.first.norm."),
        (r"^patch_embed\.proj\.3\.", "backbone.stem.second.conv."),
        (r"^patch_embed\.proj\.4\.", "backbone.stem.second.norm."),
        (r"^pos_embed$", "backbone.pos_embed"),
        (r"^blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."),
        (r"\.attn_norm\.", ".mixer_norm."),
        (r"\.attn\.", ".mixer."),
        *MIXER,
        (r"\.mlp\.gate_proj\.", ".mlp.expand."),
        (r"\.mlp\.down_proj\.", ".mlp.contract."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.linear.\1"),
        OUTPUT_NORMS,
    ),
)
PYRAMID = KeyMap(
    renames=(
        (r"^patch_embed\.0\.", "backbone.stem.first.conv."),
        (r"^patch_embed\.2\.", "backbone.stem.first.norm."),
        (r"^patch_embed\.5\.", "backbone.stem.second.conv."),
        (r"^patch_embed\.7\.", "backbone.stem.second.norm."),
        (r"^layers\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
        # Ours holds what makes a level, theirs what follows on it.
        *((rf"^layers\.{level}\.downsample\.", f"backbone.stages.{level + 1}.downsample.") for level in range(8)),
        (r"\.downsample\.1\.", ".downsample.conv."),
        (r"\.downsample\.3\.", ".downsample.norm."),
        (r"(\.blocks\.\d+)\.norm\.", r"\1.mixer_norm."),
        (r"(\.blocks\.\d+)\.norm2\.", r"\1.mlp_norm."),
        (r"\.op\.", ".mixer."),
        *MIXER,
        (r"\.mlp\.fc1\.", ".mlp.expand."),
        (r"\.mlp\.fc2\.", ".mlp.contract."),
        (r"^classifier\.norm\.", "head.norm."),
        (r"^classifier\.head\.", "head.linear."),
        OUTPUT_NORMS,
    ),
)

KEYMAPS: Mapping[str, KeyMap] = {"vig": PLAIN, "vig_h": PYRAMID}
"""The map for each family."""
