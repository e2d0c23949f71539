"""ProbSparse attention of Informer (Zhou et al. 2021): full attention only for the queries that stand out.

Each query is scored against a few randomly drawn keys; the queries whose scores are the least uniform attend to all
keys, the others output the mean of the values (or, causal, their cumulative sum).

Two forms: ``math`` gathers the drawn keys [B, H, Lq, U, d], as the paper writes it; ``fast`` multiplies rows
in place and keeps no autograd graph of the scores, as the choice of queries has no gradient: memory O(Lq U).

Surprises: keys are drawn with replacement, the same ones for all samples and heads, in evaluation too (pass
``index_sample``, e.g. of :func:`sampled_keys`, or a seeded ``generator`` for repeatable results); the sum of the drawn
scores is divided by the number of all keys, not of the drawn ones; the causal default output is a cumulative *sum*, not
a mean; no attention dropout.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backbones.attention.dispatch import resolve_form
from graftwork.errors import ConfigError, ShapeError

# B batch, H heads, Lq queries, Lk keys, d channels of a head, U drawn keys per query, u kept queries.

BLOCK_ELEMENTS = 1 << 20
"""Queries' elements per block of samples on a CPU."""


def sample_size(length: int, factor: int) -> int:
    """Keys drawn from, or queries kept of, ``length``: factor * ceil(ln length), within 1 and ``length``."""
    return max(1, min(length, factor * math.ceil(math.log(length))))


