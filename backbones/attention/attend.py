"""Softmax attention: ``softmax(scale * q k^T + bias) v`` by the fastest backend that can.

Shape legend: B batch, Lq query tokens, Lk key tokens, H heads, d channels of a head, e channels of a head of values.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from backbones.attention.backends import math, sdpa, xformers  # noqa: F401  loaded before any graph is compiled
from backbones.attention.dispatch import Request, backend_module, choose
from graftwork.errors import ConfigError, ShapeError


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    lengths: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Let every query read a weighted mean of the values.

    A query that sees no key gives zeros, with gradients of zero, in every backend.

    Args:
        q: Queries, [B, Lq, H, d].
        k: Keys, [B, Lk, H, d].
        v: Values, [B, Lk, H, e].
        bias: Added to the scaled logits, broadcastable to [B, H, Lq, Lk]; -inf hides a key, and a boolean bias is
            True where the query sees the key. May need a gradient.
        causal: The last query sees all keys and each query before it one key less (aligned at the bottom right, as
            streaming with cached keys needs it); for Lq = Lk the usual triangle.
        lengths: Valid keys per sample, [B] integers; keys at and after it are ignored, whatever finite value they hold.
        scale: Factor on the logits; d ** -0.5 if omitted.
        dropout: Share of the weights dropped. The caller passes 0 outside training.
        backend: ``auto``, ``xformers``, ``sdpa`` or ``math``, see :mod:`backbones.attention.dispatch`.

    Returns:
        [B, Lq, H, e] in the type of the values; under autocast in its type.

    Raises:
        ShapeError: Tensors that do not fit each other; the message names both shapes.
        ConfigError: Unknown backend, or one wanted that cannot serve this call.
    """
    _check(q, k, v, bias, lengths, dropout)
    q, k, v = autocast_types(q, k, v)
    bias = None if bias is None else torch.atleast_2d(bias)
    request = Request(
        device=q.device,
        dtype=q.dtype,
        batch=q.shape[0],
        queries=q.shape[1],
        keys=k.shape[1],
        heads=q.shape[2],
        width=q.shape[3],
        value_width=v.shape[3],
        bias="none" if bias is None else "bool" if bias.dtype == torch.bool else "float",
        bias_grad=bias is not None and bias.requires_grad and torch.is_grad_enabled(),
        causal=causal,
        lengths=lengths is not None,
        dropout=dropout,
        needs_grad=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
    )
    name = choose("attend", request, backend)
    if 0 in q.shape or 0 in v.shape:
        name = "math"  # foreign kernels disagree about empty tensors; the reference costs nothing there
    mixed: Tensor = backend_module(name).run(
        q, k, v, bias=bias, causal=causal, lengths=lengths, scale=scale, dropout=dropout
    )
    return mixed


def autocast_types(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast would, so that backends it does not know get the same types as those it does."""
    device = tensors[0].device.type
    if tensors[0].is_meta or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Outside of autocast on the device of a tensor; the meta device knows none."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def check_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check queries, keys and values against each other.

    Raises:
        ShapeError: Not [batch, tokens, heads, channels], or two that do not fit; the message names both shapes.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ShapeError(f"{name}: expected [batch, tokens, heads, channels], got {list(tensor.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[2:] != q.shape[2:]:
        expected = [q.shape[0], "tokens", *q.shape[2:]]
        raise ShapeError(f"k: expected {expected} to fit q {list(q.shape)}, got {list(k.shape)}".replace("'", ""))
    if v.shape[:3] != k.shape[:3]:
        expected = [*k.shape[:3], "channels"]
        raise ShapeError(f"v: expected {expected} to fit k {list(k.shape)}, got {list(v.shape)}".replace("'", ""))


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Tensor | None, dropout: float) -> None:
    check_tokens(q, k, v)
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if bias is not None:
        trailing = full[4 - bias.dim() :] if bias.dim() <= 4 else ()
        if bias.dim() > 4 or any(size != 1 and size != goal for size, goal in zip(bias.shape, trailing, strict=True)):
            raise ShapeError(f"bias: expected a shape broadcastable to {list(full)}, got {list(bias.shape)}")
    if lengths is not None and (lengths.shape != q.shape[:1] or lengths.is_floating_point()):
        raise ShapeError(f"lengths: expected integers [{q.shape[0]}], got {lengths.dtype} {list(lengths.shape)}")
    if not 0 <= dropout <= 1:
        raise ConfigError(f"dropout={dropout} must be between 0 and 1")
