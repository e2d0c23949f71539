"""Memory-efficient attention of xformers: CUDA only, imported on the first call that could use it.

Source: xformers 0.0.35, ``xformers.ops.memory_efficient_attention``; layout [B, L, H, d] like ours. Which of its
kernels serves is its own choice: flash attention knows no tensor bias and wants one width for keys and values, the
CUTLASS kernel knows both and ends with Hopper GPUs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.backends.mask import HIDDEN, blind, one_mask
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
    """Serves float32, float16 and bfloat16 on CUDA, where one of its kernels accepts the call."""
    if request.device.type != "cuda":
        return f"needs a CUDA device, the tensors are on {request.device.type}"
    if request.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {request.dtype}"
    ops, reason = _import()
    if reason or torch.compiler.is_compiling():
        return reason or None
    # Numbers of samples and tokens are no reason for any kernel; without them one answer serves many calls.
    return _refusal(ops, replace(request, batch=1, queries=ALIGNMENT, keys=ALIGNMENT), _deterministic())


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


@lru_cache(maxsize=256)
def _refusal(ops: Any, request: Request, deterministic: bool) -> str | None:
    """Why no kernel serves a call, by their own account; ``deterministic`` only tells cached answers apart."""
    fmha = ops.fmha
    width, value_width = _kernel_widths(request.width, request.value_width, request.dtype)
    # Views of a single number have the shapes that the kernels ask for, and strides that suit them.
    number = torch.empty((), device=request.device, dtype=request.dtype)
    tokens = [number.expand(1, ALIGNMENT, request.heads, size) for size in (width, width, value_width)]
    mask: Any = None
    if request.packed:
        mask = _blocks(ops, [ALIGNMENT], [ALIGNMENT], request.causal, request.device)
    elif not request.mask_free:
        mask = number.expand(1, request.heads, ALIGNMENT, ALIGNMENT).detach().requires_grad_(request.bias_grad)
    elif request.causal:
        mask = fmha.attn_bias.LowerTriangularFromBottomRightMask()
    inputs = fmha.Inputs(*tokens, attn_bias=mask, p=request.dropout, scale=1.0)
    kinds = [fmha.ALL_FW_OPS] + [fmha.ALL_BW_OPS] * (request.needs_grad or request.bias_grad)
    for kernels in kinds:
        refusals = {kernel.NAME: kernel.not_supported_reasons(inputs) for kernel in kernels}
        if all(refusals.values()):
            return "no kernel serves it: " + "; ".join(f"{name}: {reasons[0]}" for name, reasons in refusals.items())
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
    empty = None
    mask: Any = None
    if causal and bias is None and lengths is None and queries.shape[1] <= keys.shape[1]:
        mask = _import()[0].fmha.attn_bias.LowerTriangularFromBottomRightMask()
    elif causal or bias is not None or lengths is not None:
        mask, empty = additive_mask(queries, keys, bias, causal, lengths)
    mixed = _call(queries, keys, values, mask, scale, dropout)
    return mixed if empty is None else mixed.masked_fill(empty.transpose(1, 2), 0.0)


def run_packed(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention inside each of several sequences that lie one after the other.

    Args:
        queries: [Tq, H, d].
        keys: [Tk, H, d].
        values: [Tk, H, e].
        q_lengths: Query tokens of each sequence, at least 1.
        k_lengths: Key tokens of each sequence, at least 1, and with ``causal`` at least the query tokens.
        causal: The last query of a sequence sees all its keys, each one before it one key less.
        scale: Factor on the logits; d ** -0.5 if omitted.
        dropout: Share of the weights dropped.

    Returns:
        [Tq, H, e].
    """
    mask = _blocks(_import()[0], q_lengths, k_lengths, causal, queries.device)
    return _call(queries[None], keys[None], values[None], mask, scale, dropout)[0]


def _blocks(ops: Any, q_lengths: Sequence[int], k_lengths: Sequence[int], causal: bool, device: torch.device) -> Any:
    mask = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(q_lengths), list(k_lengths), device=device)
    return mask.make_causal_from_bottomright() if causal else mask


def _call(queries: Tensor, keys: Tensor, values: Tensor, mask: Any, scale: float | None, dropout: float) -> Tensor:
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    channels = values.shape[-1]
    queries, keys, values = pad_channels(queries, keys, values)
    attention = _import()[0].memory_efficient_attention
    mixed: Tensor = attention(queries, keys, values, attn_bias=mask, p=dropout, scale=scale)
    return mixed[..., :channels]


def pad_channels(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros behind the channels, as many as the kernels want; products do not change, and the result is to be cut."""
    width, value_width = _kernel_widths(queries.shape[-1], values.shape[-1], queries.dtype)
    wider = (width - queries.shape[-1], value_width - values.shape[-1])
    return F.pad(queries, (0, wider[0])), F.pad(keys, (0, wider[0])), F.pad(values, (0, wider[1]))


def _kernel_widths(width: int, value_width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Channels of queries and values that the kernels take: aligned, and for flash attention (half types) one."""
    width, value_width = (size + -size % ALIGNMENT for size in (width, value_width))
    if dtype.itemsize == 2:
        width = value_width = max(width, value_width)
    return width, value_width


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
    mask = one_mask(queries, keys, bias=bias, causal=causal, lengths=lengths, dtype=queries.dtype)
    mask = queries.new_zeros(1, 1) if mask is None else mask
    empty = blind(mask)
    if mask.dtype == torch.bool:
        mask = queries.new_zeros(()).masked_fill(~mask, HIDDEN)
    mask = mask.masked_fill(empty, 0.0).expand(batch, heads, q_tokens, k_tokens)
    return F.pad(mask, (0, -k_tokens % ALIGNMENT))[..., :k_tokens], empty.expand(batch, heads, q_tokens, 1)
