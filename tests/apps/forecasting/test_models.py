"""What every forecaster promises, over the whole registry, and what each promises by itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apps.forecasting.models.config import (
    MODELS,
    AarenConfig,
    AutoformerConfig,
    DLinearConfig,
    FlowformerConfig,
    InformerConfig,
    ITransformerConfig,
    LastValueConfig,
    MambaConfig,
    PatchTSTConfig,
    SeasonalNaiveConfig,
    SeriesInfo,
    SMambaConfig,
    TransformerConfig,
    marks_kind,
)
from apps.forecasting.models.forecast import Forecaster, ForecastHead
from backbones.sequence.config import MIXERS
from graftwork.errors import ConfigError, ShapeError

ROOT = Path(__file__).resolve().parents[3]
LOOK_BACK, HORIZON, MARKS = 32, 12, 4
SMALL: dict[str, Any] = {
    "width": 16,
    "feedforward": 24,
    "layers": 2,
    "heads": 4,
    "patch_length": 8,
    "stride": 4,
    "moving_average": 5,
    "season": 12,
}
NAIVE = ("seasonal_naive", "last_value")
WITH_QUANTILES = ("itransformer", "smamba", "patchtst", "aaren")


def small(name: str, **changes: Any) -> Any:
    """A tiny configuration of a model."""
    cls = MODELS.get(name)
    known = {field.name for field in dataclasses.fields(cls)}
    options = {key: value for key, value in SMALL.items() if key in known} | changes
    if "mixer" in known:
        options.setdefault("mixer", MIXERS.get("softmax")(heads=4))
    return cls(**options)


def series(variates: int = 3, outputs: int | None = None, marks: int = MARKS, **changes: Any) -> SeriesInfo:
    return SeriesInfo(LOOK_BACK, HORIZON, variates, outputs or variates, marks, **changes)


def batch(info: SeriesInfo, size: int = 2, seed: int = 0) -> tuple[Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    history = torch.randn(size, info.look_back, info.variates, generator=generator) * 2 + 1
    if not info.mark_features:
        return history, None, None
    marks = torch.rand(size, info.look_back + info.horizon, info.mark_features, generator=generator) - 0.5
    return history, marks[:, : info.look_back], marks[:, info.look_back :]


def build(config: Any, info: SeriesInfo) -> Forecaster:
    torch.manual_seed(0)
    model = config.build(info)
    assert isinstance(model, Forecaster)
    return model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS.names())
class TestEveryModel:
    @pytest.mark.parametrize(("variates", "outputs"), [(3, 3), (3, 1), (1, 1), (3, 2)])
    def test_gives_the_asked_columns(self, name: str, variates: int, outputs: int) -> None:
        info = series(variates, outputs)
        forecast = build(small(name), info)(*batch(info))
        assert forecast.values.shape == (2, HORIZON, outputs) and forecast.values.isfinite().all()
        assert forecast.quantiles is None

    def test_works_without_dates(self, name: str) -> None:
        info = series(marks=0)
        assert build(small(name), info)(*batch(info)).values.shape == (2, HORIZON, 3)

    def test_every_parameter_learns(self, name: str) -> None:
        info = series()
        model = build(small(name), info)
        loss = model(*batch(info, size=4)).values.square().mean()
        if name in NAIVE:
            assert not loss.requires_grad and parameters(model) == 0
            return
        loss.backward()
        # a constant added to every key changes no softmax; frozen tables do not learn
        silent = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
        assert all(n.endswith("key.bias") for n in silent), silent

    def test_evaluation_is_repeatable_and_ignores_batch_mates(self, name: str) -> None:
        info = series()
        model = build(small(name, **({"width": 32} if name not in ("dlinear", *NAIVE) else {})), info).eval()
        inputs = batch(info, size=5)
        first, again = model(*inputs).values, model(*inputs).values
        assert torch.equal(first, again)
        alone = model(*(None if part is None else part[3:4] for part in inputs)).values
        torch.testing.assert_close(alone, first[3:4], rtol=1e-4, atol=1e-5)

    def test_leaves_its_inputs_alone(self, name: str) -> None:
        info = series()
        inputs = batch(info)
        copies = [part.clone() for part in inputs if part is not None]
        build(small(name), info)(*inputs)
        assert all(torch.equal(copy, part) for copy, part in zip(copies, inputs, strict=True) if part is not None)

    def test_bf16_autocast_is_finite(self, name: str) -> None:
        info = series()
        model = build(small(name), info)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = model(*batch(info)).values
        assert values.isfinite().all()
        if name not in NAIVE:
            values.float().square().mean().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_state_dict_round_trip(self, name: str) -> None:
        info = series()
        model, other = build(small(name), info).eval(), small(name).build(info).eval()
        other.load_state_dict(model.state_dict())
        inputs = batch(info)
        assert torch.equal(model(*inputs).values, other(*inputs).values)

    def test_a_wrong_history_is_told_both_shapes(self, name: str) -> None:
        model = build(small(name), series())
        with pytest.raises(ShapeError, match=r"\[batch, 32, .*got \[2, 31, 3\]"):
            model(torch.zeros(2, 31, 3))

    def test_shift_of_the_window_shifts_the_forecast(self, name: str) -> None:
        if name in ("informer", "transformer", "flowformer", "autoformer", "dlinear"):
            pytest.skip("has no instance normalisation")
        info = series()
        model = build(small(name), info).eval()
        history, *marks = batch(info)
        values = model(history, *marks).values
        torch.testing.assert_close(model(history + 5, *marks).values, values + 5, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mixer", MIXERS.names())
@pytest.mark.parametrize("name", ["itransformer", "patchtst"])
def test_any_mixer_fits(name: str, mixer: str) -> None:
    cls = MIXERS.get(mixer)
    options = {"heads": 4} if "heads" in {field.name for field in dataclasses.fields(cls)} else {}
    info = series()
    model = build(small(name, mixer=cls(**options)), info)
    values = model(*batch(info)).values
    values.square().mean().backward()
    model.eval()
    inputs = batch(info)
    assert values.shape == (2, HORIZON, 3) and torch.equal(model(*inputs).values, model(*inputs).values)


@pytest.mark.parametrize("mixer", MIXERS.names())
def test_any_mixer_exports(mixer: str) -> None:
    cls = MIXERS.get(mixer)
    options = {"heads": 4} if "heads" in {field.name for field in dataclasses.fields(cls)} else {}
    info = series(9)
    model = Values(build(small("itransformer", mixer=cls(**options)), info)).eval()
    size = torch.export.Dim("batch", min=1, max=4096)
    shapes = ({0: size}, {0: size}, {0: size})
    program = torch.export.export(model, batch(info, 3), dynamic_shapes=shapes, strict=False).module()
    inputs = batch(info, 5, seed=1)
    torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["informer", "autoformer", "flowformer", "transformer", "mamba"])
@pytest.mark.parametrize("embed", ["fixed", "learned"])
@pytest.mark.parametrize("frequency", ["h", "15min"])
def test_integer_marks(name: str, embed: str, frequency: str) -> None:
    config = small(name, embed=embed)
    assert marks_kind(config) == "integer"
    info = SeriesInfo(LOOK_BACK, HORIZON, 3, 3, 5, frequency, "integer")
    marks = torch.stack([torch.randint(high, (2, LOOK_BACK + HORIZON)) for high in (13, 32, 7, 24, 4)], dim=-1).float()
    model = build(config, info).eval()
    history = batch(info)[0]
    values = model(history, marks[:, :LOOK_BACK], marks[:, LOOK_BACK:]).values
    later = marks.clone()
    later[..., 4] = (later[..., 4] + 1) % 4
    other = model(history, later[:, :LOOK_BACK], later[:, LOOK_BACK:]).values
    assert torch.equal(values, other) == (frequency == "h")  # the minute counts for series in minutes only
    trained = {n for n, p in model.named_parameters() if "tables" in n and p.requires_grad}
    assert bool(trained) == (embed == "learned")


class TestNaive:
    history = torch.arange(24.0).view(1, 12, 2)

    def test_last_value(self) -> None:
        model = LastValueConfig().build(SeriesInfo(12, 3, 2, 2, 0))
        assert model(self.history).values.tolist() == [[[22.0, 23.0]] * 3]

    def test_seasonal_naive(self) -> None:
        model = SeasonalNaiveConfig(season=3).build(SeriesInfo(12, 5, 2, 1, 0))
        assert model(self.history).values[0, :, 0].tolist() == [19.0, 21.0, 23.0, 19.0, 21.0]

    def test_a_season_longer_than_the_window_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="season=24 needs look_back=12"):
            SeasonalNaiveConfig().build(SeriesInfo(12, 5, 2, 1, 0))


class TestITransformer:
    def test_takes_any_number_of_variates(self) -> None:
        model = build(small("itransformer"), series()).eval()
        assert model(torch.randn(2, LOOK_BACK, 11)).values.shape == (2, HORIZON, 11)

    # which keys and delays ProbSparse attention and auto-correlation read depends on the data
    @pytest.mark.parametrize("mixer", sorted({*MIXERS.names()} - {"probsparse", "autocorrelation"}))
    def test_every_variate_reads_all_others_and_the_calendar(self, mixer: str) -> None:
        cls = MIXERS.get(mixer)
        options = {"heads": 4} if "heads" in {field.name for field in dataclasses.fields(cls)} else {}
        info = series(4)
        model = build(small("itransformer", mixer=cls(**options), layers=1), info).eval()
        history, marks, _ = batch(info)
        assert marks is not None
        history.requires_grad_(), marks.requires_grad_()
        values = model(history, marks).values
        for variate in range(4):
            read = torch.autograd.grad(values[..., variate].sum(), (history, marks), retain_graph=True)
            assert all(part.abs().sum(dim=(0, 1)).gt(1e-6).all() for part in read), variate

    @pytest.mark.parametrize("mixer", ["scan", "selective_scan"])
    def test_one_direction_can_be_asked_for(self, mixer: str) -> None:
        info = series(4, marks=0)
        model = build(small("itransformer", mixer=MIXERS.get(mixer)(bidirectional=False)), info).eval()
        history = batch(info)[0].requires_grad_()
        model(history).values[..., 1].sum().backward()
        assert history.grad is not None
        assert history.grad.abs().sum(dim=(0, 1)).gt(1e-6).tolist() == [True, True, False, False]

    def test_order_of_variates_does_not_matter(self) -> None:
        info = series(5)
        model = build(small("itransformer"), info).eval()
        history, marks, _ = batch(info)
        order = torch.tensor([3, 0, 4, 1, 2])
        expected = model(history, marks).values[..., order]
        torch.testing.assert_close(model(history[..., order], marks).values, expected, rtol=1e-4, atol=1e-5)

    def test_attention_maps_are_distributions_over_variates_and_marks(self) -> None:
        info = series()
        model: Any = build(small("itransformer"), info).eval()
        history, marks, _ = batch(info)
        for layer in (0, 1, -1):
            weights = model.variate_attention(history, marks, layer=layer)
            assert weights.shape == (2, 4, 7, 7) and (weights >= 0).all()
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
        last = model.variate_attention(history, marks)
        assert torch.equal(last, model.variate_attention(history, marks, layer=1))
        assert not torch.equal(last, model.variate_attention(history, marks, layer=0))
        assert model.variate_attention(history).shape == (2, 4, 3, 3)

    def test_other_mixers_have_no_attention_maps(self) -> None:
        model: Any = build(small("itransformer", mixer=MIXERS.get("flow")(heads=4)), series())
        with pytest.raises(ConfigError, match="FlowMixer has no attention weights"):
            model.variate_attention(torch.randn(2, LOOK_BACK, 3))

    def test_without_instance_norm_the_level_matters(self) -> None:
        info = series()
        model = build(small("itransformer", instance_norm=False), info).eval()
        history, *marks = batch(info)
        assert not torch.allclose(model(history + 5, *marks).values, model(history, *marks).values + 5, atol=1e-1)


class TestQuantiles:
    LEVELS = (0.05, 0.3, 0.5, 0.9)

    @pytest.mark.parametrize("name", WITH_QUANTILES)
    def test_never_cross_and_contain_the_point_forecast(self, name: str) -> None:
        info = series(3, 2)
        model = build(small(name, quantiles=self.LEVELS), info)
        forecast = model(*batch(info, size=4))
        assert forecast.quantiles.shape == (4, HORIZON, 2, 4)
        assert (forecast.quantiles.diff(dim=-1) >= 0).all()
        model.eval()
        forecast = model(*batch(info))
        torch.testing.assert_close(forecast.quantiles[..., 2], forecast.values)

    @given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=7, unique=True), st.integers(0, 2**31))
    @settings(deadline=None, max_examples=30)
    def test_head_is_ordered_for_any_weights(self, levels: list[float], seed: int) -> None:
        torch.manual_seed(seed)
        head = ForecastHead(5, 3, tuple(sorted(levels)))
        nn.init.normal_(head.linear.weight, std=20)
        values, quantiles = head(torch.randn(4, 5))
        assert values.shape == (4, 3) and quantiles is not None and quantiles.shape == (4, 3, len(levels))
        assert (quantiles.diff(dim=-1) >= 0).all()
        torch.testing.assert_close(quantiles[..., head.middle], values)

    @pytest.mark.parametrize("levels", [(0.5, 0.1), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0)])
    def test_bad_levels_are_refused(self, levels: tuple[float, ...]) -> None:
        with pytest.raises(ConfigError, match="quantiles"):
            ITransformerConfig(quantiles=levels).build(series())


class TestInformer:
    @pytest.mark.parametrize("flavour", ["original", "library"])
    @pytest.mark.parametrize("distil", [True, False])
    def test_flavours_and_distilling(self, flavour: Any, distil: bool) -> None:
        info = series()
        model: Any = build(small("informer", flavour=flavour, distil=distil, layers=3), info)
        encoded = model.encoder(torch.randn(2, LOOK_BACK, 16))
        lengths = {("original", True): 8, ("library", True): 10}
        assert encoded.shape[1] == lengths.get((flavour, distil), LOOK_BACK)
        assert model(*batch(info)).values.shape == (2, HORIZON, 3)

    def test_stack_joins_the_ends_of_the_window(self) -> None:
        info = series()
        model: Any = build(small("informer", stack_layers=(3, 2, 1)), info).eval()
        tokens = torch.randn(2, LOOK_BACK, 16)
        encoded = model.encoder(tokens)
        assert encoded.shape[1] == 8 + 8 + 8
        torch.testing.assert_close(encoded[:, 16:], model.encoder.encoders[2](tokens[:, -8:]))
        assert model(*batch(info)).values.shape == (2, HORIZON, 3)

    def test_training_draws_other_keys_each_time(self) -> None:
        info = series()
        model = build(small("informer", factor=1, dropout=0.0, distil=False), info).train()
        inputs = batch(info)
        assert len({float(model(*inputs).values.sum()) for _ in range(6)}) > 1

    def test_full_attention_decodes_causally(self) -> None:
        info = series()
        config = small("informer", attention="full", mix=False, label_length=8, dropout=0.0)
        model = build(config, info).eval()
        history, marks, future = batch(info)
        assert future is not None
        first = model(history, marks, future).values
        future[:, 6:] += 1
        second = model(history, marks, future).values
        # circular value embedding aside, marks of later steps reach later outputs only
        torch.testing.assert_close(first[:, :6], second[:, :6])
        assert not torch.allclose(first[:, 6:], second[:, 6:])

    def test_decoder_input_is_the_labels_and_zeros(self) -> None:
        info = series()
        model = build(small("informer", label_length=10), info).eval()
        history, marks, future = batch(info)
        assert marks is not None and future is not None
        given_input = torch.cat([history[:, -10:], torch.zeros(2, HORIZON, 3)], dim=1)
        given_marks = torch.cat([marks[:, -10:], future], dim=1)
        expected = model(history, marks, decoder_input=given_input, decoder_marks=given_marks).values
        assert torch.equal(model(history, marks, future).values, expected)

    def test_missing_future_marks_are_told(self) -> None:
        info = series()
        history, marks, _ = batch(info)
        with pytest.raises(ShapeError, match="future_marks"):
            build(small("informer"), info)(history, marks)

    def test_a_window_too_short_to_halve(self) -> None:
        with pytest.raises(ConfigError, match="distil=false"):
            small("informer", flavour="library", layers=6, label_length=1).build(SeriesInfo(1, 2, 1, 1, 0))


class TestAutoformer:
    def test_training_shares_delays_over_the_batch(self) -> None:
        info = series()
        model = build(small("autoformer", dropout=0.0), info)
        inputs = batch(info, size=4)
        training = model.train()(*inputs).values
        evaluation = model.eval()(*inputs).values
        assert not torch.allclose(training, evaluation, atol=1e-4)

    @pytest.mark.parametrize(("look_back", "horizon", "label"), [(31, 7, 9), (32, 40, 32), (20, 3, 0), (33, 12, None)])
    def test_odd_and_unequal_lengths(self, look_back: int, horizon: int, label: int | None) -> None:
        info = SeriesInfo(look_back, horizon, 2, 2, 0)
        model = build(small("autoformer", label_length=label), info)
        assert model(torch.randn(2, look_back, 2)).values.shape == (2, horizon, 2)

    def test_forecasts_the_mean_when_nothing_is_learned(self) -> None:
        info = series(marks=0)
        model: Any = build(small("autoformer"), info).eval()
        for part in [model.decoder.projection, *(layer.trend_convolution for layer in model.decoder.layers)]:
            for parameter in part.parameters():
                nn.init.zeros_(parameter)
        history = batch(info)[0]
        expected = history.mean(1, keepdim=True).expand(-1, HORIZON, -1)
        torch.testing.assert_close(model(history).values, expected)


class TestOthers:
    def test_dlinear_begins_flat(self) -> None:
        info = series(marks=0)
        model: Any = build(small("dlinear"), info)
        nn.init.zeros_(model.seasonal.bias), nn.init.zeros_(model.trend.bias)
        history = batch(info)[0]
        expected = history.mean(1, keepdim=True).expand(-1, HORIZON, -1)
        torch.testing.assert_close(model(history).values, expected)

    def test_individual_dlinear_keeps_variates_apart(self) -> None:
        info = series(marks=0)
        model = build(small("dlinear", individual=True), info)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        history = batch(info)[0].requires_grad_()
        model(history).values[..., 1].sum().backward()
        assert history.grad is not None and not history.grad[..., [0, 2]].any() and history.grad[..., 1].any()

    @pytest.mark.parametrize("name", ["patchtst", "aaren"])
    def test_channel_independence(self, name: str) -> None:
        info = series(marks=0)
        model = build(small(name), info).eval()
        history = batch(info)[0]
        alone = model(history[..., 1:2]).values
        torch.testing.assert_close(alone, model(history).values[..., 1:2], rtol=1e-4, atol=1e-5)

    def test_smamba_reads_variates_in_order(self) -> None:
        info = series(5, marks=0)
        model = build(small("smamba"), info).eval()
        history = batch(info)[0]
        swapped = model(history.flip(-1)).values.flip(-1)
        assert not torch.allclose(swapped, model(history).values, atol=1e-4)

    def test_mamba_needs_a_look_back_as_long_as_the_horizon(self) -> None:
        with pytest.raises(ConfigError, match=r"horizon=40 exceeds look_back=32"):
            small("mamba").build(SeriesInfo(32, 40, 3, 3, 0))


class TestSizes:
    """Parameter counts of the published configurations."""

    INFO = SeriesInfo(96, 96, 7, 7, 4)

    @pytest.mark.parametrize(
        ("config", "count"),
        [
            (ITransformerConfig(), 841_568),
            (ITransformerConfig(width=128, feedforward=128), 224_224),
            (ITransformerConfig(width=512, feedforward=512, layers=3), 4_833_888),
            (ITransformerConfig(width=512, feedforward=512, layers=4), 6_411_872),
            (SMambaConfig(), 1_145_696),
            (SMambaConfig(width=512, feedforward=512, layers=3, state_size=16), 6_760_032),
            (InformerConfig(), 11_330_055),
            (InformerConfig(flavour="library"), 11_328_007),
            (AutoformerConfig(), 10_535_943),
            (DLinearConfig(), 18_624),
            (PatchTSTConfig(), 3_751_520),
        ],
    )
    def test_published(self, config: Any, count: int) -> None:
        assert parameters(config.build(self.INFO)) == count

    def test_itransformer_long_horizon(self) -> None:
        config = ITransformerConfig(width=512, feedforward=512)
        assert parameters(config.build(SeriesInfo(96, 720, 7, 7, 4))) == 3_576_016


class Values(nn.Module):
    """The point forecast alone, with the inputs an exported file has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, history_marks: Tensor, future_marks: Tensor) -> Tensor:
        values: Tensor = self.model(history, history_marks, future_marks).values
        return values


