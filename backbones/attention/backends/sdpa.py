"""Torch's fused scaled dot product attention: memory linear in the tokens where its kernels allow."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from backbones.attention.backends.mask import HIDDEN, blind, float_bias, visibility
from backbones.attention.dispatch import Request


def why_not(request: Request) -> str | None:
    """Serves floating tensors on real devices."""
    if request.device.type == "meta":
        return "no kernel on the meta device"
    if not request.dtype.is_floating_point:
        return f"no kernel for {request.dtype}"
    return None


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
    only_causal = causal and bias is None and lengths is None and queries.shape[1] == keys.shape[1]
    mask, empty = None, None
    if not only_causal:
        mask, empty = _mask(queries, keys, bias, causal, lengths)
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=only_causal,
        scale=scale,
    )
    if empty is not None:
        mixed = mixed.masked_fill(empty, 0.0)
    return mixed.transpose(1, 2)


def _mask(
    queries: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, lengths: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The one mask SDPA takes, and the rows to zero: its kernels disagree about queries that see no key."""
    visible = visibility(queries, keys, bias=bias, causal=causal, lengths=lengths)
    additive = float_bias(bias, queries.dtype)
    if additive is None:
        if visible is None:
            return None, None
        empty = blind(visible)
        return visible | empty, empty
    if visible is not None:
        additive = additive.masked_fill(~visible, HIDDEN)
    empty = blind(additive)
    return additive.masked_fill(empty, 0.0), empty
