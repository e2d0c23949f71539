"""iTransformer: each series is one token, attention runs between variates.

Paper: Liu et al., "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting", ICLR 2024.
Origin: thuml/iTransformer, MIT. Three surprises: calendar features are appended as extra *tokens*, so attention is
(N + M) x (N + M); there is no positional encoding, and the weights do not depend on N, so a trained model accepts any
number of variates; a final LayerNorm follows the LayerNorm of the last layer directly.

With another mixer the skeleton becomes iFlowformer (``flow``), iInformer (``probsparse``), and so on. Variates have no
order and calendar tokens come last, so the scanning mixers read the tokens in both directions unless set otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apps.forecasting.models.encoder import Encoder, EncoderLayer, FeedForward
from apps.forecasting.models.forecast import Forecast, Forecaster, ForecastHead
from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.normalisation import standardise
from backbones.sequence.base import Mixer
from backbones.sequence.softmax import SoftmaxMixer
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from apps.forecasting.models.config import ITransformerConfig, SMambaConfig


class VariateForecaster(Forecaster):
    """The skeleton of iTransformer and S-Mamba: encode series as tokens, mix them, read each forecast off its token.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
        mixer: Makes the mixer of a layer.
        mixer_dropout: Dropout of the mixer's branch.
    """

    def __init__(
        self,
        config: ITransformerConfig | SMambaConfig,
        info: SeriesInfo,
        mixer: Callable[[], Mixer],
        mixer_dropout: float,
    ) -> None:
        super().__init__(info)
        self.instance_norm = config.instance_norm
        self.embedding = nn.Linear(info.look_back, config.width)
        self.dropout = nn.Dropout(config.dropout)
        layers = [
            EncoderLayer(
                mixer(),
                FeedForward(config.width, config.feedforward, config.dropout, config.activation),
                mixer_dropout,
            )
            for _ in range(config.layers)
        ]
        self.encoder = Encoder(layers, nn.LayerNorm(config.width))
        self.head = ForecastHead(config.width, info.horizon, tuple(config.quantiles))

    def embed(self, history: Tensor, history_marks: Tensor | None) -> Tensor:
        """One token per variate, then one per calendar feature, [B, N + M, D]."""
        series = history.transpose(1, 2)
        if history_marks is not None:
            series = torch.cat([series, history_marks.transpose(1, 2).to(series.dtype)], dim=1)
        tokens: Tensor = self.dropout(self.embedding(series))
        return tokens

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps of any number of variates, see :meth:`Forecaster.forward`.

        Only ``history`` and ``history_marks`` have an effect.
        """
        self.check_history(history, any_variates=True)
        level = None
        if self.instance_norm:
            history, level = standardise(history)
        tokens = self.encoder(self.embed(history, history_marks))
        values, quantiles = self.head(tokens[:, : history.shape[2]])  # B, N, S and B, N, S, Q
        return self.finish(values, quantiles, level)


class ITransformer(VariateForecaster):
    """iTransformer with any mixer.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
    """

    def __init__(self, config: ITransformerConfig, info: SeriesInfo) -> None:
        super().__init__(config, info, lambda: config.mixer.build(config.width, causal=False), config.dropout)

    @torch.no_grad()
    def variate_attention(self, history: Tensor, history_marks: Tensor | None = None, layer: int = -1) -> Tensor:
        """How much each series reads from each other one.

        Args:
            history: [B, L, N].
            history_marks: [B, L, M], or None.
            layer: Which layer; the last one by default.

        Returns:
            Attention weights, [B, H, N + M, N + M]; rows (readers) sum to 1.

        Raises:
            ConfigError: The mixer is not softmax attention, so there are no weights.
        """
        mixer = self.encoder.layers[layer].mixer
        if not isinstance(mixer, SoftmaxMixer):
            name = type(mixer).__name__
            raise ConfigError(f"{name} has no attention weights to show", mend="Train with --model.mixer softmax")
        self.check_history(history, any_variates=True)
        if self.instance_norm:
            history, _ = standardise(history)
        tokens = self.embed(history, history_marks)
        for earlier in list(self.encoder.layers)[: layer % len(self.encoder.layers)]:
            tokens = earlier(tokens)
        return mixer.weights(tokens)
