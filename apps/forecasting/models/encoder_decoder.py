"""The frame Informer, Transformer and Flowformer share: encode the history, decode all steps at once.

Source: Zhou et al. 2021 (Informer), section 3.3, generative decoding. The decoder starts from the last label_length
observed steps followed by S zeros and forecasts all S steps in one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from apps.forecasting.models.decoder import Decoder
from apps.forecasting.models.embeddings import CalendarEmbedding, StepEmbedding
from apps.forecasting.models.forecast import Forecast, Forecaster
from apps.forecasting.models.info import SeriesInfo
from graftwork.errors import ShapeError

if TYPE_CHECKING:
    from apps.forecasting.models.config import AutoformerConfig, InformerConfig, MambaConfig, TransformerConfig

    EmbeddedConfig: TypeAlias = AutoformerConfig | InformerConfig | MambaConfig | TransformerConfig


def step_embedding(
    config: EmbeddedConfig, info: SeriesInfo, variates: int, length: int, bias: bool = False
) -> StepEmbedding:
    """The embedding of time steps for a model.

    Args:
        config: Its ``embed``, ``width`` and ``dropout``.
        info: Calendar of the series.
        variates: Values per step.
        length: Longest sequence; 0 for no positions.
        bias: Whether value and calendar embeddings have a bias.
    """
    calendar = None
    if info.mark_features:
        calendar = CalendarEmbedding(config.embed, info.mark_features, config.width, info.frequency, bias)
    return StepEmbedding(variates, config.width, calendar, length, bias, config.dropout)


def label_of(config: AutoformerConfig | InformerConfig | TransformerConfig, info: SeriesInfo) -> int:
    """Observed steps the decoder starts from: as configured, or half of the look-back."""
    return info.look_back // 2 if config.label_length is None else config.label_length


def marks_to_decode(
    history_marks: Tensor | None, future_marks: Tensor | None, label_length: int, horizon: int
) -> Tensor | None:
    """Calendar of the last label_length observed steps and of the S steps to come, [B, label + S, M].

    Raises:
        ShapeError: Only one of the two is given, or the future has another number of steps.
    """
    if history_marks is None and future_marks is None:
        return None
    if history_marks is None or future_marks is None or future_marks.shape[1] != horizon:
        found = "None" if future_marks is None else list(future_marks.shape)
        raise ShapeError(f"future_marks: expected [batch, {horizon}, features] beside history_marks, got {found}")
    return torch.cat([history_marks[:, history_marks.shape[1] - label_length :], future_marks], dim=1)


class EncoderDecoder(Forecaster):
    """Embeds, encodes, decodes and projects.

    Args:
        info: Sizes of the series.
        label_length: Observed steps the decoder starts from.
        encoder_embedding: Embeds the history.
        decoder_embedding: Embeds the decoder's steps.
        encoder: Maps [B, L, D] to [B, L', D].
        decoder: Reads the encoder's tokens.
        width: D.
    """

    def __init__(
        self,
        info: SeriesInfo,
        *,
        label_length: int,
        encoder_embedding: StepEmbedding,
        decoder_embedding: StepEmbedding,
        encoder: nn.Module,
        decoder: Decoder,
        width: int,
    ) -> None:
        super().__init__(info)
        self.label_length = label_length
        self.encoder_embedding = encoder_embedding
        self.decoder_embedding = decoder_embedding
        self.encoder = encoder
        self.decoder = decoder
        self.projection = nn.Linear(width, info.outputs)

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps, see :meth:`Forecaster.forward`."""
        self.check_history(history)
        horizon, label = self.info.horizon, self.label_length
        if decoder_input is None:
            zeros = history.new_zeros(history.shape[0], horizon, history.shape[2])
            decoder_input = torch.cat([history[:, history.shape[1] - label :], zeros], dim=1)
        if decoder_marks is None:
            decoder_marks = marks_to_decode(history_marks, future_marks, label, horizon)
        memory = self.encoder(self.encoder_embedding(history, history_marks))
        hidden = self.decoder(self.decoder_embedding(decoder_input, decoder_marks), memory)
        values: Tensor = self.projection(hidden[:, -horizon:])
        return Forecast(values)