@pytest.mark.slow
class TestShipping:
    INPUTS = ("history", "history_marks", "future_marks")

    @pytest.mark.parametrize("name", MODELS.names())
    def test_onnx_agrees_at_every_batch_size(self, name: str, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        info = series()
        model = Values(build(small(name), info)).eval()
        size = torch.export.Dim("batch", min=1, max=4096)
        shapes = {key: {0: size} for key in self.INPUTS}
        names = list(self.INPUTS)
        program: Any = torch.onnx.export(
            model, batch(info, 3), dynamo=True, dynamic_shapes=shapes, input_names=names, verbose=False
        )
        program.save(str(tmp_path / "model.onnx"))
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        kept = {entry.name for entry in session.get_inputs()}
        for count in (1, 2, 7):
            inputs = batch(info, count, seed=count)
            feed = {key: value.numpy() for key, value in zip(names, inputs, strict=True) if value is not None}
            (found,) = session.run(None, {key: value for key, value in feed.items() if key in kept})
            torch.testing.assert_close(torch.from_numpy(found), model(*inputs).detach(), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", ["itransformer", "smamba", "informer"])
    def test_compiled_gives_the_same(self, name: str, training: bool) -> None:
        info = series()
        model = build(small(name, dropout=0.0), info).train(training)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager")
        torch.manual_seed(0)
        expected = model(*batch(info)).values
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(*batch(info)).values, expected, rtol=1e-4, atol=1e-5)


class TestConfigs:
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            (ITransformerConfig(width=250), ["width=250", "heads=8", "heads=10"]),
            (TransformerConfig(heads=7), ["width=512", "heads=7", "try heads=8"]),
            (AutoformerConfig(moving_average=24), ["moving_average=24", "25"]),
            (DLinearConfig(moving_average=0), ["moving_average=0"]),
            (InformerConfig(dropout=1.0, factor=0), ["dropout=1.0", "factor=0"]),
            (InformerConfig(label_length=99), ["label_length=99", "look_back=32"]),
            (InformerConfig(embed="fixed"), ["embed=fixed", "integer", "features"]),
            (InformerConfig(flavour="library", attention="full"), ["flavour=library", "attention=prob"]),
            (PatchTSTConfig(patch_length=40), ["look_back=32", "patch_length=40"]),
            (AarenConfig(stride=0), ["stride=0"]),
            (FlowformerConfig(clamp=-1.0), ["clamp=-1.0"]),
            (MambaConfig(layers=0), ["layers=0"]),
            (ITransformerConfig(mixer=MIXERS.get("probsparse")(factor=0)), ["mixer.factor=0"]),
        ],
    )
    def test_problems_name_values_and_mend(self, config: Any, words: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            config.build(series())
        assert all(word in str(error.value) for word in words), str(error.value)

    def test_more_outputs_than_columns(self) -> None:
        with pytest.raises(ConfigError, match="outputs=4 exceeds variates=3"):
            series(3, 4)

    @pytest.mark.parametrize("name", MODELS.names())
    def test_defaults_have_no_problems_and_every_field_a_line(self, name: str) -> None:
        cls = MODELS.get(name)
        assert not list(getattr(cls(), "problems", lambda: [])())
        assert cls.__doc__ and "\n\n" not in cls.__doc__

    def test_names_and_options_need_no_torch(self) -> None:
        code = "import sys, apps.forecasting.models.config; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
