"""Key map of kMaX-DeepLab: official names to those of our head.

Origin: bytedance/kmax-deeplab (Apache-2.0). Surprises: ``predcitor`` is spelt so in the keys of all published weights;
the table of cluster centres has a query in every column, as ours has.
"""

from __future__ import annotations

from checkpoints.keymap import KeyMap

Renames = tuple[tuple[str, str], ...]

PARTS: Renames = (
    (r"^sem_seg_head\.", ""),
    (r"^predictor\._auxiliary_semantic_predictor\.", "semantic."),
    (r"^predictor\.", "decoder."),
)
PIXEL_DECODER: Renames = (
    (r"\._in_norms\.", ".input_norms."),
    (r"\._stages\.(\d+)\._blocks\.", r".stages.\1."),
    (r"\._resized_fuses\.", ".fusions."),
    (r"\._conv_bn_low\.", ".coarse."),
    (r"\._conv_bn_high\.", ".fine."),
    (r"\._conv1_bn_act\.", ".narrow."),
    (r"\._conv2_bn_act\.", ".middle."),
    (r"\._conv3_bn\.", ".widen."),
    (r"\._shortcut\.", ".shortcut."),
    (r"\._attention\._(height|width)_axis\.", r".middle.\1."),
    (r"\.qkv_transform\.conv\.", ".qkv."),
    (r"\._(query|key|value)_rpe\._embeddings\.weight$", r".\1_table"),
    (r"\._batch_norm_qkv\.", ".qkv_norm."),
    (r"\._batch_norm_retrieved_output\.", ".output_norm."),
)
DECODER: Renames = (
    (r"\._cluster_centers\.weight$", ".centres"),
    (r"\._(class|mask)_embedding_projection\.", r".\1_projection."),
    (r"\._kmax_transformer_layers\.", ".layers."),
    (r"\._query_conv1_bn_act\.", ".query_in."),
    (r"\._pixel_conv1_bn_act\.", ".pixel_in."),
    (r"\._query_qkv_conv_bn\.", ".attention.qkv."),
    (r"\._pixel_v_conv_bn\.", ".update.values."),
    (r"\._query_self_attention\._batch_norm_retrieved_value\.", ".attention.value_norm."),
    (r"\._query_self_attention\.", ".attention."),
    (r"\._batch_norm_similarity\.", ".similarity_norm."),
    (r"\._query_conv3_bn\.", ".attention.out."),
    (r"\._query_ffn_conv1_bn_act\.", ".expand."),
    (r"\._query_ffn_conv2_bn\.", ".contract."),
    (r"\._kmeans_query_batch_norm_retrieved_value\.", ".update.norm."),
    (r"\._kmeans_query_conv3_bn\.", ".update.out."),
    (r"\._predcitor\.", ".predictor."),
    (r"\._pixel_space_head_conv0bnact\.", ".depthwise."),
    (r"\._pixel_space_head_conv1bnact\.", ".hidden."),
    (r"\._pixel_space_head_last_convbn\.", ".features."),
    (r"\._transformer_mask_head\.", ".kernels."),
    (r"\._transformer_class_head\.conv\.", ".classes."),
    (r"\._pixel_space_mask_batch_norm\.", ".mask_norm."),
)
SEMANTIC: Renames = (
    (r"\._aspp\._aspp_conv(\d)\.", r".pyramid.branches.\1."),
    (r"\._aspp\._aspp_pool\.", ".pyramid.pool."),
    (r"\._aspp\._proj_conv_bn_act\.", ".pyramid.join."),
    (r"\._low_level_(projection|fusion)_os8", r".low_levels.0.\1"),
    (r"\._low_level_(projection|fusion)_os4", r".low_levels.1.\1"),
    (r"(\.low_levels\.\d)\.projection\.", r"\1.project."),
    (r"(\.low_levels\.\d)\.fusion_conv0_bn_act\.", r"\1.depthwise."),
    (r"(\.low_levels\.\d)\.fusion_conv1_bn_act\.", r"\1.join."),
    (r"^semantic\.(?:conv_block_)?0\.", "semantic.depthwise."),
    (r"^semantic\.(?:conv_block_)?1\.", "semantic.hidden."),
    (r"^semantic\.(?:final_conv|2)\.conv\.", "semantic.classifier."),
)

KEYMAPS: dict[str, KeyMap] = {
    "kmax": KeyMap(
        renames=(*PARTS, *PIXEL_DECODER, *DECODER, *SEMANTIC),
        drops=(r"^backbone\.", r"^criterion\.", r"^pixel_(mean|std)$"),
    ),
}
"""The head's map, out of a whole checkpoint or from its own keys; weights without the auxiliary head fit a head
without it (``semantic="none"``)."""
