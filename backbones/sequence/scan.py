"""Mixer with attention as a recurrence (Aaren): streams with a constant state, or reads in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backbones.attention.scan import ScanState, scan_attention
from backbones.sequence.base import ProjectedMixer, merge_heads, split_heads


class ScanMixer(ProjectedMixer):
    """Attention to all earlier tokens with one learned query in place of a query per token.

    It is causal and streams (step by step equals one pass) unless ``bidirectional``: then a second scan ``reverse``
    reads the tokens backwards and the outputs are added, y = f(x) + flip(r(flip(x))), as in S-Mamba. Tokens without
    an order, such as the variates of a series, need that: one scan shows the first token nothing but itself.

    Source: Feng et al. 2024, "Attention as an RNN". The query projection of the learned token is kept, so a layer has
    ``width`` parameters more than multi-head attention; the reverse scan is not in the paper.

    Args:
        width: Channels of the tokens.
        heads: Number of heads.
        dropout: Dropout after the output projection.
        bidirectional: Add the reverse scan.
    """

    def __init__(self, width: int, *, heads: int = 8, dropout: float = 0.0, bidirectional: bool = False) -> None:
        super().__init__(width, heads=heads, causal=not bidirectional)
        self.supports_state = not bidirectional
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.reverse = ScanMixer(width, heads=heads, dropout=dropout) if bidirectional else None

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
        if self.reverse is not None:
            backwards, _ = self.reverse._scan(x.flip(1), None if mask is None else mask.flip(1), None)
            return self._scan(x, mask, None)[0] + backwards.flip(1), None
        return self._scan(x, mask, state)

    def _scan(self, x: Tensor, mask: Tensor | None, state: ScanState | None) -> tuple[Tensor, ScanState]:
        """One direction: [B, L, C] to [B, L, C] and the state after it."""
        query = split_heads(self.query(self.token), self.heads)  # H, d
        keys, values = split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)
        logits = (keys * query).sum(-1) * query.shape[-1] ** -0.5  # B, L, H
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], float("-inf"))
        mixed, after = scan_attention(logits, values, state=state)
        return self.dropout(self.out(merge_heads(mixed))), after
