"""Key maps of the restoration networks: official names to ours, by the name of our model.

Origins: Aitical/CFSR (no licence file), XPixelGroup/HAT, AVC2-UESTC/CRAFT-SR and NeonLeexiang/DLGSANet (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.keymap import KeyMap, Stack, Translation

FRAME = (
    (r"^conv_first\.", "shallow."),
    (r"^conv_after_body\.", "after_body."),
    (r"^conv_before_upsample\.0\.", "reconstruction.before."),
    (r"^upsample\.", "reconstruction.steps."),
    (r"^conv_up1\.", "reconstruction.steps.0."),
    (r"^conv_up2\.", "reconstruction.steps.1."),
    (r"^conv_hr\.", "reconstruction.refine."),
    (r"^conv_last\.", "reconstruction.last."),
)
"""What is called alike in the code bases that grew out of SwinIR."""

EDGES = ("sobel_x", "sobel_y", "laplacian")
"""Edge branches of CFSR in the order of our stacked tensors."""
CFSR_BLOCK = (
    (r"\.layer_scale_1$", ".modulation_scale"),
    (r"\.layer_scale_2$", ".feedforward_scale"),
    (r"\.attn\.norm\.", ".modulation.norm."),
    (r"\.attn\.a\.0\.", ".modulation.gate."),
    (r"\.attn\.a\.2\.lkb_reparam\.", ".modulation.depthwise."),
    (r"\.attn\.v\.", ".modulation.value."),
    (r"\.attn\.proj\.", ".modulation.out."),
    (r"\.mlp\.norm\.", ".feedforward.norm."),
    (r"\.mlp\.fc1\.", ".feedforward.expand."),
    (r"\.mlp\.fc2\.", ".feedforward.contract."),
    (r"\.mlp\.pos\.", ".feedforward.edges."),
    *((rf"\.mlp\.scale_{name}$", f".feedforward.edges.edge_scales.{index}") for index, name in enumerate(EDGES)),
    *((rf"\.mlp\.{name}_bias$", f".feedforward.edges.edge_biases.{index}") for index, name in enumerate(EDGES)),
)


@dataclass(frozen=True)
class EdgeKeyMap(KeyMap):
    """A key map that completes weights whose edge branches were summed up, as published ones are.

    The sums go into the plain kernels and the branches begin at zero: the same function, and a training form can go on
    from it. A model without branches never asks for them, so one map serves both.
    """

    def translate(self, official: Mapping[str, Tensor]) -> Translation:
        """Rename, convert and stack, then add branches of zeros where there are none."""
        result = super().translate(official)
        for name in [name for name in result.tensors if name.endswith(".edges.bias")]:
            bias, prefix = result.tensors[name], name.removesuffix("bias")
            for branch in ("edge_scales", "edge_biases"):
                if f"{prefix}{branch}" not in result.tensors:
                    result.tensors[f"{prefix}{branch}"] = torch.zeros(len(EDGES), *bias.shape).to(bias)
                    result.sources[f"{prefix}{branch}"] = []
        return result


CFSR = EdgeKeyMap(
    renames=(*FRAME, (r"^(layers\.\d+)\.conv\.", r"\1.convolution."), *CFSR_BLOCK),
    converts=((r"\.edge_scales\.\d$", torch.flatten),),
    drops=(r"\.mlp\.mask_\w+$",),
    stacks=(Stack(r"(?P<edges>.*\.edge_(?:scales|biases))\.(?P<index>\d)", r"\g<edges>"),),
)

HAT = KeyMap(
    renames=(
        *FRAME,
        (r"^patch_embed\.norm\.", "patch_norm."),
        (r"^absolute_pos_embed$", "positions.table"),
        (r"^layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", r"groups.\1.blocks.\2."),
        (r"^layers\.(\d+)\.residual_group\.overlap_attn\.", r"groups.\1.overlapping."),
        (r"^layers\.(\d+)\.conv\.", r"groups.\1.convolution."),
        (r"\.norm1\.", ".attention_norm."),
        (r"\.norm2\.", ".mlp_norm."),
        (r"\.attn\.", ".attention."),
        (r"\.overlapping\.(qkv|proj|relative_position_bias_table)\b", r".overlapping.attention.\1"),
        (r"\.attention\.proj\.", ".attention.out."),
        (r"\.attention\.relative_position_bias_table$", ".attention.position.table"),
        (r"\.conv_block\.cab\.0\.", ".convolutions.reduce."),
        (r"\.conv_block\.cab\.2\.", ".convolutions.expand."),
        (r"\.conv_block\.cab\.3\.attention\.1\.", ".convolutions.squeeze."),
        (r"\.conv_block\.cab\.3\.attention\.3\.", ".convolutions.excite."),
        (r"\.mlp\.fc1\.", ".mlp.expand."),
        (r"\.mlp\.fc2\.", ".mlp.contract."),
    ),
    drops=(r"\brelative_position_index(_SA|_OCA)?$", r"\battn_mask$"),
)

POSITIONS = (
    (r"\bpos_proj\.", "embed."),
    (r"\bpos1\.", "layers.0."),
    (r"\bpos2\.", "layers.1."),
    (r"\bpos3\.", "layers.2."),
)
"""The network that makes a bias of offsets, of CrossFormer and CRAFT."""
RESTORMER = (
    (r"\.attn\.(q|kv|qkv)_dwconv\.", r".attention.\1_depthwise."),
    (r"\.attn\.project_out\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.ffn\.project_in\.", ".mlp.expand."),
    (r"\.ffn\.dwconv\.", ".mlp.depthwise."),
    (r"\.ffn\.project_out\.", ".mlp.contract."),
)
"""Channel attention and gated feed-forward network, of code that grew out of Restormer's."""

