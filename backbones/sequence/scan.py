"""Mixer with attention as a recurrence (Aaren): streams with a constant state, trains in parallel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backbones.attention.scan import ScanState, scan_attention
from backbones.sequence.base import ProjectedMixer, merge_heads, split_heads


class ScanMixer(ProjectedMixer):
    """Causal attention with one learned query in place of a query per token.

    Source: Feng et al. 2024, "Attention as an RNN". The query projection of the learned token is kept, so a layer has
    ``width`` parameters more than multi-head attention.

    Args:
        width: Channels of the tokens.
        heads: Number of heads.
        dropout: Dropout after the output projection.
    """

    supports_state = True

    def __init__(self, width: int, *, heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__(width, heads=heads, causal=True)
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: ScanState | None = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens, see :meth:`Mixer.forward`; outputs before the first valid token are the output bias."""
        self.check_inputs(x, memory, mask, state)
        query = split_heads(self.query(self.token), self.heads)  # H, d
        keys, values = split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)
        logits = (keys * query).sum(-1) * query.shape[-1] ** -0.5  # B, L, H
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], float("-inf"))
        mixed, state = scan_attention(logits, values, state=state)
        return self.dropout(self.out(merge_heads(mixed))), state
