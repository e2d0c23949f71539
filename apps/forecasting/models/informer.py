"""Informer: ProbSparse attention, a distilling encoder, all steps decoded at once.

Paper: Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", AAAI 2021.
Origin: zhouhaoyi/Informer2020, Apache-2.0, and thuml/Time-Series-Library, MIT, whose arithmetic differs (``flavour``).
Three surprises: the library never transposes the result of ProbSparse attention back, so heads and times are mixed,
and the original does the same on purpose in the decoder (``mix``); queries that are not kept output the mean of the
values, but in masked attention their running *sum*; keys are sampled at evaluation too, so official results are not
deterministic (here the sample is fixed in evaluation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apps.forecasting.models.decoder import Decoder, DecoderLayer
from apps.forecasting.models.encoder import Encoder, EncoderLayer, FeedForward
from apps.forecasting.models.encoder_decoder import EncoderDecoder, label_of, step_embedding
from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.informer_attention import InformerAttention
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from apps.forecasting.models.config import InformerConfig


class Distilling(nn.Module):
    """Halves a sequence: circular convolution, batch norm, ELU, max pooling.

    Args:
        width: D.
        padding: Steps added at both ends before the convolution: 1 in the original, 2 in the library.
    """

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.convolution = nn.Conv1d(width, width, kernel_size=3)
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.ELU()
        self.pool = nn.MaxPool1d(kernel_size=3, stride=2, padding=1)

    def length(self, steps: int) -> int:
        """Length of the output for an input of ``steps``."""
        return (steps + 2 * self.padding - 2 - 1) // 2 + 1

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] to [B, about L / 2, D]."""
        ring = torch.cat([tokens[:, -self.padding :], tokens, tokens[:, : self.padding]], dim=1)
        features = self.activation(self.norm(self.convolution(ring.transpose(1, 2))))
        pooled: Tensor = self.pool(features)
        return pooled.transpose(1, 2)


class EncoderStack(nn.Module):
    """Encoders side by side; encoder k reads the last L / 2**k steps, results are joined along time.

    Args:
        encoders: The encoders, longest input first.
    """

    def __init__(self, encoders: list[Encoder]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] to [B, sum of the encoders' lengths, D]."""
        length = tokens.shape[1]
        parts = [encoder(tokens[:, length - length // 2**k :]) for k, encoder in enumerate(self.encoders)]
        return torch.cat(parts, dim=1)


class Informer(EncoderDecoder):
    """Informer in either flavour.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
        decoder_variates: Width of ``decoder_input``; as many as the history's if omitted.
    """

    def __init__(self, config: InformerConfig, info: SeriesInfo, decoder_variates: int | None = None) -> None:
        label_length = label_of(config, info)
        original = config.flavour == "original"
        encoder: nn.Module
        if config.stack_layers:
            encoder = EncoderStack(
                [_encoder(config, layers, info.look_back // 2**k) for k, layers in enumerate(config.stack_layers)]
            )
        else:
            encoder = _encoder(config, config.layers, info.look_back)
        decoder_variates = decoder_variates or info.variates
        super().__init__(
            info,
            label_length=label_length,
            encoder_embedding=step_embedding(config, info, info.variates, info.look_back, original),
            decoder_embedding=step_embedding(config, info, decoder_variates, label_length + info.horizon, original),
            encoder=encoder,
            decoder=Decoder([_decoder_layer(config) for _ in range(config.decoder_layers)], nn.LayerNorm(config.width)),
            width=config.width,
        )


def _attention(config: InformerConfig, *, sparse: bool, mixed: bool, causal: bool = False) -> InformerAttention:
    return InformerAttention(
        config.width,
        heads=config.heads,
        sparse=sparse,
        factor=config.factor,
        causal=causal,
        mixed=mixed,
        dropout=config.dropout,
    )


def _feedforward(config: InformerConfig) -> FeedForward:
    return FeedForward(config.width, config.feedforward, config.dropout, config.activation)


def _encoder(config: InformerConfig, count: int, steps: int) -> Encoder:
    """An encoder of ``count`` layers for ``steps`` steps, with distilling between the layers."""
    library, sparse = config.flavour == "library", config.attention == "prob"
    layers = [
        EncoderLayer(_attention(config, sparse=sparse, mixed=library and sparse), _feedforward(config), config.dropout)
        for _ in range(count)
    ]
    between = [Distilling(config.width, 2 if library else 1) for _ in range(count - 1 if config.distil else 0)]
    for module in between:
        if steps < module.padding:
            raise ConfigError(f"look_back is too short to be halved {len(between)} times; set distil=false")
        steps = module.length(steps)
    return Encoder(layers, nn.LayerNorm(config.width), between)


def _decoder_layer(config: InformerConfig) -> DecoderLayer:
    library, sparse = config.flavour == "library", config.attention == "prob"
    return DecoderLayer(
        _attention(config, sparse=sparse, mixed=library or config.mix, causal=True),
        _attention(config, sparse=library, mixed=library),
        _feedforward(config),
        config.dropout,
    )
