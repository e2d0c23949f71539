"""Key map of Mask2Former's heads: official names to ours.

Origin: facebookresearch/Mask2Former (MIT; published weights CC BY-NC 4.0). Checkpoints keep the head in
``sem_seg_head.``; those of its first versions have no ``pixel_decoder.`` in the keys of that part, and call the learned
queries ``static_query``.
"""

from __future__ import annotations

from checkpoints.keymap import KeyMap

PIXEL_DECODER = (
    (r"^(?!(?:pixel_decoder|predictor|backbone)\.)", "pixel_decoder."),
    (r"^pixel_decoder\.input_proj\.", "pixel_decoder.projections."),
    (r"^pixel_decoder\.transformer\.level_embed$", "pixel_decoder.level_positions"),
    (r"^pixel_decoder\.transformer\.encoder\.", "pixel_decoder.encoder."),
    (r"\.self_attn\.sampling_offsets\.", ".attention.offsets."),
    (r"\.self_attn\.attention_weights\.", ".attention.weights."),
    (r"\.self_attn\.value_proj\.", ".attention.value."),
    (r"\.self_attn\.output_proj\.", ".attention.out."),
    (r"^(pixel_decoder\.encoder\..*)\.norm1\.", r"\1.attention_norm."),
    (r"^(pixel_decoder\.encoder\..*)\.norm2\.", r"\1.mlp_norm."),
    (r"\.linear1\.", ".expand."),
    (r"\.linear2\.", ".contract."),
)
PREDICTOR = (
    (r"^predictor\.(?:static_query|query_feat)\.weight$", "decoder.query_features"),
    (r"^predictor\.query_embed\.weight$", "decoder.query_positions"),
    (r"^predictor\.level_embed\.weight$", "decoder.level_positions"),
    (r"^predictor\.input_proj\.", "decoder.projections."),
    (r"^predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.", r"decoder.layers.\1.cross_attention."),
    (r"^predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.", r"decoder.layers.\1.self_attention."),
    (r"^predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.cross_norm."),
    (r"^predictor\.transformer_self_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.self_norm."),
    (r"^predictor\.transformer_ffn_layers\.(\d+)\.norm\.", r"decoder.layers.\1.mlp_norm."),
    (r"^predictor\.transformer_ffn_layers\.", "decoder.layers."),
    (r"_attention\.in_proj_(weight|bias)$", r"_attention.\1"),
    (r"_attention\.out_proj\.", "_attention.out."),
    (r"^predictor\.decoder_norm\.", "decoder.norm."),
    (r"^predictor\.class_embed\.", "decoder.values."),
    (r"^predictor\.mask_embed\.layers\.", "decoder.mask_layers."),
)


def merge_renames(merges: int = 1) -> tuple[tuple[str, str], ...]:
    """Names of the layers that merge finer levels; official ones are counted finest first, ours coarsest first.

    Args:
        merges: How many levels are merged.
    """
    parts = []
    for official in range(1, merges + 1):
        ours = rf"pixel_decoder.merges.{merges - official}"
        for name, part in (("adapter", "lateral"), ("layer", "smooth")):
            parts.append((rf"^pixel_decoder\.{name}_{official}\.norm\.", f"{ours}.{part}_norm."))
            parts.append((rf"^pixel_decoder\.{name}_{official}\.", f"{ours}.{part}."))
    return tuple(parts)


SWIN = (
    (r"^backbone\.norm(\d)\.", r"backbone.output_norms.\1."),
    *((rf"^backbone\.layers\.{i}\.downsample\.", f"backbone.trunk.layers.{i + 1}.downsample.") for i in range(3)),
    (r"^backbone\.(layers|patch_embed)\.", r"backbone.trunk.\1."),
)
"""Swin's own names to timm's: what halves a map stands before the next stage there."""
RESNET = (
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.trunk.bn1."),
    (r"^backbone\.stem\.conv1\.", "backbone.trunk.conv1."),
    (r"^(backbone\.res\d\..*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"^(backbone\.res\d\..*)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(backbone\.res\d\..*)\.shortcut\.", r"\1.downsample.0."),
    *((rf"^backbone\.res{stage}\.", f"backbone.trunk.layer{stage - 1}.") for stage in range(2, 6)),
)
"""detectron2's names to timm's."""
TABLES = (r"^criterion\.", r"^pixel_(mean|std)$", r"\.relative_position_index$", r"\.attn_mask$")
"""Constants, and what only training needs."""


def _head(merges: int) -> tuple[tuple[str, str], ...]:
    return ((r"^sem_seg_head\.", ""), *PIXEL_DECODER, *merge_renames(merges), *PREDICTOR)


def keymap(merges: int = 1) -> KeyMap:
    """The map of a head, from its own keys or out of a whole checkpoint.

    Args:
        merges: Levels finer than the encoder's; 1 in all published weights.
    """
    return KeyMap(renames=_head(merges), drops=(r"^backbone\.", *TABLES))


def segmenter_keymap(merges: int = 1) -> KeyMap:
    """The map of a whole checkpoint, with a Swin (norms on its outputs) or a ResNet of timm as the backbone.

    Args:
        merges: See :func:`keymap`.
    """
    within = (r"^(pixel_decoder|decoder)\.", r"head.\1.")
    return KeyMap(renames=(*_head(merges), within, *SWIN, *RESNET), drops=TABLES)


HEADS = {"mask2former": keymap()}
"""The head by itself."""
KEYMAPS = {"mask2former": segmenter_keymap()}
"""The whole segmenter."""
