"""The reference: softmax attention written out. Complete, and exact to float32 for half types.

Shape legend: B batch, H heads, Lq queries, Lk keys, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.backends.mask import HIDDEN, blind, float_bias, visibility
from backbones.attention.dispatch import Request


def why_not(request: Request) -> str | None:
    """Serves everything."""
    return None


def attention_weights(
    queries: Tensor,
    keys: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The attention map itself, arguments as in :func:`backbones.attention.attend.attend`.

    Returns:
        [B, H, Lq, Lk], at least float32; rows sum to one, or to zero where a query sees no key.
    """
    precise = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = queries.to(precise).transpose(1, 2), keys.to(precise).transpose(1, 2)  # B, H, L, d
    logits = (queries * (queries.shape[-1] ** -0.5 if scale is None else scale)) @ keys.transpose(-2, -1)
    visible = visibility(queries.transpose(1, 2), keys.transpose(1, 2), bias=bias, causal=causal, lengths=lengths)
    additive = float_bias(bias, precise)
    if additive is not None:
        logits = logits + additive
    if visible is not None:
        logits = logits.masked_fill(~visible, HIDDEN)
    if visible is None and additive is None:
        return torch.softmax(logits, dim=-1)
    # A row of -inf has no softmax; it is taken out before and zeroed after, so that its gradients are zeros too.
    empty = blind(logits)
    return torch.softmax(logits.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)


def run(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    lengths: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Serve a call, see :func:`backbones.attention.attend.attend`."""
    if torch.is_autocast_enabled(queries.device.type):
        with torch.autocast(queries.device.type, enabled=False):
            return _run(queries, keys, values, bias, causal, lengths, scale, dropout)
    return _run(queries, keys, values, bias, causal, lengths, scale, dropout)


def _run(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    causal: bool,
    lengths: Tensor | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    weights = attention_weights(queries, keys, bias=bias, causal=causal, lengths=lengths, scale=scale)
    if dropout:
        weights = F.dropout(weights, dropout)
    mixed = weights @ values.to(weights.dtype).transpose(1, 2)  # B, H, Lq, d
    return mixed.transpose(1, 2).to(values.dtype)