def draw_keys(queries: int, keys: int, factor: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the keys each query is measured against.

    Args:
        queries: Number of queries, Lq.
        keys: Number of keys, Lk.
        factor: Keys drawn per natural logarithm of their number.
        generator: Source of randomness; torch's global one if omitted.

    Returns:
        Key indices drawn uniformly with replacement, int64 [Lq, U], on the generator's device.
    """
    device = generator.device if generator is not None else None
    return torch.randint(keys, (queries, sample_size(keys, factor)), generator=generator, device=device)


@lru_cache(maxsize=64)
def evaluation_keys(queries: int, keys: int, factor: int) -> NDArray[np.int64]:
    """The drawn keys of evaluation: the same at every call, so that a model gives the same result again.

    They come from numpy, because a torch generator cannot be exported.

    Args:
        queries: Number of queries, Lq.
        keys: Number of keys, Lk.
        factor: Keys drawn per natural logarithm of their number.

    Returns:
        [Lq, U], each in [0, Lk); shared by all callers, so not to be written to.
    """
    return np.random.default_rng(0).integers(keys, size=(queries, sample_size(keys, factor)))


training_keys = torch.compiler.disable(draw_keys)
"""The drawn keys of a training step, from torch's global generator; random numbers stay outside compiled graphs."""


def sampled_keys(queries: int, keys: int, factor: int, *, training: bool) -> Tensor:
    """The keys a layer measures its queries against: new ones in training, always the same in evaluation.

    Args:
        queries: Number of queries, Lq.
        keys: Number of keys, Lk.
        factor: Keys drawn per natural logarithm of their number.
        training: Whether the layer trains.

    Returns:
        Key indices, int64 [Lq, U].
    """
    if training:
        return training_keys(queries, keys, factor)
    return torch.from_numpy(evaluation_keys(queries, keys, factor))


def prob_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    factor: int = 5,
    causal: bool = False,
    index_sample: Tensor | None = None,
    generator: torch.Generator | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend with the queries that stand out; give the others the mean (causal: cumulative sum) of the values.

    Args:
        q: Queries, [batch, queries, heads, channels].
        k: Keys, [batch, keys, heads, channels].
        v: Values, [batch, keys, heads, channels].
        factor: Keys drawn and queries kept per natural logarithm of their number, rounded up before multiplying.
        causal: Query i reads keys up to i; needs as many keys as queries. The *choice* of queries looks at all keys.
        index_sample: Drawn keys, int64 [queries, any number]; drawn here if omitted, see :func:`draw_keys`.
        generator: Source of the drawing.
        scale: Factor on the scores of the kept queries; 1/sqrt(channels) if omitted.
        backend: ``"auto"``, or ``"math"`` for the literal form.

    Returns:
        [batch, queries, heads, channels].

    Raises:
        ShapeError: Shapes do not fit each other.
        ConfigError: ``factor`` is not positive.

    Source: Zhou et al. 2021, section 3.1, with the sampling of the authors' code, factor * ceil(ln Lk) keys per query.
    """
    _check(q, k, v, factor, causal, index_sample)
    form = resolve_form("prob_sparse_attention", backend)
    if index_sample is None:
        index_sample = draw_keys(q.shape[1], k.shape[1], factor, generator)
    index_sample = index_sample.to(q.device)
    kept = sample_size(q.shape[1], factor)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attend = _literal if form == "math" or torch.compiler.is_compiling() else _fast
    queries, keys, values = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # B, H, L, d
    return attend(queries, keys, values, index_sample, kept, causal, scale).transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, factor: int, causal: bool, index_sample: Tensor | None) -> None:
    name = "prob_sparse_attention"
    if factor < 1:
        raise ConfigError(f"{name}: factor={factor} must be at least 1")
    if q.dim() != 4 or k.dim() != 4 or 0 in q.shape or 0 in k.shape:
        raise ShapeError(f"{name}: expected [B, L, H, d], none of them 0, got q {list(q.shape)}, k {list(k.shape)}")
    if k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ShapeError(f"{name}: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit")
    if causal and q.shape[1] != k.shape[1]:
        raise ShapeError(f"{name}: causal needs as many keys as queries, got {k.shape[1]} and {q.shape[1]}")
    if index_sample is not None:
        fits = index_sample.dim() == 2 and index_sample.shape[0] == q.shape[1] and index_sample.shape[1] > 0
        if not fits or index_sample.dtype != torch.int64:
            found = f"{index_sample.dtype} {list(index_sample.shape)}"
            raise ShapeError(f"{name}: index_sample: expected int64 [{q.shape[1]}, U], got {found}")
        if not torch.compiler.is_compiling():  # a row number out of range would read foreign memory
            low, high = (int(bound) for bound in index_sample.aminmax())
            if low < 0 or high >= k.shape[1]:
                raise ShapeError(f"{name}: index_sample holds {low} to {high}, expected 0 to {k.shape[1] - 1}")


def _measure(scores: Tensor, keys: int) -> Tensor:
    """How far a query is from uniform attention: max minus sum / Lk of its drawn scores [.., U]."""
    return scores.amax(-1) - scores.sum(-1) / keys


def _literal(q: Tensor, k: Tensor, v: Tensor, index_sample: Tensor, kept: int, causal: bool, scale: float) -> Tensor:
    """The paper's steps one by one."""
    drawn = k[:, :, index_sample]  # B, H, Lq, U, d
    measure = _measure((q.unsqueeze(-2) @ drawn.mT).squeeze(-2), k.shape[2])
    top = measure.topk(kept, dim=-1).indices  # B, H, u
    rows = top.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
    scores = q.gather(2, rows) @ k.mT * scale  # B, H, u, Lk
    if causal:
        scores = scores.masked_fill(_future(top, k.shape[2]), -math.inf)
    return _default_output(v, q.shape[2], causal).scatter(2, rows, torch.softmax(scores, dim=-1) @ v)


def _fast(q: Tensor, k: Tensor, v: Tensor, index_sample: Tensor, kept: int, causal: bool, scale: float) -> Tensor:
    """The same result with row products for the measure, a few samples at a time, at least in single precision."""
    if kept == q.shape[2]:  # short sequence: every query is kept
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        inputs = q.to(dtype), k.to(dtype), v.to(dtype)
        out: Tensor = _SparseAttention.apply(*inputs, index_sample, kept, causal, scale)
    return out.to(v.dtype)


def _future(top: Tensor, keys: int) -> Tensor:
    """True where a key lies after the kept query, [B, H, u, Lk]."""
    return torch.arange(keys, device=top.device) > top.unsqueeze(-1)


def _default_output(v: Tensor, queries: int, causal: bool) -> Tensor:
    """What queries output that are not kept, [B, H, Lq, d]."""
    return v.cumsum(2) if causal else v.mean(2, keepdim=True).expand(-1, -1, queries, -1)


def _measure_rows(q: Tensor, k: Tensor, index_sample: Tensor) -> Tensor:
    """The measure of every query, [B, H, Lq, d] x [B, H, Lk, d] -> [B, H, Lq], sample by sample.

    The scores of the drawn keys are products of rows picked by number. The operator for that is the gradient of
    embedding_bag's weights: it reads the rows in place, where a gather would write [H, Lq, U, d] copies of them.
    """
    heads, queries, drawn = q.shape[1], q.shape[2], index_sample.shape[1]
    head = torch.arange(heads, device=q.device)[:, None]
    rows = (index_sample[:, None, :] * heads + head).flatten()  # of the keys as [Lk * H, d], for Lq * H queries
    offsets = torch.arange(0, rows.numel(), drawn, device=q.device)
    query_of_row = torch.arange(queries * heads, device=q.device).repeat_interleave(drawn)
    dtype = torch.promote_types(q.dtype, torch.float32)
    measures = []
    for q_b, k_b in zip(q.transpose(1, 2).to(dtype), k.transpose(1, 2).to(dtype), strict=True):
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            q_b.flatten(0, 1), k_b.flatten(0, 1), rows, offsets, query_of_row, 0
        )
        measures.append(_measure(products.view(queries, heads, drawn), k.shape[2]))
    return torch.stack(measures).transpose(1, 2)


