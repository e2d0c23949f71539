"""Configurations of the forecasting models, and their names. No torch until ``build``.

Defaults are the published recipe for ETTh1 at look-back 96 and horizon 96.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from apps.forecasting.models.info import SeriesInfo, refuse
from backbones.sequence.config import MIXERS, SoftmaxMixerConfig
from graftwork.components import Registry, component

if TYPE_CHECKING:
    from apps.forecasting.models.forecast import Forecaster

__all__ = ["MODELS", "SeriesInfo", "marks_kind"]

Activation = Literal["gelu", "relu"]
Embed = Literal["timeF", "fixed", "learned"]
_COUNTS = ("width", "feedforward", "layers", "decoder_layers", "heads", "factor", "state_size", "kernel", "expand")


def marks_kind(config: object) -> Literal["features", "integer"]:
    """The calendar a model wants: integer marks where its ``embed`` looks them up in tables, else real features."""
    return "integer" if getattr(config, "embed", "timeF") in ("fixed", "learned") else "features"


def _common_problems(config: Any) -> Iterator[str]:
    """Checks on the fields most models share; a field the model lacks is skipped."""
    for name in _COUNTS:
        value = getattr(config, name, 1)
        if value < 1:
            yield f"{name}={value} must be at least 1"
    dropout = getattr(config, "dropout", 0.0)
    if not 0 <= dropout < 1:
        yield f"dropout={dropout} must be at least 0 and below 1"
    mixer = getattr(config, "mixer", None)
    heads, width = getattr(config, "heads", getattr(mixer, "heads", 1)), getattr(config, "width", 0)
    if heads >= 1 and width % heads:
        fitting = [n for n in range(1, width + 1) if width % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - heads))
        yield f"width={width} must be a multiple of heads={heads}; try heads={nearest}"
    window = getattr(config, "moving_average", 1)
    if window < 1 or window % 2 == 0:
        yield f"moving_average={window} must be odd; try moving_average={max(1, window + 1)}"
    yield from _quantile_problems(getattr(config, "quantiles", ()))


def _quantile_problems(quantiles: tuple[float, ...]) -> Iterator[str]:
    if any(not 0 < level < 1 for level in quantiles):
        yield f"quantiles={tuple(quantiles)} must lie between 0 and 1"
    if any(high <= low for low, high in pairwise(quantiles)):
        yield f"quantiles={tuple(quantiles)} must increase; try {tuple(sorted(set(quantiles)))}"


def _label_problems(label_length: int | None, info: SeriesInfo) -> Iterator[str]:
    if label_length is not None and not 0 <= label_length <= info.look_back:
        yield f"label_length={label_length} must be at most look_back={info.look_back}; try {info.look_back // 2}"


def _marks_problems(config: object, info: SeriesInfo) -> Iterator[str]:
    wanted = marks_kind(config)
    if info.mark_features and wanted != info.marks:
        embed = getattr(config, "embed", "timeF")
        yield f"embed={embed} reads {wanted} marks, but the data gives {info.marks} marks"


def _mixer_problems(config: Any) -> Iterator[str]:
    if hasattr(config.mixer, "problems"):
        for problem in config.mixer.problems():
            yield f"mixer.{problem}"


def _patch_problems(patch_length: int, stride: int, info: SeriesInfo | None = None) -> Iterator[str]:
    if patch_length < 1 or stride < 1:
        yield f"patch_length={patch_length} and stride={stride} must be at least 1"
    elif info is not None and info.look_back < patch_length:
        yield f"look_back={info.look_back} is shorter than patch_length={patch_length}; use at least {patch_length}"


@dataclass(kw_only=True)
class ITransformerConfig:
    """iTransformer (ICLR 2024): attention between variates, each series one token; any mixer fits."""

    width: int = 256
    """Channels of a token."""
    feedforward: int = 256
    """Channels inside the feed-forward network."""
    layers: int = 2
    """Encoder layers."""
    dropout: float = 0.1
    """Dropout of the embedding, the mixer's branch and the feed-forward network."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""
    instance_norm: bool = True
    """Forecast each window relative to its own mean and spread."""
    quantiles: tuple[float, ...] = ()
    """Levels to forecast besides the point forecast, increasing; empty for none."""
    mixer: Any = component(MIXERS, "softmax")
    """How tokens exchange information; ``flow`` gives iFlowformer; scans read in both directions by default."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse([*self.problems(), *_mixer_problems(self)])
        from apps.forecasting.models.itransformer import ITransformer

        return ITransformer(self, info)


@dataclass(kw_only=True)
class SMambaConfig:
    """S-Mamba (Neurocomputing 2024): two selective scans over the variates, one in each direction."""

    width: int = 256
    """Channels of a token."""
    feedforward: int = 256
    """Channels inside the feed-forward network."""
    layers: int = 2
    """Encoder layers."""
    state_size: int = 2
    """Numbers of state per channel."""
    dropout: float = 0.1
    """Dropout of the embedding and the feed-forward network."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""
    instance_norm: bool = True
    """Forecast each window relative to its own mean and spread."""
    quantiles: tuple[float, ...] = ()
    """Levels to forecast besides the point forecast, increasing; empty for none."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse(self.problems())
        from apps.forecasting.models.smamba import SMamba

        return SMamba(self, info)


@dataclass(kw_only=True)
class PatchTSTConfig:
    """PatchTST (ICLR 2023): each variate alone, cut into overlapping patches."""

    width: int = 512
    """Channels of a token."""
    feedforward: int = 2048
    """Channels inside the feed-forward network."""
    layers: int = 1
    """Encoder layers."""
    patch_length: int = 16
    """Steps of a patch."""
    stride: int = 8
    """Steps between the beginnings of neighbouring patches."""
    dropout: float = 0.1
    """Dropout of the embedding, the layers and the head."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""
    quantiles: tuple[float, ...] = ()
    """Levels to forecast besides the point forecast, increasing; empty for none."""
    mixer: Any = component(MIXERS, lambda: SoftmaxMixerConfig(heads=2))
    """How patches exchange information."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)
        yield from _patch_problems(self.patch_length, self.stride)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        patch_problems = _patch_problems(self.patch_length, self.stride, info)
        refuse([*self.problems(), *_mixer_problems(self), *patch_problems])
        from apps.forecasting.models.patchtst import PatchTST

        return PatchTST(self, info)


@dataclass(kw_only=True)
class AarenConfig:
    """Aaren (2024): attention as a recurrence over patches of time; each variate alone, constant memory per patch."""

    width: int = 128
    """Channels of a token."""
    feedforward: int = 256
    """Channels inside the feed-forward network."""
    layers: int = 3
    """Encoder layers."""
    heads: int = 8
    """Attention heads; divides the width."""
    patch_length: int = 16
    """Steps of a patch."""
    stride: int = 8
    """Steps between the beginnings of neighbouring patches."""
    dropout: float = 0.1
    """Dropout of the embedding and the layers."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""
    quantiles: tuple[float, ...] = ()
    """Levels to forecast besides the point forecast, increasing; empty for none."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)
        yield from _patch_problems(self.patch_length, self.stride)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse([*self.problems(), *_patch_problems(self.patch_length, self.stride, info)])
        from apps.forecasting.models.aaren import Aaren

        return Aaren(self, info)


@dataclass(kw_only=True)
class InformerConfig:
    """Informer (AAAI 2021): ProbSparse attention, a distilling encoder, all steps decoded at once."""

    flavour: Literal["original", "library"] = "original"
    """Arithmetic of zhouhaoyi/Informer2020, or of Time-Series-Library; weights of one do not fit the other."""
    width: int = 512
    """Channels of a token."""
    feedforward: int = 2048
    """Channels inside the feed-forward network."""
    layers: int = 2
    """Encoder layers."""
    stack_layers: tuple[int, ...] = ()
    """Layers of each encoder of an InformerStack, e.g. 3 2 1; encoder k reads the last L / 2**k steps."""
    decoder_layers: int = 1
    """Decoder layers."""
    heads: int = 8
    """Attention heads; divides the width."""
    factor: int = 5
    """Keys sampled and queries kept per natural logarithm of their number."""
    attention: Literal["prob", "full"] = "prob"
    """ProbSparse or full attention in the encoder and in the decoder's self-attention."""
    distil: bool = True
    """Halve the sequence between encoder layers."""
    mix: bool = True
    """Re-order the output of the decoder's self-attention as the original code does (original flavour only)."""
    embed: Embed = "timeF"
    """Calendar as real features (timeF) or as table rows, sinusoidal (fixed) or learned."""
    label_length: int | None = None
    """Observed steps the decoder starts from; half of the look-back if none."""
    dropout: float = 0.05
    """Dropout of embeddings and layers."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)
        if any(count < 1 for count in self.stack_layers):
            yield f"stack_layers={self.stack_layers} must be at least 1 each"
        if self.flavour == "library" and self.attention == "full":
            yield "flavour=library has attention=prob only; use the model transformer, or flavour=original"

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse([*self.problems(), *_label_problems(self.label_length, info), *_marks_problems(self, info)])
        from apps.forecasting.models.informer import Informer

        return Informer(self, info)


@dataclass(kw_only=True)
class TransformerConfig:
    """Vanilla encoder-decoder Transformer over time steps (Vaswani et al. 2017), in Informer's frame."""

    width: int = 512
    """Channels of a token."""
    feedforward: int = 2048
    """Channels inside the feed-forward network."""
    layers: int = 2
    """Encoder layers."""
    decoder_layers: int = 1
    """Decoder layers."""
    heads: int = 8
    """Attention heads; divides the width."""
    embed: Embed = "timeF"
    """Calendar as real features (timeF) or as table rows, sinusoidal (fixed) or learned."""
    label_length: int | None = None
    """Observed steps the decoder starts from; half of the look-back if none."""
    dropout: float = 0.1
    """Dropout of embeddings, attention weights and layers."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse([*self.problems(), *_label_problems(self.label_length, info), *_marks_problems(self, info)])
        from apps.forecasting.models.transformer import Transformer

        return Transformer(self, info)


@dataclass(kw_only=True)
class FlowformerConfig(TransformerConfig):
    """Flowformer (ICML 2022): the same frame with flow-attention, linear in the number of steps."""

    clamp: float | None = None
    """Bound on the competition logits; none for time series in the paper's code."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from super().problems()
        if self.clamp is not None and self.clamp <= 0:
            yield f"clamp={self.clamp} must be positive; null switches it off"

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse([*self.problems(), *_label_problems(self.label_length, info), *_marks_problems(self, info)])
        from apps.forecasting.models.flowformer import Flowformer

        return Flowformer(self, info)


