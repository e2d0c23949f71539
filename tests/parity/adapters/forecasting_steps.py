"""Adapters of the encoder-decoder forecasters over time steps: Informer and Autoformer."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor

from apps.forecasting.models import config as configs
from apps.forecasting.models.autoformer import Autoformer
from apps.forecasting.models.forecast import Forecaster
from apps.forecasting.models.informer import Informer
from apps.forecasting.models.informer_attention import InformerAttention
from checkpoints.keymap import load_official
from checkpoints.official.forecasting import KEYMAPS
from tests.parity.adapters.forecasting_models import activation, gradients, losses, series_info
from tests.parity.case import Case
from tests.parity.recording import Tap, record


def decoder_inputs(case: Case) -> dict[str, Any]:
    """What the official call gives the decoder."""
    return {"decoder_input": case.inputs.get("x_dec"), "decoder_marks": case.inputs.get("x_mark_dec")}


def step_taps(model: Forecaster) -> dict[str, Tap]:
    """Outputs inside encoder and decoder, as far as the model has them."""
    taps = {
        "enc_embedding": Tap("encoder_embedding"),
        "dec_embedding": Tap("decoder_embedding"),
        "encoder": Tap("encoder"),
        "decoder": Tap("decoder"),
    }
    patterns = {
        "encoder.layers.{}.mixer": ("encoder_layer{}_autocorrelation", "encoder_layer{}_attention"),
        "encoder.layers.{}": ("encoder_layer{}",),
        "encoder.between.{}": ("distil{}",),
        "encoder.encoders.{}": ("encoder{}",),
        "decoder.layers.{}.self_mixer": ("decoder_layer{}_self_attention",),
        "decoder.layers.{}.cross_mixer": ("decoder_layer{}_cross_attention",),
        "decoder.layers.{}": ("decoder_layer{}",),
    }
    modules = dict(model.named_modules())
    for pattern, names in patterns.items():
        i = 0
        while pattern.format(i) in modules:
            taps.update({name.format(i): Tap(pattern.format(i)) for name in names})
            i += 1
    return taps


def feed_index_samples(model: Informer, case: Case) -> None:
    """Give each attention the table of sampled keys that the reference drew."""
    keymap = KEYMAPS["informer"]
    for name, official_path in (case.meta.get("index_sample") or {}).items():
        layer = official_path.removesuffix(".inner_attention")
        path = keymap.rename(f"{layer}.query_projection.weight").removesuffix(".query.weight")
        attention = model.get_submodule(path)
        assert isinstance(attention, InformerAttention), path
        attention.index_sample = case.tensors[name]


def informer(case: Case, flavour: Literal["original", "library"] = "original") -> dict[str, Tensor]:
    official = case.config
    stack = official["e_layers"] if isinstance(official["e_layers"], list | tuple) else ()
    config = configs.InformerConfig(
        flavour=flavour,
        width=official["d_model"],
        feedforward=official.get("d_ff") or 4 * official["d_model"],
        layers=1 if stack else official["e_layers"],
        stack_layers=tuple(stack),
        decoder_layers=official["d_layers"],
        heads=official["n_heads"],
        factor=official.get("factor", 5),
        attention=official.get("attn", "prob"),
        distil=bool(official.get("distil", True)),
        mix=bool(official.get("mix", True)),
        embed=official.get("embed", "timeF"),
        label_length=official["label_len"],
        dropout=official.get("dropout", 0.0),
        activation=activation(official),
    )
    info = series_info(case)
    info = dataclasses.replace(info, outputs=official.get("c_out", info.outputs))
    model = Informer(config, info, decoder_variates=case.inputs["x_dec"].shape[-1]).eval()
    load_official(model, case.weights, KEYMAPS["informer"])
    feed_index_samples(model, case)
    inputs = decoder_inputs(case)
    with record(model, step_taps(model)) as seen:
        values = model(case.inputs["x_enc"], case.inputs.get("x_mark_enc"), **inputs).values
    return {**seen, **losses(values, case), **gradients(model, KEYMAPS["informer"], case, inputs)}


def informer_library(case: Case) -> dict[str, Tensor]:
    return informer(case, "library")


def autoformer(case: Case) -> dict[str, Tensor]:
    official = case.config
    config = configs.AutoformerConfig(
        width=official["d_model"],
        feedforward=official.get("d_ff") or 4 * official["d_model"],
        layers=official["e_layers"],
        decoder_layers=official["d_layers"],
        heads=official["n_heads"],
        factor=official.get("factor", 1),
        moving_average=official.get("moving_avg", 25),
        embed=official.get("embed", "timeF"),
        label_length=official["label_len"],
        dropout=official.get("dropout", 0.0),
        activation=activation(official),
    )
    model = Autoformer(config, series_info(case), trend_variates=official.get("c_out")).eval()
    keymap = KEYMAPS["autoformer"]
    load_official(model, case.weights, keymap)
    inputs = decoder_inputs(case)
    history, marks = case.inputs["x_enc"], case.inputs.get("x_mark_enc")
    taps = {
        **step_taps(model),
        "decomp_seasonal": Tap("decomposition"),
        "decomp_trend": Tap("decomposition", index=1),
        "encoder_norm_input": Tap("encoder.norm", before=True),
        "seasonal_part": Tap("decoder"),
        "trend_part": Tap("decoder", index=1),
    }
    with record(model, taps) as seen:
        values = model(history, marks, **inputs).values
    outputs = {**seen, **losses(values, case), **gradients(model, keymap, case, inputs)}
    model.train()
    outputs.update(losses(model(history, marks, **inputs).values, case, "_train_mode"))
    outputs.update(gradients(model, keymap, case, inputs, "_train_mode"))
    return outputs
