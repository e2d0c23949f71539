"""Mixer with flow-attention: linear in the number of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from backbones.attention.flow import FlowState, causal_flow, flow_attention
from backbones.sequence.base import ProjectedMixer, merge_heads
from graftwork.errors import ShapeError


class FlowMixer(ProjectedMixer):
    """Flow-attention between projections, as in Flowformer.

    The causal form streams with a state of constant size. It reads ``memory`` only where that has as many tokens as
    the input, token i of one beside token i of the other, so it does not count as ``supports_cross``.

    Args:
        width: Channels of the tokens.
        heads: Number of heads.
        clamp: Bound on the competition logits, None for none: 1 in the paper's core, 5 for language, 10 for offline
            reinforcement learning, none for time series.
        dropout: Dropout after the output projection.
        causal: Output i depends on inputs up to i only. Padding belongs at the end, or in the mask.
        eps: Added to both factors of each inner product of flows.
        inner: Channels over all heads; ``width`` if omitted.
        out_width: Channels of the output; ``width`` if omitted.
        memory_width: Channels of the memory; ``width`` if omitted.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        clamp: float | None = None,
        dropout: float = 0.0,
        causal: bool = False,
        eps: float = 1e-6,
        inner: int | None = None,
        out_width: int | None = None,
        memory_width: int | None = None,
    ) -> None:
        super().__init__(width, heads=heads, causal=causal, inner=inner, out_width=out_width, memory_width=memory_width)
        self.clamp = clamp
        self.eps = eps
        self.dropout = nn.Dropout(dropout)
        self.supports_cross = not causal
        self.supports_state = causal

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: FlowState | None = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens, see :meth:`Mixer.forward`."""
        self.check_inputs(x, None if self.causal else memory, mask, state)
        if self.causal and memory is not None and memory.shape[:2] != x.shape[:2]:
            raise ShapeError(f"memory of causal FlowMixer: expected {list(x.shape)}, got {list(memory.shape)}")
        queries, keys, values = self.project(x, memory)
        if self.causal:
            mixed, state = causal_flow(queries, keys, values, clamp=self.clamp, eps=self.eps, mask=mask, state=state)
        else:
            query_mask = mask if memory is None else None
            mixed = flow_attention(
                queries, keys, values, clamp=self.clamp, eps=self.eps, key_mask=mask, query_mask=query_mask
            )
        return self.dropout(self.out(merge_heads(mixed))), state
