"""Adapters of the forecasters whose tokens are variates, patches or scanned steps, and of the classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from apps.forecasting.models import config as configs
from apps.forecasting.models.flowformer_classifier import FlowformerClassifier
from apps.forecasting.models.forecast import Forecaster
from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.mamba import MambaForecaster
from backbones.sequence.config import FlowMixerConfig, SoftmaxMixerConfig
from checkpoints.keymap import KeyMap, load_official
from checkpoints.official.forecasting import KEYMAPS
from tests.parity.case import Case
from tests.parity.recording import Tap, gradient_keys, official_gradients, record


def series_info(case: Case) -> SeriesInfo:
    """Sizes of the series of a case; widths are read off its inputs."""
    official, history, marks = case.config, case.inputs["x_enc"], case.inputs.get("x_mark_enc")
    embed = official.get("embed", "timeF")
    variates = history.shape[-1]
    return SeriesInfo(
        look_back=official.get("seq_len", history.shape[1]),
        horizon=official.get("pred_len", official.get("out_len", 1)),
        variates=variates,
        outputs=variates,
        mark_features=0 if marks is None else marks.shape[-1],
        frequency=official.get("freq", "h"),
        marks="features" if embed == "timeF" else "integer",
    )


def activation(official: dict[str, Any]) -> Any:
    """Anything that is not exactly relu is GELU in the official code."""
    return "relu" if official.get("activation", "gelu") == "relu" else "gelu"


def losses(values: Tensor, case: Case, suffix: str = "") -> dict[str, Tensor]:
    """Forecast with its mean squared and absolute error against ``target``."""
    found = {f"forecast{suffix}": values}
    if "target" in case.inputs:
        target = case.inputs["target"]
        shown = values[..., -target.shape[-1] :]
        found[f"mse{suffix}"] = nn.functional.mse_loss(shown, target)
        found[f"mae{suffix}"] = nn.functional.l1_loss(shown, target)
    return found


def gradients(
    model: Forecaster, keymap: KeyMap, case: Case, inputs: dict[str, Any], suffix: str = ""
) -> dict[str, Tensor]:
    """Gradients of the mean squared error that the case asks for."""
    prefix = f"grad{suffix}"
    keys = gradient_keys(case.expected, prefix)
    if not keys:
        return {}
    history = case.inputs["x_enc"]

    def loss(call: Any) -> Tensor:
        return losses(call(history, case.inputs.get("x_mark_enc"), **inputs).values, case)["mse"]

    return {f"{prefix}.{k}": g for k, g in official_gradients(model, keymap, case.weights, keys, loss).items()}


def encoder_taps(layers: int) -> dict[str, Tap]:
    """Outputs of the embedding, of each mixer and layer, and of the last norm."""
    taps = {"enc_embedding": Tap("dropout"), "encoder_norm": Tap("encoder.norm"), "encoder": Tap("encoder")}
    for i in range(layers):
        taps[f"attention{i}"] = Tap(f"encoder.layers.{i}.mixer")
        taps[f"encoder_layer{i}"] = Tap(f"encoder.layers.{i}")
    return taps


def run_forecaster(case: Case, model: Forecaster, keymap: KeyMap, taps: dict[str, Tap]) -> dict[str, Tensor]:
    """Load and run a forecaster that decodes nothing."""
    model.eval()
    load_official(model, case.weights, keymap)
    history, marks = case.inputs["x_enc"], case.inputs.get("x_mark_enc")
    with record(model, taps) as seen:
        values = model(history, marks).values
    outputs = {**seen, **losses(values, case), **gradients(model, keymap, case, {})}
    if marks is not None:
        outputs["forecast_no_marks"] = model(history, None).values
    return outputs


def itransformer(case: Case, **changes: Any) -> dict[str, Tensor]:
    official = case.config
    config = configs.ITransformerConfig(
        width=official["d_model"],
        feedforward=official.get("d_ff") or 4 * official["d_model"],
        layers=official["e_layers"],
        dropout=official.get("dropout", 0.1),
        activation=activation(official),
        instance_norm=bool(official.get("use_norm", True)),
        mixer=SoftmaxMixerConfig(heads=official["n_heads"], dropout=official.get("dropout", 0.1)),
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return run_forecaster(case, config.build(series_info(case)), KEYMAPS["itransformer"], encoder_taps(config.layers))


def iflowformer(case: Case) -> dict[str, Tensor]:
    """The official code normalises always, and its flow-attention has neither clamp nor dropout."""
    return itransformer(case, mixer=FlowMixerConfig(heads=case.config["n_heads"]), instance_norm=True)


def smamba(case: Case) -> dict[str, Tensor]:
    official = case.config
    config = configs.SMambaConfig(
        width=official["d_model"],
        feedforward=official.get("d_ff") or 4 * official["d_model"],
        layers=official["e_layers"],
        state_size=official.get("d_state", 32),
        dropout=official.get("dropout", 0.1),
        activation=activation(official),
        instance_norm=bool(official.get("use_norm", True)),
    )
    return run_forecaster(case, config.build(series_info(case)), KEYMAPS["smamba"], encoder_taps(config.layers))


def patchtst(case: Case) -> dict[str, Tensor]:
    official = case.config
    config = configs.PatchTSTConfig(
        width=official["d_model"],
        feedforward=official.get("d_ff") or 4 * official["d_model"],
        layers=official["e_layers"],
        patch_length=official.get("patch_len", 16),
        stride=official.get("stride", 8),
        dropout=official.get("dropout", 0.1),
        activation=activation(official),
        mixer=SoftmaxMixerConfig(heads=official["n_heads"], dropout=official.get("dropout", 0.1)),
    )
    taps = encoder_taps(config.layers)
    taps["enc_embedding"] = taps["patch_embedding"] = Tap("patches")
    return run_forecaster(case, config.build(series_info(case)), KEYMAPS["patchtst"], taps)


def dlinear(case: Case) -> dict[str, Tensor]:
    official = case.config
    individual = any(key.startswith("Linear_Seasonal.0.") for key in case.weights)
    config = configs.DLinearConfig(
        moving_average=official.get("moving_avg", 25),
        individual=bool(official.get("individual", individual)) or individual,
    )
    taps = {"decomp_seasonal": Tap("decomposition"), "decomp_trend": Tap("decomposition", index=1)}
    return run_forecaster(case, config.build(series_info(case)), KEYMAPS["dlinear"], taps)


def mamba(case: Case) -> dict[str, Tensor]:
    official = case.config
    config = configs.MambaConfig(
        width=official["d_model"],
        layers=official["e_layers"],
        state_size=official["d_ff"],
        kernel=official.get("d_conv", 4),
        expand=official.get("expand", 2),
        embed=official.get("embed", "timeF"),
        dropout=official.get("dropout", 0.1),
    )
    taps = {"embedding": Tap("embedding"), "enc_embedding": Tap("embedding"), "norm": Tap("norm")}
    for i in range(config.layers):
        taps[f"layer{i}"] = Tap(f"layers.{i}")
    model = MambaForecaster(config, series_info(case), columns=official.get("c_out"))
    return run_forecaster(case, model, KEYMAPS["mamba"], taps)


def flowformer_classifier(case: Case) -> dict[str, Tensor]:
    official = case.config
    model = FlowformerClassifier(
        features=official["feat_dim"],
        length=official["max_len"],
        classes=official["num_classes"],
        width=official["d_model"],
        feedforward=official.get("d_ff") or official.get("dim_feedforward") or 512,
        layers=official["num_layers"],
        heads=official["n_heads"],
        positions=official.get("pos_encoding", "learnable"),
        dropout=official.get("dropout", 0.1),
        activation=activation(official),
    ).eval()
    load_official(model, case.weights, KEYMAPS["flowformer_classifier"])
    taps = {"encoder": Tap("encoder"), "enc_embedding": Tap("dropout")}
    for i in range(official["num_layers"]):
        taps[f"encoder_layer{i}"] = Tap(f"encoder.layers.{i}")
        taps[f"attention{i}"] = Tap(f"encoder.layers.{i}.mixer")
    with record(model, taps) as seen:
        logits = model(case.inputs["x"], case.inputs.get("padding_mask"))
    return {**seen, "logits": logits}
