"""Auto-correlation of Autoformer (Wu et al. 2021): average the series shifted by its strongest periods.

    corr[tau] = mean over heads and channels of irfft(rfft(q) * conj(rfft(k)))     one value per delay
    out[t]    = sum over the strongest delays of softmax(corr)[tau] * v[(t + tau) mod L]

Two forms: ``math`` is literal (one inverse transform per channel, rolled copies gathered from doubled values);
``fast`` sums the cross-spectrum over channels before a single inverse transform (irfft is linear), and adds up the
shifted series row by row, forward and backward: the gradient of a correlation value is again a shifted series, so the
backward pass needs no Fourier transform.

Surprises: the inverse transform has length 2 * (F - 1), so an odd L gives L - 1 delays from a spectrum read on a
slightly different grid; training picks the delays from the correlation averaged over the *batch* (weights stay per
sample), so training and evaluation outputs differ; keys longer than the queries are truncated, shorter ones padded
with zeros; there is no causal form, no mask and no scale.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backbones.attention.dispatch import resolve_form
from graftwork.errors import ConfigError, ShapeError

# B batch, L tokens, H heads, d channels of a head, C = H * d, T delays (2 * (F - 1)), k kept delays.


def auto_correlation(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    factor: float = 1,
    shared_delays: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Average the values over the delays at which queries and keys correlate most.

    Args:
        q: Queries, [batch, tokens, heads, channels].
        k: Keys, [batch, any number of tokens, heads, channels]; cut or zero-padded to the queries' length.
        v: Values, shaped like ``k``.
        factor: Delays kept per natural logarithm of the number of tokens, rounded down after multiplying, at least 1.
        shared_delays: One set of delays for the whole batch, chosen by the batch's mean correlation (the training
            form); otherwise each sample has its own.
        backend: ``"auto"``, or ``"math"`` for the literal form.

    Returns:
        [batch, tokens, heads, channels] in the dtype of ``v``; computed in float32 at least, also under autocast.

    Raises:
        ShapeError: Shapes do not fit each other.
        ConfigError: ``factor`` is not positive.

    Source: Wu et al. 2021, section 3.2; the two choices of delays are those of the authors' code.
    """
    _check(q, k, v, factor)
    form = resolve_form("auto_correlation", backend)
    length = q.shape[1]
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        queries, keys, values = q.to(dtype), _fit_length(k, length).to(dtype), _fit_length(v, length).to(dtype)
        if form == "math" or torch.compiler.is_compiling():
            out = _literal(queries, keys, values, factor, shared_delays)
        else:
            out = _fast(queries.flatten(2), keys.flatten(2), values.flatten(2), factor, shared_delays).view(q.shape)
    return out.to(v.dtype)


def kept_delays(length: int, factor: float) -> int:
    """Number of delays averaged over: floor(factor * ln length), within 1 and the number of delays there are."""
    return max(1, min(delay_count(length), math.floor(factor * math.log(length))))


def delay_count(length: int) -> int:
    """Delays in the correlation of ``length`` tokens: ``length``, or one less where it is odd (and above 1)."""
    return max(1, length // 2 * 2)


def _check(q: Tensor, k: Tensor, v: Tensor, factor: float) -> None:
    if factor <= 0:
        raise ConfigError(f"auto_correlation: factor={factor} must be positive")
    if q.dim() != 4 or k.dim() != 4 or 0 in q.shape or 0 in k.shape:
        found = f"q {list(q.shape)}, k {list(k.shape)}"
        raise ShapeError(f"auto_correlation: expected [B, L, H, d], none of them 0, got {found}")
    if k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        found = f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}"
        raise ShapeError(f"auto_correlation: {found} do not fit")


def _fit_length(x: Tensor, length: int) -> Tensor:
    """Cut or zero-pad [B, S, H, d] in time."""
    missing = length - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, :length]


def _strongest(corr: Tensor, count: int, shared: bool) -> Tensor:
    """The ``count`` delays of the highest correlation [B, T]: int64 [B, count], all rows alike if ``shared``."""
    if shared:
        return corr.mean(0).topk(count).indices.expand(corr.shape[0], -1)
    return corr.topk(count, dim=1).indices