@dataclass(kw_only=True)
class AutoformerConfig:
    """Autoformer (NeurIPS 2021): series decomposition between layers, auto-correlation instead of attention."""

    width: int = 512
    """Channels of a token."""
    feedforward: int = 2048
    """Channels inside the feed-forward network."""
    layers: int = 2
    """Encoder layers."""
    decoder_layers: int = 1
    """Decoder layers."""
    heads: int = 8
    """Heads of the projections; divides the width."""
    factor: int = 3
    """Delays kept per natural logarithm of the number of steps."""
    moving_average: int = 25
    """Steps of the moving average that gives the trend; odd."""
    embed: Embed = "timeF"
    """Calendar as real features (timeF) or as table rows, sinusoidal (fixed) or learned."""
    label_length: int | None = None
    """Observed steps the decoder starts from; half of the look-back if none."""
    dropout: float = 0.05
    """Dropout of embeddings and layers."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse([*self.problems(), *_label_problems(self.label_length, info), *_marks_problems(self, info)])
        from apps.forecasting.models.autoformer import Autoformer

        return Autoformer(self, info)


@dataclass(kw_only=True)
class MambaConfig:
    """Mamba forecaster of Time-Series-Library: selective scans over time steps, the last S outputs are the forecast."""

    width: int = 128
    """Channels of a token."""
    layers: int = 2
    """Blocks."""
    state_size: int = 16
    """Numbers of state per channel."""
    kernel: int = 4
    """Steps of the causal convolution before each scan."""
    expand: int = 2
    """Inner channels per channel of the width."""
    embed: Embed = "timeF"
    """Calendar as real features (timeF) or as table rows, sinusoidal (fixed) or learned."""
    dropout: float = 0.1
    """Dropout of the embedding."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        problems = [*self.problems(), *_marks_problems(self, info)]
        if info.horizon > info.look_back:
            problems.append(f"horizon={info.horizon} exceeds look_back={info.look_back}; mamba forecasts at most that")
        refuse(problems)
        from apps.forecasting.models.mamba import MambaForecaster

        return MambaForecaster(self, info)


