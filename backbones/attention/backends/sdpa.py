"""Torch's fused scaled dot product attention: memory linear in the tokens where its kernels allow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.backends.mask import one_mask, opened
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
        mask = one_mask(queries, keys, bias=bias, causal=causal, lengths=lengths, dtype=queries.dtype)
    if mask is not None and not torch.is_grad_enabled():
        mask = mask.detach()  # a mask that wants a gradient keeps the CPU's fused kernel away, wanted or not
    if queries.device.type != "cpu":  # a CPU's kernels give zeros to a query that sees no key; others disagree
        mask, empty = opened(mask)
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
