"""Key maps of BiFormer: official names to those of our classifiers.

Origin: rayleizhu/BiFormer (MIT), classification models and the backbones of its dense-prediction models.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from checkpoints.keymap import KeyMap

OTHER_PARTS = r"^(decode_head|auxiliary_head|neck|rpn_head|roi_head|bbox_head)\."
"""Heads of dense-prediction models."""

MODEL = (
    (r"^backbone\.", ""),
    (r"^head\.", "head.linear."),
    (r"^norm\.", "head.norm."),
    (r"^extra_norms\.", "backbone.output_norms."),
    (r"^downsample_layers\.0\.", "backbone.stem."),
    (r"^downsample_layers\.(\d+)\.", r"backbone.stages.\1.downsample."),
    (r"^stages\.(\d+)\.(?:blocks\.)?(\d+)\.", r"backbone.stages.\1.blocks.\2."),
)
BLOCK = (
    (r"\.pos_embed\.", ".position."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.gamma1$", ".attention_scale"),
    (r"\.gamma2$", ".mlp_scale"),
    (r"\.mlp\.0\.", ".mlp.expand."),
    (r"\.mlp\.1\.dwconv\.", ".mlp.depthwise."),
    (r"\.mlp\.[23]\.", ".mlp.contract."),
)
MIXER = (
    (r"\.attn\.qkv\.(?:qkv\.)?", ".attention.qkv."),
    (r"\.attn\.(?:wo|proj)\.", ".attention.out."),
    (r"\.attn\.lepe\.", ".attention.lepe."),
    (r"\.attn\.1\.", ".attention.enter."),
    (r"\.attn\.2\.", ".attention.depthwise."),
    (r"\.attn\.3\.", ".attention.leave."),
)


def _linear(weight: Tensor) -> Tensor:
    """[out, in, 1, 1] to [out, in]."""
    return weight.flatten(1)


BIFORMER = KeyMap(
    renames=(*MODEL, *BLOCK, *MIXER),
    converts=((r"\.attention\.(enter|leave)\.weight$", _linear),),
    drops=(OTHER_PARTS,),
)

KEYMAPS: Mapping[str, KeyMap] = {"biformer": BIFORMER, "biformer_stl": BIFORMER}
"""The map for each family."""
