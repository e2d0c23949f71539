"""The reference: softmax attention written out. Complete, and exact to float32 for half types.

Shape legend: B batch, H heads, Lq queries, Lk keys, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.backends.mask import HIDDEN, one_mask, opened
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
    weights, empty = _weights(queries, keys, bias, causal, lengths, scale)
    return weights if empty is None else weights.masked_fill(empty, 0.0)


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
    if not queries.is_meta and torch.is_autocast_enabled(queries.device.type):
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
    weights, empty = _weights(queries, keys, bias, causal, lengths, scale)
    if dropout:
        weights = F.dropout(weights, dropout)
    mixed = weights @ values.to(weights.dtype).transpose(1, 2)  # B, H, Lq, d
    if empty is not None:
        mixed = mixed.masked_fill(empty, 0.0)
    return mixed.transpose(1, 2).to(values.dtype)


def _weights(
    queries: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, lengths: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """The attention map in which a query that sees no key sees all, and those queries, to be zeroed afterwards.

    A row of -inf has no softmax, so it is opened in the mask, which is smaller than the logits where it is broadcast.
    """
    precise = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = queries.to(precise), keys.to(precise)
    mask, empty = opened(one_mask(queries, keys, bias=bias, causal=causal, lengths=lengths, dtype=precise))
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    logits = (queries * scale).transpose(1, 2) @ keys.permute(0, 2, 3, 1)  # B, H, Lq, Lk
    if mask is not None:
        logits = logits.masked_fill(~mask, HIDDEN) if mask.dtype == torch.bool else logits + mask
    return torch.softmax(logits, dim=-1), empty
