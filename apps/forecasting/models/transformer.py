"""Vanilla Transformer over time steps, in Informer's frame.

Paper: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, as a forecaster in Zhou et al. 2021. Origin:
thuml/Time-Series-Library, MIT. Three surprises: all S steps are decoded in one pass, there is no feeding back of
forecasts; the decoder's causal mask hides future *zeros*, so it matters little; there is no instance normalisation,
which is why it fails on series whose level drifts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from apps.forecasting.models.decoder import Decoder, DecoderLayer
from apps.forecasting.models.encoder import Encoder, EncoderLayer, FeedForward
from apps.forecasting.models.encoder_decoder import EncoderDecoder, label_of, step_embedding
from apps.forecasting.models.info import SeriesInfo
from backbones.sequence.base import Mixer
from backbones.sequence.softmax import SoftmaxMixer

if TYPE_CHECKING:
    from apps.forecasting.models.config import TransformerConfig


class StepTransformer(EncoderDecoder):
    """Encoder and decoder over time steps with a given mixer.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
        mixer: Makes a mixer; its argument says whether it must be causal.
        decoder_variates: Width of ``decoder_input``; as many as the history's if omitted.
    """

    def __init__(
        self,
        config: TransformerConfig,
        info: SeriesInfo,
        mixer: Callable[[bool], Mixer],
        decoder_variates: int | None = None,
    ) -> None:
        def feedforward() -> FeedForward:
            return FeedForward(config.width, config.feedforward, config.dropout, config.activation)

        label_length = label_of(config, info)
        layers = [EncoderLayer(mixer(False), feedforward(), config.dropout) for _ in range(config.layers)]
        decoder_layers = [
            DecoderLayer(mixer(True), mixer(False), feedforward(), config.dropout) for _ in range(config.decoder_layers)
        ]
        decoder_variates = decoder_variates or info.variates
        super().__init__(
            info,
            label_length=label_length,
            encoder_embedding=step_embedding(config, info, info.variates, info.look_back),
            decoder_embedding=step_embedding(config, info, decoder_variates, label_length + info.horizon),
            encoder=Encoder(layers, nn.LayerNorm(config.width)),
            decoder=Decoder(decoder_layers, nn.LayerNorm(config.width)),
            width=config.width,
        )


class Transformer(StepTransformer):
    """Transformer with softmax attention.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
        decoder_variates: Width of ``decoder_input``; as many as the history's if omitted.
    """

    def __init__(self, config: TransformerConfig, info: SeriesInfo, decoder_variates: int | None = None) -> None:
        def mixer(causal: bool) -> Mixer:
            return SoftmaxMixer(config.width, heads=config.heads, dropout=config.dropout, causal=causal)

        super().__init__(config, info, mixer, decoder_variates)
