"""Autoformer: series decomposition between layers, auto-correlation in place of attention.

Paper: Wu et al., "Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting",
NeurIPS 2021. Origin: thuml/Autoformer and thuml/Time-Series-Library, MIT. Three surprises: in training the delays are
shared by the batch, in evaluation each sample has its own, so the two differ even without dropout; a step averages
values from *later* in the window (rolled left), and nothing is causal in the decoder either; the decoder starts from
the history itself, its input tensor only lends its width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apps.forecasting.models.decomposition import Decomposition
from apps.forecasting.models.encoder import Encoder, FeedForward
from apps.forecasting.models.encoder_decoder import label_of, marks_to_decode, step_embedding
from apps.forecasting.models.forecast import Forecast, Forecaster
from apps.forecasting.models.info import SeriesInfo
from backbones.sequence.autocorrelation import AutoCorrelationMixer

if TYPE_CHECKING:
    from apps.forecasting.models.config import AutoformerConfig


class SeasonalNorm(nn.LayerNorm):
    """LayerNorm over channels whose mean over time is then removed, so that no trend can pass."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D], mean zero over L."""
        normed = super().forward(tokens)
        return normed - normed.mean(dim=1, keepdim=True)


def _mixer(config: AutoformerConfig) -> AutoCorrelationMixer:
    return AutoCorrelationMixer(config.width, heads=config.heads, factor=config.factor)


def _feedforward(config: AutoformerConfig) -> FeedForward:
    return FeedForward(config.width, config.feedforward, config.dropout, config.activation, bias=False)


class AutoformerEncoderLayer(nn.Module):
    """Auto-correlation and feed-forward, the trend dropped after each; no LayerNorm.

    Args:
        config: Sizes of the network.
    """

    def __init__(self, config: AutoformerConfig) -> None:
        super().__init__()
        self.mixer = _mixer(config)
        self.feedforward = _feedforward(config)
        self.decomposition = Decomposition(config.moving_average)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] to its seasonal part, [B, L, D]."""
        mixed, _ = self.mixer(tokens)
        tokens, _ = self.decomposition(tokens + self.dropout(mixed))
        seasonal, _ = self.decomposition(tokens + self.feedforward(tokens))
        return seasonal


class AutoformerDecoderLayer(nn.Module):
    """Refines the seasonal part and gives the trend found on the way.

    Args:
        config: Sizes of the network.
        variates: Columns of the trend.
    """

    def __init__(self, config: AutoformerConfig, variates: int) -> None:
        super().__init__()
        self.self_mixer = _mixer(config)
        self.cross_mixer = _mixer(config)
        self.feedforward = _feedforward(config)
        self.decomposition = Decomposition(config.moving_average)
        self.trend_convolution = nn.Conv1d(config.width, variates, kernel_size=3, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Seasonal tokens [B, T, D] and encoder tokens [B, L, D] to seasonal [B, T, D] and trend [B, T, N]."""
        mixed, _ = self.self_mixer(tokens)
        tokens, first = self.decomposition(tokens + self.dropout(mixed))
        read, _ = self.cross_mixer(tokens, memory=memory)
        tokens, second = self.decomposition(tokens + self.dropout(read))
        tokens, third = self.decomposition(tokens + self.feedforward(tokens))
        trend = first + second + third
        ring = torch.cat([trend[:, -1:], trend, trend[:, :1]], dim=1)
        return tokens, self.trend_convolution(ring.transpose(1, 2)).transpose(1, 2)


class AutoformerDecoder(nn.Module):
    """Decoder layers, whose trends add up, and the projection of the seasonal part.

    Args:
        config: Sizes of the network.
        variates: Columns of the series.
    """

    def __init__(self, config: AutoformerConfig, variates: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AutoformerDecoderLayer(config, variates) for _ in range(config.decoder_layers))
        self.norm = SeasonalNorm(config.width)
        self.projection = nn.Linear(config.width, variates)

    def forward(self, tokens: Tensor, memory: Tensor, trend: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, D], encoder tokens [B, L, D], first trend [B, T, N] to seasonal and trend, [B, T, N] each."""
        for layer in self.layers:
            tokens, found = layer(tokens, memory)
            trend = trend + found
        return self.projection(self.norm(tokens)), trend


class Autoformer(Forecaster):
    """Autoformer.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
        trend_variates: Columns the decoder writes; N if omitted, 1 adds the same column to every variate's trend.
    """

    def __init__(self, config: AutoformerConfig, info: SeriesInfo, trend_variates: int | None = None) -> None:
        super().__init__(info)
        self.label_length = label_of(config, info)
        self.decomposition = Decomposition(config.moving_average)
        self.encoder_embedding = step_embedding(config, info, info.variates, length=0)
        self.decoder_embedding = step_embedding(config, info, info.variates, length=0)
        layers = [AutoformerEncoderLayer(config) for _ in range(config.layers)]
        self.encoder = Encoder(layers, SeasonalNorm(config.width))
        self.decoder = AutoformerDecoder(config, trend_variates or info.variates)

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps, see :meth:`Forecaster.forward`; ``decoder_input`` has no effect."""
        self.check_history(history)
        horizon, start = self.info.horizon, self.info.look_back - self.label_length
        if decoder_marks is None:
            decoder_marks = marks_to_decode(history_marks, future_marks, self.label_length, horizon)
        seasonal, trend = self.decomposition(history)
        level = history.mean(dim=1, keepdim=True).expand(-1, horizon, -1)
        trend = torch.cat([trend[:, start:], level], dim=1)
        seasonal = torch.cat([seasonal[:, start:], torch.zeros_like(level)], dim=1)
        memory = self.encoder(self.encoder_embedding(history, history_marks))
        seasonal, trend = self.decoder(self.decoder_embedding(seasonal, decoder_marks), memory, trend)
        return Forecast(self.scored((trend + seasonal)[:, -horizon:]))
