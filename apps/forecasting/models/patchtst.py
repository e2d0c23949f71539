"""PatchTST: each variate alone, cut into patches that attend to each other.

Paper: Nie et al., "A Time Series is Worth 64 Words", ICLR 2023. Origin: yuqinie98/PatchTST, Apache-2.0; this is the
form of Time-Series-Library, MIT. Three surprises: the last norm is a BatchNorm over channels although the layers use
LayerNorm; all variates share weights and never see each other; the head flattens channel-major (D x patches), and
holds more than half of the parameters for long windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from apps.forecasting.models.encoder import Encoder, EncoderLayer, FeedForward
from apps.forecasting.models.forecast import Forecast, Forecaster, ForecastHead
from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.normalisation import standardise
from apps.forecasting.models.patches import PatchEmbedding

if TYPE_CHECKING:
    from apps.forecasting.models.config import PatchTSTConfig


class ChannelBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the channels of tokens, statistics over sequences and tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, P, D] to [B, P, D]."""
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


class PatchTST(Forecaster):
    """PatchTST with any mixer.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
    """

    def __init__(self, config: PatchTSTConfig, info: SeriesInfo) -> None:
        super().__init__(info)
        self.patches = PatchEmbedding(info.look_back, config.patch_length, config.stride, config.width, config.dropout)
        layers = [
            EncoderLayer(
                config.mixer.build(config.width),
                FeedForward(config.width, config.feedforward, config.dropout, config.activation),
                config.dropout,
            )
            for _ in range(config.layers)
        ]
        self.encoder = Encoder(layers, ChannelBatchNorm(config.width))
        self.head = ForecastHead(config.width * self.patches.count, info.horizon, tuple(config.quantiles))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps, see :meth:`Forecaster.forward`; only ``history`` has an effect."""
        self.check_history(history, any_variates=True)
        normed, level = standardise(history)
        tokens = self.encoder(self.patches(normed.transpose(1, 2)))  # B * N, P, D
        features = tokens.transpose(1, 2).flatten(1).unflatten(0, (-1, history.shape[2]))  # B, N, D * P
        values, quantiles = self.head(features)
        return self.finish(self.dropout(values) if quantiles is None else values, quantiles, level)
