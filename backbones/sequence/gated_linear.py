"""Mixer with gated linear attention: a state that forgets per channel, streaming or read in both directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.gated_linear import gated_linear_attention
from backbones.sequence.base import Mixer, check_heads, merge_heads, split_heads
from graftwork.errors import ShapeError

# B batch, L tokens, C width, H heads, d key channels of a head (half of the e = C / H value channels), r rank.


class GatedLinearMixer(Mixer):
    """The token mixer of the GLA transformer: linear attention whose state decays by a learned gate per key channel.

    Queries and keys have half the channels of the values. The logits of the gates come from the token through a narrow
    layer of ``rank`` channels, and log gates are ``logsigmoid(logit) / temperature``, so that a fresh state lasts for
    some twenty tokens. What a head reads is normalised, and multiplied by a gate of its own before the output
    projection. It is causal and streams (step by step equals one pass) unless ``bidirectional``: then tokens have a
    second set of gates for the reading from the end, and the mean of both directions is taken. Hidden tokens of a
    ``mask`` add nothing to the state and do not decay it.

    Args:
        width: Channels of the tokens.
        heads: Number of heads; divides ``width``.
        rank: Channels that the logits of the gates are made from.
        temperature: Divides the log gates; larger ones remember longer.
        bidirectional: Read from both ends.
        causal: Accepted for the common interface; the mixer is causal unless ``bidirectional``.

    Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", section 4.4.
    Differs: the norm of a head is a root-mean-square one, as in the authors' code; both directions with shared queries,
    keys and values: Liao et al. 2024 (ViG), section 3.2.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        rank: int = 16,
        temperature: float = 16.0,
        bidirectional: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__(width, causal=not bidirectional)
        check_heads(width, heads)
        self.supports_state = not bidirectional
        self.heads = heads
        self.temperature = temperature
        self.bidirectional = bidirectional
        inner = heads * max(1, width // heads // 2)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, inner * (1 + bidirectional)))
        self.norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.out_gate = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens, see :meth:`Mixer.forward`; the state is [B, H, d, e], float32."""
        self.check_inputs(x, memory, mask, state)
        if mask is not None and mask.shape[1] != x.shape[1]:
            raise ShapeError(f"mask of GatedLinearMixer: expected {list(x.shape[:2])}, got {list(mask.shape)}")
        queries, keys, values = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        log_gates = self._log_gates(x)
        if mask is not None:
            seen = mask[:, :, None, None]
            keys, log_gates = keys * seen, [gate * seen for gate in log_gates]
        ahead, *back = log_gates
        mixed, after = gated_linear_attention(
            queries, keys, values, ahead, backward_gate=back[0] if back else None, state=state
        )
        return self.out(merge_heads(self.norm(mixed)) * F.silu(self.out_gate(x))), after

    def _log_gates(self, x: Tensor) -> list[Tensor]:
        """Log gates of each direction, [B, L, H, d]; never in half precision, where long memories would be cut."""
        logits: Tensor = self.gate(x)
        gates = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / self.temperature
        return [split_heads(part, self.heads) for part in gates.chunk(1 + self.bidirectional, dim=-1)]