CRAFT = KeyMap(
    renames=(
        *FRAME,
        (r"^norm\.body\.", "norm."),
        (r"^layers\.(\d+)\.residual_group\.srwa_blocks\.", r"groups.\1.rectangles."),
        (r"^layers\.(\d+)\.residual_group\.hfer_blocks\.", r"groups.\1.frequencies."),
        (r"^layers\.(\d+)\.residual_group\.hf_blocks\.", r"groups.\1.fusions."),
        (r"^layers\.(\d+)\.conv\.", r"groups.\1.convolution."),
        (r"\.norm1(\.body)?\.", ".attention_norm."),
        (r"\.norm2(\.body)?\.", ".mlp_norm."),
        (r"(\.rectangles\.\d+)\.qkv\.", r"\1.attention.qkv."),
        (r"(\.rectangles\.\d+)\.proj\.", r"\1.attention.out."),
        (r"(\.rectangles\.\d+)\.get_v\.", r"\1.attention.local."),
        (r"(\.rectangles\.\d+)\.attns\.(\d)\.pos\.", r"\1.attention.positions.\2."),
        *POSITIONS,
        (r"\.mlp\.fc1\.", ".mlp.expand."),
        (r"\.mlp\.fc2\.", ".mlp.contract."),
        (r"(\.frequencies\.\d+)\.conv\.", r"\1.convolution."),
        (r"(\.frequencies\.\d+)\.fc\.", r"\1.peaks."),
        (r"(\.frequencies\.\d+)\.last_fc\.", r"\1.out."),
        *RESTORMER,
    ),
    drops=(r"^relative_position_index_[hv]$", r"^biases_[hv]$"),
)

DLGSANET = KeyMap(
    renames=(
        *FRAME,
        (r"^overlap_embed\.0\.proj\.", "shallow."),
        (r"^deep_feature_extraction\.\d+\.(weight|bias)$", r"after_body.\1"),
        (r"^deep_feature_extraction\.(\d+)\.body\.(weight|bias)$", r"body.\1.\2"),
        (r"^deep_feature_extraction\.(\d+)\.body\.\d+\.(weight|bias)$", r"body.\1.convolution.\2"),
        (r"^deep_feature_extraction\.(\d+)\.body\.(\d+)\.", r"body.\1.layers.\2."),
        (r"\.norm[13]\.body\.", ".attention_norm."),
        (r"\.norm[24]\.body\.", ".mlp_norm."),
        (r"\.IDynamicDWConv\.conv0\.", ".attention.value."),
        (r"\.IDynamicDWConv\.conv1\.", ".attention.out."),
        (r"\.IDynamicDWConv\.conv\.(weight|bias)$", r".attention.convolution.\1"),
        (r"\.IDynamicDWConv\.conv\.conv1\.0\.", ".attention.convolution.reduce."),
        (r"\.IDynamicDWConv\.conv\.conv1\.1\.", ".attention.convolution.depthwise."),
        (r"\.IDynamicDWConv\.conv\.conv2\.0\.", ".attention.convolution.kernels."),
        (r"\.restormer_attn\.", ".attn."),
        (r"\.(IDynamic|restormer)_ffn\.", ".ffn."),
        *RESTORMER,
    ),
)

KEYMAPS: Mapping[str, KeyMap] = {
    "cfsr": CFSR,
    "hat_s": HAT,
    "hat": HAT,
    "hat_l": HAT,
    "craft": CRAFT,
    "dlgsanet_tiny": DLGSANET,
    "dlgsanet_light": DLGSANET,
    "dlgsanet": DLGSANET,
}
"""The map for each of our models."""