class _SparseAttention(torch.autograd.Function):
    """The fast form; every tensor of the size of q is made once and visited block by block, while in the cache."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, index_sample: Tensor, kept: int, causal: bool, scale: float
    ) -> Tensor:
        out = _running_sum_(_tokens_first(v).copy_(v)) if causal else _tokens_first(q)
        weights = q.new_empty(*q.shape[:2], kept, k.shape[2])  # B, H, u, Lk
        top = torch.empty(*q.shape[:2], kept, dtype=torch.int64, device=q.device)
        for part in _blocks(q):
            measure = _measure_rows(q[part], k[part], index_sample)
            top[part] = measure.topk(kept, dim=-1, sorted=False).indices
            rows = _rows(top[part], q)
            scores = (q[part].gather(2, rows) * scale) @ k[part].mT
            if causal:
                scores.masked_fill_(_future(top[part], k.shape[2]), -math.inf)
            weights[part] = torch.softmax(scores, dim=-1)
            if not causal:
                out[part] = v[part].mean(2, keepdim=True)
            out[part].scatter_(2, rows, weights[part] @ v[part])
        ctx.save_for_backward(q, k, v, top, weights)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return *_gradients(ctx.saved_tensors, grad, ctx.causal, ctx.scale), None, None, None, None


def _gradients(saved: tuple[Tensor, ...], grad: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v: attention's for the kept queries, those of a mean or running sum for the others."""
    q, k, v, top, weights = saved
    grad_q, grad_k, grad_v = _tokens_first(q).zero_(), _tokens_first(k), _tokens_first(v)
    if causal:
        _running_sum_(grad_v.copy_(grad).scatter_(2, _rows(top, q), 0.0), backwards=True)
    for part in _blocks(q):
        rows, w = _rows(top[part], q), weights[part]
        grad_kept = grad[part].gather(2, rows)  # B, H, u, d
        grad_w = grad_kept @ v[part].mT
        grad_scores = (grad_w - (grad_w * w).sum(-1, keepdim=True)).mul_(w).mul_(scale)  # B, H, u, Lk
        grad_q[part].scatter_(2, rows, grad_scores @ k[part])
        grad_k[part] = grad_scores.mT @ q[part].gather(2, rows)
        if causal:
            grad_v[part] += w.mT @ grad_kept
        else:
            others = grad[part].sum(2, keepdim=True) - grad_kept.sum(2, keepdim=True)
            grad_v[part] = (w.mT @ grad_kept).add_(others / k.shape[2])
    return grad_q, grad_k, grad_v


def _blocks(q: Tensor) -> list[slice]:
    """Samples to take at once: on a CPU as many as fit its cache, else all."""
    batch = q.shape[0]
    size = max(1, BLOCK_ELEMENTS // q[0].numel()) if q.device.type == "cpu" else batch
    return [slice(start, start + size) for start in range(0, batch, size)]


def _rows(top: Tensor, q: Tensor) -> Tensor:
    """Index of the kept queries [B, H, u] for gather and scatter, [B, H, u, d]."""
    return top.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])


def _tokens_first(x: Tensor) -> Tensor:
    """An empty tensor like [B, H, L, d] whose memory is laid out [B, L, H, d]."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _running_sum_(x: Tensor, backwards: bool = False) -> Tensor:
    """Cumulative sum over the tokens of [B, H, L, d] in place, from the first to the last token or backwards."""
    if x.device.type != "cpu":
        return x.copy_(x.flip(2).cumsum(2).flip(2)) if backwards else x.cumsum_(2)
    steps = x.unbind(2)  # measured on CPU: four times faster than cumsum, which walks along the tokens
    steps = steps[::-1] if backwards else steps
    for before, step in itertools.pairwise(steps):
        step.add_(before)
    return x
