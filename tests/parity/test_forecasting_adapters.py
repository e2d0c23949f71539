"""Adapters are generic: official weights of other sizes and options load and run.

The official keys and shapes here are written down from the specification, independent of our models.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.errors import ConfigError
from tests.parity import adapters
from tests.parity.adapters.forecasting_data import marks_of
from tests.parity.case import Case

Shapes = dict[str, tuple[int, ...]]
MARKS = {"h": 4, "t": 5, "s": 6, "d": 3, "b": 3, "w": 2, "m": 1}


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name: str, out: int, into: int, kernel: int = 1, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    return norm(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def attention(name: str, width: int) -> Shapes:
    parts = ("query", "key", "value", "out")
    return {k: v for part in parts for k, v in linear(f"{name}.{part}_projection", width, width).items()}


def encoder_layer(name: str, width: int, hidden: int) -> Shapes:
    shapes = attention(f"{name}.attention", width) | conv(f"{name}.conv1", hidden, width)
    return shapes | conv(f"{name}.conv2", width, hidden) | norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)


def mamba_block(
    name: str,
    width: int,
    state: int,
    kernel: int,
    expand: int,
    rank: int | None = None,
    conv_bias: bool = True,
    bias: bool = False,
) -> Shapes:
    inner, rank = expand * width, rank or -(-width // 16)
    shapes = linear(f"{name}.in_proj", 2 * inner, width, bias) | conv(f"{name}.conv1d", inner, 1, kernel, conv_bias)
    shapes |= linear(f"{name}.x_proj", rank + 2 * state, inner, bias=False) | linear(f"{name}.dt_proj", inner, rank)
    shapes |= {f"{name}.A_log": (inner, state), f"{name}.D": (inner,)}
    return shapes | linear(f"{name}.out_proj", width, inner, bias)


def embedding(name: str, width: int, variates: int, embed: str, freq: str, bias: bool) -> Shapes:
    shapes = conv(f"{name}.value_embedding.tokenConv", width, variates, 3, bias)
    shapes |= {f"{name}.position_embedding.pe": (1, 5000, width)}
    if embed == "timeF":
        return shapes | linear(f"{name}.temporal_embedding.embed", width, MARKS[freq], bias)
    tables = {"hour": 24, "weekday": 7, "day": 32, "month": 13} | ({"minute": 4} if freq == "t" else {})
    infix = "_embed.emb.weight" if embed == "fixed" else "_embed.weight"
    return shapes | {f"{name}.temporal_embedding.{table}{infix}": (rows, width) for table, rows in tables.items()}


def encoder(name: str, layers: int, width: int, hidden: int, distil: bool) -> Shapes:
    shapes = norm(f"{name}.norm", width)
    for i in range(layers):
        shapes |= encoder_layer(f"{name}.attn_layers.{i}", width, hidden)
        if distil and i < layers - 1:
            shapes |= conv(f"{name}.conv_layers.{i}.downConv", width, width, 3)
            shapes |= batch_norm(f"{name}.conv_layers.{i}.norm", width)
            shapes |= {f"{name}.conv_layers.{i}.norm.num_batches_tracked": ()}
    return shapes


def decoder(layers: int, width: int, hidden: int) -> Shapes:
    shapes = norm("decoder.norm", width)
    for i in range(layers):
        name = f"decoder.layers.{i}"
        shapes |= attention(f"{name}.self_attention", width) | attention(f"{name}.cross_attention", width)
        shapes |= conv(f"{name}.conv1", hidden, width) | conv(f"{name}.conv2", width, hidden)
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width) | norm(f"{name}.norm3", width)
    return shapes


def made_case(system: str, config: dict[str, Any], shapes: Shapes, inputs: dict[str, Tensor], **meta: Any) -> Case:
    """A case with random weights; its golden numbers are whatever comes out."""
    generator = torch.Generator().manual_seed(3)

    def weight(key: str, shape: tuple[int, ...]) -> Tensor:
        if key.endswith("tracked"):
            return torch.tensor(7)
        random = torch.randn(shape, generator=generator)
        return random.abs() + 0.5 if key.endswith("running_var") else random * 0.3

    record = {"area": "forecasting", "system": system, "case": f"{system}_made", "config": config, **meta}
    case = Case(Path("made.json"), record)
    tensors = {f"weights.{key}": weight(key, shape) for key, shape in shapes.items()}
    case.tensors = tensors | {f"input.{key}": value for key, value in inputs.items()}
    return case


def run(case: Case) -> dict[str, Tensor]:
    adapter = adapters.find("forecasting", case.system)
    assert adapter is not None
    outputs: dict[str, Tensor] = adapter(case)
    assert outputs and all(value.isfinite().all() for value in outputs.values())
    return outputs


def series(
    look_back: int, horizon: int, label: int, variates: int, marks: int | None, whole: bool
) -> dict[str, Tensor]:
    def calendar(steps: int) -> Tensor:
        if not whole:
            return torch.rand(2, steps, marks or 0) - 0.5
        columns = [torch.randint(high, (2, steps)) for high in (13, 32, 7, 24, 4)[: marks or 5]]
        return torch.stack(columns, dim=-1).float()

    inputs = {
        "x_enc": torch.randn(2, look_back, variates),
        "x_dec": torch.randn(2, label + horizon, variates),
        "target": torch.randn(2, horizon, variates),
    }
    if marks is not None:
        inputs |= {"x_mark_enc": calendar(look_back), "x_mark_dec": calendar(label + horizon)}
    return inputs


INFORMERS = [
    {},
    {"attn": "full"},
    {"attn": "full", "mix": False},
    {"mix": False},
    {"distil": False},
    {"embed": "fixed"},
    {"embed": "learned", "freq": "t"},
    {"freq": "d"},
    {"freq": "t", "activation": "relu"},
    {"factor": 1, "seq_len": 37, "label_len": 0},
    {"e_layers": [3, 2, 1]},
    {"e_layers": [2, 1], "distil": False},
    {"c_out": 1},
    {"output_attention": True, "n_heads": 1, "d_layers": 3, "e_layers": 1},
    {"label_len": 40, "out_len": 3},
]


@pytest.mark.parametrize("system", ["informer", "informer_tsl"])
@pytest.mark.parametrize("change", INFORMERS, ids=str)
def test_informer(system: str, change: dict[str, Any]) -> None:
    config: dict[str, Any] = {
        "enc_in": 3, "dec_in": 3, "c_out": 3, "seq_len": 40, "label_len": 20, "out_len": 16, "factor": 3,
        "d_model": 24, "n_heads": 4, "e_layers": 2, "d_layers": 1, "d_ff": 40, "dropout": 0.1, "attn": "prob",
        "embed": "timeF", "freq": "h", "activation": "gelu", "distil": True, "mix": True,
    } | change  # fmt: skip
    original = system == "informer"
    if not original:
        config = {k: v for k, v in config.items() if k not in ("attn", "mix")} | {"pred_len": config["out_len"]}
        if isinstance(config["e_layers"], list) or "attn" in change:
            pytest.skip("the original only")
    width, embed, freq = config["d_model"], config["embed"], config["freq"]
    shapes = embedding("enc_embedding", width, 3, embed, freq, original)
    shapes |= embedding("dec_embedding", width, 3, embed, freq, original)
    counts = config["e_layers"]
    for k, layers in enumerate(counts if isinstance(counts, list) else [counts]):
        name = f"encoder.encoders.{k}" if isinstance(counts, list) else "encoder"
        shapes |= encoder(name, layers, width, config["d_ff"], config["distil"])
    shapes |= decoder(config["d_layers"], width, config["d_ff"])
    shapes |= linear("projection" if original else "decoder.projection", config["c_out"], width)
    marks = (5 if freq == "t" else 4) if embed != "timeF" else MARKS[freq]
    inputs = series(config["seq_len"], config["out_len"], config["label_len"], 3, marks, embed != "timeF")
    inputs["target"] = inputs["target"][..., : config["c_out"]]
    outputs = run(made_case(system, config, shapes, inputs))
    assert outputs["forecast"].shape == (2, config["out_len"], config["c_out"])
    assert "distil0" in outputs or not config["distil"] or counts == 1 or isinstance(counts, list)


AUTOFORMERS = [
    {},
    {"embed": "fixed"},
    {"embed": "learned", "freq": "t"},
    {"freq": "d", "factor": 1},
    {"seq_len": 35, "pred_len": 12},
    {"seq_len": 36, "label_len": 36, "pred_len": 24, "activation": "relu"},
    {"moving_avg": 25, "d_layers": 2, "e_layers": 1},
    {"c_out": 1},
]


@pytest.mark.parametrize("change", AUTOFORMERS, ids=str)
def test_autoformer(change: dict[str, Any]) -> None:
    config: dict[str, Any] = {
        "enc_in": 3, "dec_in": 3, "c_out": 3, "seq_len": 36, "label_len": 18, "pred_len": 12, "factor": 3,
        "d_model": 24, "n_heads": 4, "e_layers": 2, "d_layers": 1, "d_ff": 40, "dropout": 0.0, "embed": "timeF",
        "freq": "h", "activation": "gelu", "moving_avg": 13,
    } | change  # fmt: skip
    width, hidden, embed, freq = config["d_model"], config["d_ff"], config["embed"], config["freq"]
    shapes = embedding("enc_embedding", width, 3, embed, freq, False)
    shapes |= embedding("dec_embedding", width, 3, embed, freq, False)
    layers: list[tuple[str, tuple[str, ...]]] = [
        (f"encoder.attn_layers.{i}", ("attention",)) for i in range(config["e_layers"])
    ]
    layers += [(f"decoder.layers.{i}", ("self_attention", "cross_attention")) for i in range(config["d_layers"])]
    for name, parts in layers:
        for part in parts:
            shapes |= attention(f"{name}.{part}", width)
        shapes |= conv(f"{name}.conv1", hidden, width, bias=False) | conv(f"{name}.conv2", width, hidden, bias=False)
        if "decoder" in name:
            shapes |= conv(f"{name}.projection", config["c_out"], width, 3, bias=False)
    shapes |= norm("encoder.norm.layernorm", width) | norm("decoder.norm.layernorm", width)
    shapes |= linear("decoder.projection", config["c_out"], width)
    marks = (5 if freq == "t" else 4) if embed != "timeF" else MARKS[freq]
    inputs = series(config["seq_len"], config["pred_len"], config["label_len"], 3, marks, embed != "timeF")
    case = made_case("autoformer", config, shapes, inputs)
    key = "encoder.attn_layers.0.conv1.weight"
    case.tensors[f"output.grad_train_mode.{key}"] = torch.zeros(hidden, width, 1)
    outputs = run(case)
    assert outputs["forecast"].shape == (2, config["pred_len"], 3)
    assert outputs[f"grad_train_mode.{key}"].shape == (hidden, width, 1)


VARIATE_TOKENS = [{}, {"use_norm": False}, {"activation": "relu"}, {"e_layers": 1, "n_heads": 1}, {"d_ff": None}]


@pytest.mark.parametrize("system", ["itransformer", "iflowformer", "s_mamba"])
@pytest.mark.parametrize("change", VARIATE_TOKENS, ids=str)
@pytest.mark.parametrize(("variates", "marks"), [(5, 4), (1, None), (8, 5)])
def test_variate_tokens(system: str, change: dict[str, Any], variates: int, marks: int | None) -> None:
    config: dict[str, Any] = {
        "seq_len": 21, "label_len": 10, "pred_len": 7, "d_model": 24, "n_heads": 4, "d_ff": 40, "e_layers": 2,
        "d_state": 5, "dropout": 0.1, "activation": "gelu", "embed": "timeF", "freq": "h", "use_norm": True,
    } | change  # fmt: skip
    width, hidden = 24, config["d_ff"] or 96
    shapes = linear("enc_embedding.value_embedding", width, 21) | linear("projector", 7, width)
    shapes |= norm("encoder.norm", width)
    for i in range(config["e_layers"]):
        name = f"encoder.attn_layers.{i}"
        layer = encoder_layer(name, width, hidden)
        if system == "s_mamba":
            layer = {key: shape for key, shape in layer.items() if ".attention." not in key}
            for block in ("attention", "attention_r"):
                layer |= mamba_block(f"{name}.{block}", width, 5, 2, 1)
            for unused in ("man", "man2"):
                layer |= mamba_block(f"{name}.{unused}", 11, 16, 2, 1)
            layer |= attention(f"{name}.a", 11)
        shapes |= layer
    case = made_case(system, config, shapes, series(21, 7, 10, variates, marks, False))
    key = "encoder.attn_layers.0.conv2.weight"
    case.tensors[f"output.grad.{key}"] = torch.zeros(width, hidden, 1)
    outputs = run(case)
    assert outputs["forecast"].shape == (2, 7, variates)
    assert outputs["encoder_layer0"].shape == (2, variates + (marks or 0), width)
    assert outputs[f"grad.{key}"].shape == (width, hidden, 1) and outputs[f"grad.{key}"].any()


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("window", [25, 3])
def test_dlinear(individual: bool, window: int) -> None:
    parts = [f"Linear_{part}" for part in ("Seasonal", "Trend")]
    names = [f"{part}.{i}" for part, i in itertools.product(parts, range(12))] if individual else parts
    shapes = {key: shape for name in names for key, shape in linear(name, 6, 20).items()}
    config = {"seq_len": 20, "pred_len": 6, "moving_avg": window}
    case = made_case("dlinear", config, shapes, series(20, 6, 5, 12, 4, False), extra={"individual": individual})
    outputs = run(case)
    expected = torch.zeros(2, 6, 12)
    for part, name in (("decomp_seasonal", parts[0]), ("decomp_trend", parts[1])):
        for i in range(12):
            key = f"{name}.{i}" if individual else name
            weight, bias = case.weights[f"{key}.weight"], case.weights[f"{key}.bias"]
            expected[..., i] += outputs[part][..., i] @ weight.T + bias
    torch.testing.assert_close(outputs["forecast"], expected)


@pytest.mark.parametrize(("patch", "stride", "look_back"), [(16, 8, 48), (16, 8, 16), (12, 5, 50), (4, 4, 33)])
def test_patchtst(patch: int, stride: int, look_back: int) -> None:
    config = {"seq_len": look_back, "pred_len": 6, "d_model": 24, "n_heads": 2, "d_ff": 40, "e_layers": 2}
    shapes = linear("patch_embedding.value_embedding", 24, patch, bias=False)
    shapes |= {"patch_embedding.position_embedding.pe": (1, 5000, 24)} | batch_norm("encoder.norm.1", 24)
    shapes |= {"encoder.norm.1.num_batches_tracked": ()}
    for i in range(2):
        shapes |= encoder_layer(f"encoder.attn_layers.{i}", 24, 40)
    shapes |= linear("head.linear", 6, 24 * ((look_back - patch) // stride + 2))
    extra = {"patch_len": patch, "stride": stride}
    case = made_case("patchtst", config, shapes, series(look_back, 6, 5, 3, 4, False), extra=extra)
    assert run(case)["forecast"].shape == (2, 6, 3)


@pytest.mark.parametrize(
    "change", [{}, {"embed": "fixed"}, {"freq": "t"}, {"pred_len": 20}, {"expand": 1, "d_conv": 2}, {"c_out": 1}]
)
def test_mamba_forecaster(change: dict[str, Any]) -> None:
    config: dict[str, Any] = {
        "seq_len": 20, "pred_len": 6, "d_model": 24, "d_ff": 8, "e_layers": 2, "expand": 2, "d_conv": 4,
        "embed": "timeF", "freq": "h", "dropout": 0.1, "c_out": 3,
    } | change  # fmt: skip
    embed, freq = config["embed"], config["freq"]
    shapes = embedding("embedding", 24, 3, embed, freq, False) | {"norm.weight": (24,)}
    for i in range(2):
        shapes |= mamba_block(f"layers.{i}.mixer", 24, 8, config["d_conv"], config["expand"])
        shapes |= {f"layers.{i}.norm.weight": (24,)}
    shapes |= linear("out_layer", config["c_out"], 24, bias=False)
    marks = 4 if embed != "timeF" else MARKS[freq]
    case = made_case("mamba_forecaster", config, shapes, series(20, config["pred_len"], 5, 3, marks, embed != "timeF"))
    forecast = run(case)["forecast"]
    assert forecast.shape == (2, config["pred_len"], 3)
    if config["c_out"] == 1:  # one curve, at the level and spread of each variate
        history = case.inputs["x_enc"]
        sigma = (history.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        curves = (forecast - history.mean(1, keepdim=True)) / sigma
        torch.testing.assert_close(curves, curves[..., :1].expand_as(curves), rtol=1e-3, atol=1e-4)


def test_mamba_forecaster_refuses_columns_that_do_not_fit() -> None:
    config = {"seq_len": 20, "pred_len": 6, "d_model": 24, "d_ff": 8, "e_layers": 1, "c_out": 2}
    with pytest.raises(ConfigError, match=r"2 .*3"):
        run(made_case("mamba_forecaster", config, {}, series(20, 6, 5, 3, 4, False)))


@pytest.mark.parametrize(("positions", "activation"), [("learnable", "gelu"), ("fixed", "relu")])
def test_flowformer_classifier(positions: str, activation: str) -> None:
    config = {
        "feat_dim": 3, "max_len": 10, "d_model": 24, "n_heads": 3, "num_layers": 2, "d_ff": 40, "num_classes": 4,
        "pos_encoding": positions, "activation": activation,
    }  # fmt: skip
    shapes = linear("project_inp", 24, 3) | {"pos_enc.pe": (10, 1, 24)} | linear("output_layer", 4, 240)
    shapes |= encoder("encoder", 2, 24, 40, False)
    inputs = {"x": torch.randn(2, 10, 3), "padding_mask": torch.tensor([[1.0] * 10, [1.0] * 6 + [0.0] * 4])}
    assert run(made_case("flowformer_uea", config, shapes, inputs))["logits"].shape == (2, 4)


@pytest.mark.parametrize("clamp", [[-1, 1], [-5, 5], None])
@pytest.mark.parametrize(("title", "sources"), [("causal", 11), ("normal", 11), ("normal", 23)])
def test_flow_attention(clamp: Any, title: str, sources: int) -> None:
    config = {"d_input": 6, "d_model": 24, "d_output": 5, "n_heads": 2, "eps": 1e-6, "clamp": clamp}
    shapes = linear("out_projection", 5, 24)
    for part in ("query", "key", "value"):
        shapes |= linear(f"{part}_projection", 24, 6)
    inputs = {"queries": torch.randn(2, 11, 6), "keys_values": torch.randn(2, sources, 6)}
    assert run(made_case("flow_attention", config, shapes, inputs, title=title))["y"].shape == (2, 11, 5)


@pytest.mark.parametrize(
    ("meta", "marks"),
    [
        ({}, "timeF"),
        ({"timeenc": 1}, "timeF"),
        ({"timeenc": "1"}, "timeF"),
        ({"timeenc": True}, "timeF"),
        ({"timeenc": "timeF, freq h"}, "timeF"),
        ({"embed": "timeF"}, "timeF"),
        ({"timeenc": 0}, "integer"),
        ({"timeenc": "fixed"}, "integer"),
        ({"embed": "learned"}, "integer"),
    ],
)
def test_kind_of_marks(meta: dict[str, Any], marks: str) -> None:
    assert marks_of(meta) == marks


@pytest.mark.parametrize("timeenc", [0, 1])
def test_hourly_protocol_has_four_marks(shared: Path, timeenc: int) -> None:
    if not list((shared / "data").rglob("ETTh1.csv")):
        pytest.skip("needs ETTh1.csv")
    meta = {"file": "ETTh1.csv", "seq_len": 30, "label_len": 10, "pred_len": 5, "timeenc": timeenc}
    case = made_case("ett_protocol", {}, {}, {}, **meta)
    case.tensors |= {"output.train.first.x_mark": torch.zeros(30, 4), "output.train.first.y_mark": torch.zeros(15, 4)}
    outputs = run(case)
    marks = outputs["train.first.x_mark"]
    assert marks.shape == (30, 4) and outputs["train.first.y_mark"].shape == (15, 4)
    if timeenc:
        assert marks.abs().max() <= 0.5
    else:  # from 2016-07-01, a Friday, at midnight: month, day, weekday, hour
        assert marks[0].tolist() == [7, 1, 4, 0] and marks[25].tolist() == [7, 2, 5, 1]


def test_mamba_block_streams_to_its_final_state() -> None:
    config = {"d_model": 20, "d_state": 3, "d_conv": 5, "expand": 3}
    shapes = {key.removeprefix("x."): shape for key, shape in mamba_block("x", 20, 3, 5, 3).items()}
    outputs = run(made_case("mamba_block", config, shapes, {"x": torch.randn(2, 4, 20)}))
    assert outputs["final_conv_state"].shape == (2, 60, 5) and outputs["final_ssm_state"].shape == (2, 60, 3)


@pytest.mark.parametrize("rank", [None, "auto", 5])
@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_mamba_block_options(rank: Any, conv_bias: bool, bias: bool) -> None:
    config = {"d_model": 20, "d_state": 3, "conv_bias": conv_bias, "bias": bias}
    config |= {} if rank is None else {"dt_rank": rank}
    whole = mamba_block("x", 20, 3, 4, 2, 5 if rank == 5 else None, conv_bias, bias)
    shapes = {key.removeprefix("x."): shape for key, shape in whole.items()}
    assert run(made_case("mamba_block", config, shapes, {"x": torch.randn(2, 4, 20)}))["y"].shape == (2, 4, 20)
