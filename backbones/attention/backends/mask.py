"""Which keys a query sees, in one place for all backends.

Shape legend: B batch, H heads, Lq queries, Lk keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.attention.dispatch import eager

HIDDEN = float("-inf")


def one_mask(
    queries: Tensor, keys: Tensor, *, bias: Tensor | None, causal: bool, lengths: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """Everything that hides or biases keys in one tensor.

    Args:
        queries: [B, Lq, H, d].
        keys: [B, Lk, H, d].
        bias: Boolean (True is visible) or additive.
        causal: The last query sees all keys, each query before it one key less.
        lengths: Valid keys per sample, [B].
        dtype: Type of the logits, and of an additive result.

    Returns:
        Boolean (True is visible) or additive (-inf hides), broadcastable to [B, H, Lq, Lk] and no larger than its parts
        need; None if every query sees every key.
    """
    visible = visibility(queries, keys, bias=bias, causal=causal, lengths=lengths)
    additive = float_bias(bias, dtype)
    if additive is None or visible is None:
        return visible if additive is None else additive
    return additive.masked_fill(~visible, HIDDEN)


def opened(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A mask under which every softmax is defined: a query that sees no key is let see all of them.

    Args:
        mask: As from :func:`one_mask`.

    Returns:
        The mask so changed, and the queries whose result must be zeroed, [.., Lq, 1]. None for the latter where it is
        known that there are none; None and None for no mask.
    """
    if mask is None:
        return None, None
    empty = blind(mask)
    if _readable(empty) and not empty.any():  # saves passes over the mask, the result and its gradient
        return mask, None
    return (mask | empty if mask.dtype == torch.bool else mask.masked_fill(empty, 0.0)), empty


def _readable(x: Tensor) -> bool:
    """The numbers may be looked at, and for nothing: a real tensor on a CPU, that nobody traces or batches."""
    return x.device.type == "cpu" and type(x) is Tensor and eager()


def visibility(
    queries: Tensor, keys: Tensor, *, bias: Tensor | None, causal: bool, lengths: Tensor | None
) -> Tensor | None:
    """Combine a boolean bias, causality and lengths.

    Args:
        queries: [B, Lq, H, d].
        keys: [B, Lk, H, d].
        bias: Only a boolean one (True is visible) counts here.
        causal: The last query sees all keys, each query before it one key less.
        lengths: Valid keys per sample, [B].

    Returns:
        True where the query sees the key, broadcastable to [B, H, Lq, Lk]; None if every query sees every key.
    """
    parts = [bias] if bias is not None and bias.dtype == torch.bool else []
    q_tokens, k_tokens, device = queries.shape[1], keys.shape[1], queries.device
    if causal:
        full = torch.ones(q_tokens, k_tokens, dtype=torch.bool, device=device)
        parts.append(full.tril(k_tokens - q_tokens))
    if lengths is not None:
        valid = torch.arange(k_tokens, device=device) < lengths.to(device)[:, None]
        parts.append(valid[:, None, None, :])  # B, 1, 1, Lk
    if not parts:
        return None
    visible = parts[0]
    for part in parts[1:]:
        visible = visible & part
    return visible


def float_bias(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias in the type of the logits, None for none or a boolean one.

    Finite values stay finite: a -1e9 that means "hardly ever" must not turn into "never" in float16.
    """
    if bias is None or bias.dtype == torch.bool or bias.dtype == dtype:
        return bias if bias is not None and bias.dtype != torch.bool else None
    lowest = torch.finfo(dtype).min
    if lowest <= torch.finfo(bias.dtype).min:
        return bias.to(dtype)
    return torch.where(bias == HIDDEN, bias, bias.clamp(min=lowest)).to(dtype)


def blind(mask: Tensor) -> Tensor:
    """Queries that see no key, [.., Lq, 1], from a boolean or additive mask [.., Lq, Lk]."""
    if mask.shape[-1] == 0:
        return torch.ones(*mask.shape[:-1], 1, dtype=torch.bool, device=mask.device)
    # The largest entry of a row tells it, on a CPU in a tenth of the time that comparing every entry takes.
    if mask.dtype == torch.bool:
        return mask.to(torch.uint8).amax(-1, keepdim=True) == 0
    return mask.detach().amax(-1, keepdim=True) == HIDDEN
