"""Post-norm decoder layers around any pair of mixers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from apps.forecasting.models.encoder import FeedForward
from backbones.sequence.base import Mixer


class DecoderLayer(nn.Module):
    """LN(x + drop(self mix)); LN(x + drop(cross mix)); LN(x + feedforward).

    Args:
        self_mixer: Causal mixer over the decoder's tokens.
        cross_mixer: Mixer that reads the encoder's tokens as memory.
        feedforward: Works on each token alone.
        dropout: Of the two mixers' branches.
    """

    def __init__(self, self_mixer: Mixer, cross_mixer: Mixer, feedforward: FeedForward, dropout: float) -> None:
        super().__init__()
        self.self_mixer = self_mixer
        self.self_norm = nn.LayerNorm(self_mixer.width)
        self.cross_mixer = cross_mixer
        self.cross_norm = nn.LayerNorm(self_mixer.width)
        self.feedforward = feedforward
        self.feedforward_norm = nn.LayerNorm(self_mixer.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Decoder tokens [B, T, D] and encoder tokens [B, L, D] to [B, T, D]."""
        mixed, _ = self.self_mixer(tokens)
        tokens = self.self_norm(tokens + self.dropout(mixed))
        read, _ = self.cross_mixer(tokens, memory=memory)
        tokens = self.cross_norm(tokens + self.dropout(read))
        refined: Tensor = self.feedforward_norm(tokens + self.feedforward(tokens))
        return refined


class Decoder(nn.Module):
    """Decoder layers one after another and a last norm.

    Args:
        layers: Decoder layers.
        norm: What follows the last layer.
    """

    def __init__(self, layers: Sequence[DecoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Decoder tokens [B, T, D] and encoder tokens [B, L, D] to [B, T, D]."""
        for layer in self.layers:
            tokens = layer(tokens, memory)
        decoded: Tensor = self.norm(tokens)
        return decoded