def _literal(q: Tensor, k: Tensor, v: Tensor, factor: float, shared: bool) -> Tensor:
    """The authors' steps one by one, time last."""
    q, k, v = (tensor.permute(0, 2, 3, 1) for tensor in (q, k, v))  # B, H, d, L
    batch, heads, channels, length = v.shape
    spectrum = torch.fft.rfft(q, dim=-1) * torch.fft.rfft(k, dim=-1).conj()
    corr = torch.fft.irfft(spectrum, n=delay_count(length), dim=-1).mean((1, 2))  # B, T
    delays = _strongest(corr, kept_delays(length, factor), shared)  # B, k
    weights = torch.softmax(corr.gather(1, delays), dim=1)
    doubled = torch.cat([v, v], dim=-1)
    steps = torch.arange(length, device=v.device).expand(batch, heads, channels, -1)
    out = torch.zeros_like(v)
    for delay, weight in zip(delays.unbind(1), weights.unbind(1), strict=True):
        rolled = doubled.gather(-1, steps + delay[:, None, None, None])
        out = out + rolled * weight[:, None, None, None]
    return out.permute(0, 3, 1, 2)


def _fast(q: Tensor, k: Tensor, v: Tensor, factor: float, shared: bool) -> Tensor:
    """The same on [B, L, C]; only the kept correlation values take part in the gradient."""
    even = q.shape[1] % 2 == 0
    with torch.set_grad_enabled(torch.is_grad_enabled() and not even):
        corr = _mean_correlation(q, k)
    delays = _strongest(corr.detach(), kept_delays(q.shape[1], factor), shared)
    strengths = corr.gather(1, delays)
    if even:  # on an even grid a correlation value is the mean product of queries and shifted keys
        strengths = _CorrelationAt.apply(q, k, strengths, delays)
    summed: Tensor = _DelayedSum.apply(v, delays, torch.softmax(strengths, dim=1))
    return summed


def _mean_correlation(q: Tensor, k: Tensor) -> Tensor:
    """Correlation averaged over the channels, [B, L, C] x [B, L, C] -> [B, T]."""
    spectrum = torch.linalg.vecdot(torch.fft.rfft(k, dim=1), torch.fft.rfft(q, dim=1), dim=-1)  # conjugates the first
    return torch.fft.irfft(spectrum, n=delay_count(q.shape[1]), dim=1) / q.shape[2]


def _rows_at(delays: Tensor, length: int) -> Tensor:
    """Row numbers of (t + delay) mod L in [B * L, ..], int64 [B * L, k]."""
    steps = torch.arange(length, device=delays.device)[None, :, None]
    first = length * torch.arange(delays.shape[0], device=delays.device)[:, None, None]
    return ((steps + delays[:, None, :]).remainder(length) + first).flatten(0, 1)


def _shifted_sum(x: Tensor, delays: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights[b, i] * x[b, (t + delays[b, i]) mod L] for [B, L, C]; reads whole rows, makes no copies of x."""
    batch, length, channels = x.shape
    per_row = weights[:, None, :].expand(-1, length, -1).flatten(0, 1)
    rows = x.reshape(batch * length, channels)
    summed = F.embedding_bag(_rows_at(delays, length), rows, mode="sum", per_sample_weights=per_row)
    return summed.view(batch, length, channels)


class _CorrelationAt(torch.autograd.Function):
    """mean over t and c of q[t + delay] * k[t], times L; the value is passed in, as the transform has it already."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, strengths: Tensor, delays: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, delays)
        return strengths.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, delays = ctx.saved_tensors
        grad = grad / q.shape[2]
        return _shifted_sum(k, -delays, grad), _shifted_sum(q, delays, grad), None, None


class _DelayedSum(torch.autograd.Function):
    """:func:`_shifted_sum` with a backward pass that shifts back instead of scattering."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, delays: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(v, delays, weights)
        return _shifted_sum(v, delays, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, delays, weights = ctx.saved_tensors
        with torch.enable_grad():  # embedding_bag's own gradient of its weights: row products, without copies
            leaf = weights.detach().requires_grad_()
            (grad_weights,) = torch.autograd.grad(_shifted_sum(v.detach(), delays, leaf), leaf, grad)
        return _shifted_sum(grad, -delays, weights), None, grad_weights
