"""Aaren forecaster: attention as a recurrence over patches of time.

Paper: Feng et al., "Attention as an RNN", 2024 (arXiv 2405.13956). Origin: written from the paper's definitions, no
code was found. Three surprises: the query is a learned constant per layer, not a function of the token; attention to
all earlier tokens then needs a state of only (maximum, sum, weighted sum) per head; it is causal by construction, so
the last token has seen everything.

The paper puts Aaren layers in place of a transformer's and normalises the input; what is around them here is the
channel-independent frame of PatchTST (patches, positions, instance normalisation), with one difference made possible
by the last point: the head reads the last token only, so its size does not grow with the look-back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from apps.forecasting.models.encoder import Encoder, EncoderLayer, FeedForward
from apps.forecasting.models.forecast import Forecast, Forecaster, ForecastHead
from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.normalisation import standardise
from apps.forecasting.models.patches import PatchEmbedding
from backbones.sequence.scan import ScanMixer

if TYPE_CHECKING:
    from apps.forecasting.models.config import AarenConfig


class Aaren(Forecaster):
    """Aaren layers over patches of each variate.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
    """

    def __init__(self, config: AarenConfig, info: SeriesInfo) -> None:
        super().__init__(info)
        self.patches = PatchEmbedding(info.look_back, config.patch_length, config.stride, config.width, config.dropout)
        layers = [
            EncoderLayer(
                ScanMixer(config.width, heads=config.heads),
                FeedForward(config.width, config.feedforward, config.dropout, config.activation),
                config.dropout,
            )
            for _ in range(config.layers)
        ]
        self.encoder = Encoder(layers, nn.LayerNorm(config.width))
        self.head = ForecastHead(config.width, info.horizon, tuple(config.quantiles))

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
        last = tokens[:, -1].unflatten(0, (-1, history.shape[2]))  # B, N, D
        values, quantiles = self.head(last)
        return self.finish(values, quantiles, level)
