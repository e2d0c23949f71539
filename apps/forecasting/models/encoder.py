"""Post-norm encoder layers around any mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from backbones.sequence.base import Mixer

Activation = Literal["gelu", "relu"]


class FeedForward(nn.Module):
    """Two Linears with an activation between; equal to the kernel-1 convolutions of the official code.

    Args:
        width: D.
        hidden: Channels between the two.
        dropout: After the activation and after the second Linear.
        activation: ``gelu`` is the exact erf form.
        bias: Whether the Linears have one.
    """

    def __init__(self, width: int, hidden: int, dropout: float, activation: Activation, bias: bool = True) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias=bias)
        self.contract = nn.Linear(hidden, width, bias=bias)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        hidden = self.dropout(self.activation(self.expand(tokens)))
        contracted: Tensor = self.dropout(self.contract(hidden))
        return contracted


class EncoderLayer(nn.Module):
    """x = LN(x + drop(mix(x))); x = LN(x + feedforward(x)).

    Args:
        mixer: Mixes the tokens.
        feedforward: Works on each token alone.
        dropout: Of the mixer's branch.
    """

    def __init__(self, mixer: Mixer, feedforward: FeedForward, dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(mixer.width)
        self.feedforward = feedforward
        self.feedforward_norm = nn.LayerNorm(mixer.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, tokens, D] to [B, tokens, D]."""
        mixed, _ = self.mixer(tokens)
        tokens = self.mixer_norm(tokens + self.dropout(mixed))
        refined: Tensor = self.feedforward_norm(tokens + self.feedforward(tokens))
        return refined


class Encoder(nn.Module):
    """Layers one after another, with optional shortening layers between, and a last norm.

    Args:
        layers: Encoder layers.
        norm: What follows the last layer.
        between: Modules after the first, second, ... layer; empty for none.
    """

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module, between: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.between = nn.ModuleList(between)
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, tokens, D] to [B, tokens', D]; tokens' is smaller where layers between shorten."""
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if index < len(self.between):
                tokens = self.between[index](tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded
