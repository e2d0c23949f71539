"""Configurations of the mixers and their names. Standard library only: no torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftwork.components import Registry
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from backbones.sequence.base import Mixer


def _heads_problems(heads: int) -> Iterator[str]:
    if heads < 1:
        yield f"heads={heads} must be at least 1"


def _both_directions(bidirectional: bool | None, causal: bool) -> bool:
    """Whether a mixer reads in both directions: as set, and if not set, wherever later tokens may be read.

    Raises:
        ConfigError: Both directions are asked for where only earlier tokens may be read.
    """
    if causal and bidirectional:
        raise ConfigError("bidirectional=true reads the future, and causal=true forbids it", mend="Unset one")
    return not causal if bidirectional is None else bidirectional


def _dropout_problems(dropout: float) -> Iterator[str]:
    if not 0 <= dropout < 1:
        yield f"dropout={dropout} must be at least 0 and below 1"


@dataclass(kw_only=True)
class SoftmaxMixerConfig:
    """Multi-head softmax attention (Vaswani et al. 2017): exact, quadratic in the number of tokens."""

    heads: int = 8
    """Number of attention heads; divides the width."""
    dropout: float = 0.1
    """Share of attention weights dropped in training."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _heads_problems(self.heads)
        yield from _dropout_problems(self.dropout)

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels."""
        from backbones.sequence.softmax import SoftmaxMixer

        return SoftmaxMixer(width=width, heads=self.heads, dropout=self.dropout, causal=causal)


@dataclass(kw_only=True)
class ProbSparseMixerConfig:
    """ProbSparse attention of Informer: full attention for the queries that stand out."""

    heads: int = 8
    """Number of attention heads; divides the width."""
    factor: int = 5
    """Keys sampled and queries kept per natural logarithm of their number."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _heads_problems(self.heads)
        if self.factor < 1:
            yield f"factor={self.factor} must be at least 1"

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels."""
        from backbones.sequence.probsparse import ProbSparseMixer

        return ProbSparseMixer(width=width, heads=self.heads, factor=self.factor, causal=causal)


@dataclass(kw_only=True)
class AutoCorrelationMixerConfig:
    """Auto-correlation of Autoformer: averages the series shifted by its strongest periods."""

    heads: int = 8
    """Number of heads; divides the width."""
    factor: int = 1
    """Delays kept per natural logarithm of the number of tokens."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _heads_problems(self.heads)
        if self.factor < 1:
            yield f"factor={self.factor} must be at least 1"

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels."""
        from backbones.sequence.autocorrelation import AutoCorrelationMixer

        return AutoCorrelationMixer(width=width, heads=self.heads, factor=self.factor, causal=causal)


@dataclass(kw_only=True)
class FlowMixerConfig:
    """Flow-attention of Flowformer: linear in the number of tokens."""

    heads: int = 8
    """Number of heads; divides the width."""
    clamp: float | None = None
    """Bound on the competition logits; the paper's code has 1, 5 or 10 by task, none for time series."""
    dropout: float = 0.0
    """Dropout after the output projection."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _heads_problems(self.heads)
        yield from _dropout_problems(self.dropout)
        if self.clamp is not None and self.clamp <= 0:
            yield f"clamp={self.clamp} must be positive; null switches it off"

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels."""
        from backbones.sequence.flow import FlowMixer

        return FlowMixer(width=width, heads=self.heads, clamp=self.clamp, dropout=self.dropout, causal=causal)


@dataclass(kw_only=True)
class SelectiveScanMixerConfig:
    """The block of Mamba: a state-space model whose coefficients depend on the token."""

    state_size: int = 16
    """Numbers of state kept per channel."""
    kernel: int = 4
    """Width of the causal convolution before the scan, in tokens."""
    expand: int = 2
    """Inner channels per channel of the width."""
    bidirectional: bool | None = None
    """Add a second block that reads the tokens backwards, as S-Mamba does; null: unless the model is causal."""
    rank: int | None = None
    """Channels the step size of the scan is made from; null: a sixteenth of the width, rounded up."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        for name in ("state_size", "kernel", "expand"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        if self.rank is not None and self.rank < 1:
            yield f"rank={self.rank} must be at least 1; null takes a sixteenth of the width"

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels.

        Raises:
            ConfigError: A bidirectional mixer is wanted where only causal ones fit.
        """
        both = _both_directions(self.bidirectional, causal)
        from backbones.sequence.selective_scan import SelectiveScanMixer

        return SelectiveScanMixer(
            width=width,
            state_size=self.state_size,
            kernel=self.kernel,
            expand=self.expand,
            bidirectional=both,
            causal=causal,
            rank=self.rank,
        )


@dataclass(kw_only=True)
class ScanMixerConfig:
    """Attention as a recurrence (Aaren): a learned query, constant memory per streamed token."""

    heads: int = 8
    """Number of heads; divides the width."""
    dropout: float = 0.0
    """Dropout after the output projection."""
    bidirectional: bool | None = None
    """Add a second scan that reads the tokens backwards; null: unless the model is causal."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _heads_problems(self.heads)
        yield from _dropout_problems(self.dropout)

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels.

        Raises:
            ConfigError: A bidirectional mixer is wanted where only causal ones fit.
        """
        both = _both_directions(self.bidirectional, causal)
        from backbones.sequence.scan import ScanMixer

        return ScanMixer(width=width, heads=self.heads, dropout=self.dropout, bidirectional=both)


@dataclass(kw_only=True)
class GatedLinearMixerConfig:
    """Gated linear attention (GLA): linear in the number of tokens, with a state that forgets per channel."""

    heads: int = 8
    """Number of heads; divides the width."""
    rank: int = 16
    """Channels that the gates' logits are made from."""
    temperature: float = 16.0
    """Divides the logarithms of the gates: larger values remember longer."""
    bidirectional: bool | None = None
    """Read from both ends, with a second set of gates; null: unless the model is causal."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from _heads_problems(self.heads)
        if self.rank < 1:
            yield f"rank={self.rank} must be at least 1"
        if self.temperature <= 0:
            yield f"temperature={self.temperature} must be positive"

    def build(self, width: int, *, causal: bool = False) -> Mixer:
        """The mixer for tokens of ``width`` channels.

        Raises:
            ConfigError: A bidirectional mixer is wanted where only causal ones fit.
        """
        both = _both_directions(self.bidirectional, causal)
        from backbones.sequence.gated_linear import GatedLinearMixer

        return GatedLinearMixer(
            width, heads=self.heads, rank=self.rank, temperature=self.temperature, bidirectional=both
        )


MIXERS = Registry(
    "mixer",
    {
        "softmax": SoftmaxMixerConfig,
        "probsparse": ProbSparseMixerConfig,
        "autocorrelation": AutoCorrelationMixerConfig,
        "flow": FlowMixerConfig,
        "selective_scan": SelectiveScanMixerConfig,
        "scan": ScanMixerConfig,
        "gated_linear": GatedLinearMixerConfig,
    },
)
