"""Key maps of NAT and DiNAT: official names to those of our classifiers.

Origin: SHI-Labs/Neighborhood-Attention-Transformer (MIT), classification models and the backbones of its
dense-prediction models.
"""

from __future__ import annotations

from collections.abc import Mapping

from checkpoints.keymap import KeyMap

OTHER_PARTS = r"^(decode_head|auxiliary_head|neck|rpn_head|roi_head|sem_seg_head|criterion)\."
"""Heads of dense-prediction models."""

MODEL = (
    (r"^backbone\.", ""),
    (r"^head\.", "head.linear."),
    (r"^norm\.", "head.norm."),
    (r"^norm(\d+)\.", r"backbone.output_norms.\1."),
    (r"^patch_embed\.", "backbone.stem."),
    (r"\.stem\.proj\.0\.", ".stem.first."),
    (r"\.stem\.proj\.1\.", ".stem.second."),
    (r"\.stem\.proj\.", ".stem.projection."),
)
LEVELS = (
    # Ours holds what makes a level, theirs what follows on it.
    *((rf"^(levels|layers)\.{level}\.downsample\.", f"backbone.stages.{level + 1}.downsample.") for level in range(8)),
    (r"^(?:levels|layers)\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
)
ONE_LEVEL = (
    (r"^(?:levels|layers)\.0\.blocks\.", "blocks."),
    (r"^(?:blocks|levels|layers)\.(\d+)\.(?=norm|attn|mlp|gamma)", r"backbone.stages.0.blocks.\1."),
)
BLOCK = (
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.gamma1$", ".attention_scale"),
    (r"\.gamma2$", ".mlp_scale"),
    (r"\.attn\.(qkv|rpb)\b", r".attention.\1"),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.mlp\.fc1\.", ".mlp.expand."),
    (r"\.mlp\.fc2\.", ".mlp.contract."),
)

PYRAMID = KeyMap(renames=(*MODEL, *LEVELS, *BLOCK), drops=(OTHER_PARTS,))
ISOTROPIC = KeyMap(renames=(*MODEL, *ONE_LEVEL, *BLOCK), drops=(OTHER_PARTS,))

KEYMAPS: Mapping[str, KeyMap] = {
    "nat": PYRAMID,
    "dinat": PYRAMID,
    "dinat_s": PYRAMID,
    "dinat_isotropic": ISOTROPIC,
}
"""The map for each family."""
