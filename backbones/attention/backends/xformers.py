"""Memory-efficient attention of xformers: CUDA only, imported on the first call that could use it.

Source: xformers 0.0.35, ``xformers.ops.memory_efficient_attention``; layout [B, L, H, d] like ours.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.backends.mask import HIDDEN, blind, float_bias, visibility
from backbones.attention.dispatch import Request

ALIGNMENT = 8  # its kernels want the last sizes in multiples of 16 bytes


@cache
def _import() -> tuple[Any, str]:
    """The library and why it cannot be imported, one of them empty."""
    try:
        return importlib.import_module("xformers.ops"), ""
    except Exception as error:  # a wheel for another torch fails in many ways; each one is a reason
        return None, f"cannot be imported: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def why_not(request: Request) -> str | None:
    """Serves float32, float16 and bfloat16 on CUDA."""
    if request.device.type != "cuda":
        return f"needs a CUDA device, the tensors are on {request.device.type}"
    if request.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {request.dtype}"
    return _import()[1] or None


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
    ops = _import()[0]
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    channels = values.shape[-1]
    empty = None
    mask: Any = None
    if causal and bias is None and lengths is None and queries.shape[1] <= keys.shape[1]:
        mask = ops.fmha.attn_bias.LowerTriangularFromBottomRightMask()
    elif causal or bias is not None or lengths is not None:
        mask, empty = additive_mask(queries, keys, bias, causal, lengths)
    queries, keys, values = (pad_channels(tensor) for tensor in (queries, keys, values))
    mixed: Tensor = ops.memory_efficient_attention(queries, keys, values, attn_bias=mask, p=dropout, scale=scale)
    mixed = mixed[..., :channels]
    return mixed if empty is None else mixed.masked_fill(empty.transpose(1, 2), 0.0)


def pad_channels(tokens: Tensor) -> Tensor:
    """Zeros behind the channels up to a multiple of the alignment; products do not change."""
    missing = -tokens.shape[-1] % ALIGNMENT
    return F.pad(tokens, (0, missing)) if missing else tokens


def additive_mask(
    queries: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Everything that hides or biases keys as one tensor, and the queries that see none.

    Returns:
        [B, H, Lq, Lk] in the queries' type, a slice of an allocation whose rows are aligned (no broadcasting: the
        gradient of a bias needs the full shape), and the empty rows [B, H, Lq, 1].
    """
    batch, q_tokens, heads, _ = queries.shape
    k_tokens = keys.shape[1]
    visible = visibility(queries, keys, bias=bias, causal=causal, lengths=lengths)
    additive = float_bias(bias, queries.dtype)
    if additive is None:
        additive = queries.new_zeros(())
    if visible is not None:
        additive = additive.masked_fill(~visible, HIDDEN)
    additive = additive.expand(batch, heads, q_tokens, k_tokens)
    empty = blind(additive)
    additive = F.pad(additive.masked_fill(empty, 0.0), (0, -k_tokens % ALIGNMENT))
    return additive[..., :k_tokens], empty
