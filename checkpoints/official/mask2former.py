"""Key map of Mask2Former's heads: official names to ours.

Origin: facebookresearch/Mask2Former (MIT; published weights CC BY-NC 4.0). Checkpoints keep the head in
``sem_seg_head.``; those of its first versions have no ``pixel_decoder.`` in the keys of that part, and call the learned
queries ``static_query``.
"""

from __future__ import annotations

from checkpoints.keymap import KeyMap

PIXEL_DECODER = (
    (r"^(?!(?:pixel_decoder|predictor)\.)", "pixel_decoder."),
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


def keymap(merges: int = 1) -> KeyMap:
    """The map of a head, from its own keys or out of a whole checkpoint.

    Args:
        merges: Levels finer than the encoder's; 1 in all published weights.
    """
    return KeyMap(
        renames=((r"^sem_seg_head\.", ""), *PIXEL_DECODER, *merge_renames(merges), *PREDICTOR),
        drops=(r"^(backbone|criterion)\.", r"^pixel_(mean|std)$"),
    )


MASK2FORMER = keymap()