@dataclass(kw_only=True)
class DLinearConfig:
    """DLinear (AAAI 2023): one Linear over time for the trend and one for the rest."""

    moving_average: int = 25
    """Steps of the moving average that gives the trend; odd."""
    individual: bool = False
    """Own weights for every variate."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _common_problems(self)

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        refuse(self.problems())
        from apps.forecasting.models.dlinear import DLinear

        return DLinear(self, info)


@dataclass(kw_only=True)
class SeasonalNaiveConfig:
    """Repeats the last season; the baseline any model should beat."""

    season: int = 24
    """Steps of a season."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        if self.season < 1:
            yield f"season={self.season} must be at least 1"

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        problems = list(self.problems())
        if self.season > info.look_back:
            problems.append(f"season={self.season} needs look_back={info.look_back} to be at least as long")
        refuse(problems)
        from apps.forecasting.models.naive import SeasonalNaive

        return SeasonalNaive(self, info)


@dataclass(kw_only=True)
class LastValueConfig:
    """Repeats the last observed value."""

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model for series of these sizes."""
        from apps.forecasting.models.naive import LastValue

        return LastValue(info)


MODELS = Registry(
    "model",
    {
        "itransformer": ITransformerConfig,
        "smamba": SMambaConfig,
        "patchtst": PatchTSTConfig,
        "aaren": AarenConfig,
        "informer": InformerConfig,
        "autoformer": AutoformerConfig,
        "flowformer": FlowformerConfig,
        "transformer": TransformerConfig,
        "mamba": MambaConfig,
        "dlinear": DLinearConfig,
        "seasonal_naive": SeasonalNaiveConfig,
        "last_value": LastValueConfig,
    },
)
