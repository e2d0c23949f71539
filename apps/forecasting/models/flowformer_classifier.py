"""Flowformer for classifying time series (UEA archive).

Paper: Wu et al., "Flowformer", ICML 2022, section 4.4. Origin: thuml/Flowformer, MIT, after gzerveas/mvts_transformer.
Three surprises: the padding mask does not reach the attention, it only zeroes the outputs of padded steps; embedded
inputs are multiplied by sqrt(D); the head flattens all steps, so the length is fixed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from apps.forecasting.models.embeddings import sinusoid_table
from apps.forecasting.models.encoder import Activation, Encoder, EncoderLayer, FeedForward
from backbones.sequence.flow import FlowMixer


class FlowformerClassifier(nn.Module):
    """Flow-attention over time steps, then one Linear over all of them.

    Args:
        features: F, values per step.
        length: L, steps; shorter series are padded at the end.
        classes: Number of classes.
        width: D.
        feedforward: Channels inside the feed-forward network.
        layers: Encoder layers.
        heads: H.
        positions: ``learnable`` (uniform in +-0.02) or ``fixed`` (sine and cosine).
        dropout: Of embedding, layers and head.
        activation: Of the feed-forward network and before the head.
        clamp: Bound on the competition logits of flow-attention; none for time series.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        features: int,
        length: int,
        classes: int,
        width: int = 512,
        feedforward: int = 512,
        layers: int = 3,
        heads: int = 8,
        positions: Literal["learnable", "fixed"] = "learnable",
        dropout: float = 0.1,
        activation: Activation = "gelu",
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.scale = width**0.5
        self.embedding = nn.Linear(features, width)
        if positions == "learnable":
            self.positions = nn.Parameter(torch.empty(length, width).uniform_(-0.02, 0.02))
        else:
            self.register_buffer("positions", sinusoid_table(length, width))
        blocks = [
            EncoderLayer(
                FlowMixer(width, heads=heads, clamp=clamp, dropout=dropout),
                FeedForward(width, feedforward, dropout, activation),
                dropout,
            )
            for _ in range(layers)
        ]
        self.encoder = Encoder(blocks, nn.LayerNorm(width))
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(length * width, classes)

    def forward(self, series: Tensor, valid: Tensor | None = None) -> Tensor:
        """Classify series.

        Args:
            series: [B, L, F].
            valid: True (or 1) for observed steps, [B, L]; None if all are.

        Returns:
            Logits, [B, classes].
        """
        tokens = self.dropout(self.embedding(series) * self.scale + self.positions)
        tokens = self.dropout(self.activation(self.encoder(tokens)))
        if valid is not None:
            tokens = tokens * valid.unsqueeze(-1).to(tokens.dtype)
        logits: Tensor = self.head(tokens.flatten(1))
        return logits
