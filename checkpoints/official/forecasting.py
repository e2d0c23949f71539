"""Key maps of the forecasting systems: official names to ours, by the name of our model.

Origins: thuml/iTransformer, thuml/Time-Series-Library, thuml/Flowformer (MIT), zhouhaoyi/Informer2020 (Apache-2.0),
wzhwzhwzh0921/S-D-Mamba (no licence file), state-spaces/mamba (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from checkpoints.keymap import KeyMap, Stack, linear_of_conv

POSITION_TABLES = r"position_embedding\.pe$"
"""Fixed sine and cosine tables: computed here, never read."""

PROJECTIONS = ((r"\b(query|key|value|out)_projection\.", r"\1."),)
ENCODER_LAYERS = (
    (r"\battn_layers\.", "layers."),
    (r"^(encoder\..*layers\.\d+)\.attention\.", r"\1.mixer."),
    (r"^(encoder\..*layers\.\d+)\.norm1\.", r"\1.mixer_norm."),
    (r"^(encoder\..*layers\.\d+)\.norm2\.", r"\1.feedforward_norm."),
)
DECODER_LAYERS = (
    (r"\b(self|cross)_attention\.", r"\1_mixer."),
    (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.cross_norm."),
    (r"^(decoder\.layers\.\d+)\.norm3\.", r"\1.feedforward_norm."),
)
FEEDFORWARD = ((r"\.conv1\.", ".feedforward.expand."), (r"\.conv2\.", ".feedforward.contract."))
CONV_TO_LINEAR = ((r"\.feedforward\.(expand|contract)\.weight$", linear_of_conv),)
STEP_EMBEDDINGS = (
    (r"^enc_embedding\.", "encoder_embedding."),
    (r"^dec_embedding\.", "decoder_embedding."),
    (r"\.value_embedding\.tokenConv\.", ".value.convolution."),
    (r"\.temporal_embedding\.embed\.", ".calendar.linear."),
    (r"\.temporal_embedding\.(\w+)_embed\.(?:emb\.)?", r".calendar.tables.\1."),
)


def _positions(table: Tensor) -> Tensor:
    """[length, 1, width] (sequence first) to [length, width]."""
    return table.squeeze(1)


VARIATE_TOKENS = KeyMap(
    renames=(
        (r"^enc_embedding\.value_embedding\.", "embedding."),
        (r"^projector\.", "head.linear."),
        *ENCODER_LAYERS,
        *PROJECTIONS,
        *FEEDFORWARD,
    ),
    converts=CONV_TO_LINEAR,
)
SMAMBA = KeyMap(
    renames=(
        (r"^enc_embedding\.value_embedding\.", "embedding."),
        (r"^projector\.", "head.linear."),
        (r"\.attention_r\.", ".attention.reverse."),
        *ENCODER_LAYERS,
        *FEEDFORWARD,
    ),
    converts=CONV_TO_LINEAR,
    drops=(r"\.attn_layers\.\d+\.(man|man2|a)\.",),
)
ENCODER_DECODER = KeyMap(
    renames=(
        *STEP_EMBEDDINGS,
        *ENCODER_LAYERS,
        *DECODER_LAYERS,
        *PROJECTIONS,
        *FEEDFORWARD,
        (r"\bconv_layers\.(\d+)\.downConv\.", r"between.\1.convolution."),
        (r"\bconv_layers\.(\d+)\.", r"between.\1."),
        (r"^decoder\.projection\.", "projection."),
    ),
    converts=CONV_TO_LINEAR,
    drops=(POSITION_TABLES,),
)
AUTOFORMER = KeyMap(
    renames=(
        *STEP_EMBEDDINGS,
        *ENCODER_LAYERS,
        *DECODER_LAYERS,
        *PROJECTIONS,
        *FEEDFORWARD,
        (r"\.layernorm\.", "."),
        (r"^(decoder\.layers\.\d+)\.projection\.", r"\1.trend_convolution."),
    ),
    converts=CONV_TO_LINEAR,
    drops=(POSITION_TABLES,),
)
PATCHTST = KeyMap(
    renames=(
        (r"^patch_embedding\.value_embedding\.", "patches.linear."),
        (r"^encoder\.norm\.1\.", "encoder.norm."),
        *ENCODER_LAYERS,
        *PROJECTIONS,
        *FEEDFORWARD,
    ),
    converts=CONV_TO_LINEAR,
    drops=(POSITION_TABLES,),
)
DLINEAR = KeyMap(
    renames=((r"^Linear_Seasonal\.", "seasonal."), (r"^Linear_Trend\.", "trend.")),
    stacks=(Stack(r"(?P<part>seasonal|trend)\.(?P<index>\d+)\.(?P<name>weight|bias)", r"\g<part>.\g<name>"),),
)
MAMBA = KeyMap(
    renames=(*STEP_EMBEDDINGS, (r"^out_layer\.", "projection.")),
    drops=(POSITION_TABLES,),
)
FLOWFORMER_CLASSIFIER = KeyMap(
    renames=(
        (r"^project_inp\.", "embedding."),
        (r"^pos_enc\.pe$", "positions"),
        (r"^output_layer\.", "head."),
        *ENCODER_LAYERS,
        *PROJECTIONS,
        *FEEDFORWARD,
    ),
    converts=(*CONV_TO_LINEAR, (r"^positions$", _positions)),
)
MIXER = KeyMap(renames=PROJECTIONS)
"""One attention layer by itself."""

KEYMAPS: Mapping[str, KeyMap] = {
    "itransformer": VARIATE_TOKENS,
    "smamba": SMAMBA,
    "patchtst": PATCHTST,
    "informer": ENCODER_DECODER,
    "autoformer": AUTOFORMER,
    "flowformer": ENCODER_DECODER,
    "transformer": ENCODER_DECODER,
    "mamba": MAMBA,
    "dlinear": DLINEAR,
    "flowformer_classifier": FLOWFORMER_CLASSIFIER,
    "flow": MIXER,
    "selective_scan": KeyMap(),
}
"""The map for each of our models, and for mixers alone; iFlowformer is ``itransformer`` with the mixer ``flow``."""
