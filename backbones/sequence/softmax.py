"""Mixer with multi-head softmax attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.attention.attend import attend
from backbones.attention.backends.math import attention_weights
from backbones.sequence.base import ProjectedMixer, merge_heads


class KeyValueState(NamedTuple):
    """Keys and values of the tokens before, [B, tokens, H, d] each; they grow with the sequence."""

    keys: Tensor
    values: Tensor


class SoftmaxMixer(ProjectedMixer):
    """Multi-head attention: exact, and quadratic in the number of tokens.

    The causal form streams by keeping keys and values; a mask then covers the kept tokens first.

    Args:
        width: Channels of the tokens.
        heads: Number of heads.
        dropout: Share of attention weights dropped in training.
        causal: Output i depends on inputs up to i only.
        inner: Channels over all heads; ``width`` if omitted.
        out_width: Channels of the output; ``width`` if omitted.
        memory_width: Channels of the memory; ``width`` if omitted.
    """

    supports_cross = True

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        dropout: float = 0.0,
        causal: bool = False,
        inner: int | None = None,
        out_width: int | None = None,
        memory_width: int | None = None,
    ) -> None:
        super().__init__(width, heads=heads, causal=causal, inner=inner, out_width=out_width, memory_width=memory_width)
        self.dropout = dropout
        self.supports_state = causal

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: KeyValueState | None = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens, see :meth:`Mixer.forward`."""
        self.check_inputs(x, memory, mask, state)
        queries, keys, values = self.project(x, memory)
        if state is not None:
            keys, values = torch.cat([state.keys, keys], dim=1), torch.cat([state.values, values], dim=1)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(queries, keys, values, bias=_visible(mask), causal=self.causal, dropout=dropout)
        state = KeyValueState(keys, values) if self.causal and memory is None else None
        return self.out(merge_heads(mixed)), state

    @torch.no_grad()
    def weights(self, x: Tensor, *, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The attention map for pictures, by the reference formula and without dropout.

        Args:
            x: Tokens, [B, L, C].
            memory: Tokens to read from, [B, S, C].
            mask: True for valid key tokens.

        Returns:
            [B, H, L, S], rows sum to one.
        """
        self.check_inputs(x, memory, mask)
        queries, keys, _ = self.project(x, memory)
        return attention_weights(queries, keys, bias=_visible(mask), causal=self.causal)


def _visible(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None, None, :]  # B, 1, 1, keys
