"""Gated linear attention in chunks, with its own backward pass: what serves every call whose gates are not extreme.

With b_t the sum of the log gates of a chunk up to token t, m its value in the middle and S the state before it,

    q' = q e^(b-m),  k' = k e^(m-b)                     one exponential per token and channel serves everything
    out = tril(q' k'^T) v + q' (e^m S)
    S  <- e^(b_end) S + e^(b_end-m) (k'^T v)            the only sequential part

so all sums are matrix products. Read in both directions, the two triangles of scores make one matrix. Surprises: the
exponents reach half a chunk's sum in both signs, so :func:`is_mild` must be asked first; the gradient of a log gate
needs no pass of its own, as that of b_t is ``q dq - k dk``; work is done in slabs of samples and heads that do not
outgrow the processor's cache, and the backward pass makes a slab's factors again instead of keeping them.

Shape legend: B batch, T tokens, H heads, d channels of a head, e channels of a head of values; N chunks, n tokens of a
chunk, R samples times heads of a slab, M = N * R.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLAB_ELEMENTS = 1 << 18
"""Elements of the queries that a thread of the processor works on at once; measured."""


def is_mild(gates: Sequence[Tensor], chunk: int) -> bool:
    """Whether the sum of the log gates over any half chunk can be an exponent, of either sign, without harm.

    This looks at numbers, so it needs tensors that have some, and cannot be part of a graph.

    Args:
        gates: Log gates, [B, T, H, d] each.
        chunk: Tokens of a chunk, even.
    """
    limit = 0.5 * math.log(torch.finfo(precise(*gates)).max)
    half = chunk // 2
    whole = gates[0].shape[1] // half * half
    sums = [gate[:, :whole].unflatten(1, (whole // half, half)).sum(2) for gate in gates]
    sums += [gate[:, whole:].sum(1, keepdim=True) for gate in gates]
    return bool(torch.cat(sums, dim=1).abs().amax() < limit)  # NaN is not below it


def precise(*tensors: Tensor) -> torch.dtype:
    """The type to sum in: float64 where a tensor is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


class ChunkedGatedLinear(torch.autograd.Function):
    """Both passes of the operator; saves its inputs and the states between chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forward_gate: Tensor,
        backward_gate: Tensor | None,
        state: Tensor | None,
        scale: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Mixed values [B, T, H, e] and the last state [B, H, d, e]; None for it with two directions."""
        gates = [forward_gate] if backward_gate is None else [forward_gate, backward_gate]
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        last = None
        if backward_gate is None:
            last = q.new_empty(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=precise(q, k, v, *gates))
        kept: list[Tensor] = []
        for part in _slabs(q):
            slab = _Slab.cut(part, q, k, v, gates, scale, chunk)
            mixed, states = slab.mix(None if state is None else part.of_state(state))
            _join(mixed, part.of(out))
            if last is not None:
                _copy(states[0][-1], part.of_state(last))
            if any(ctx.needs_input_grad):
                kept += states
        ctx.save_for_backward(q, k, v, forward_gate, backward_gate, *kept)
        ctx.scale, ctx.chunk, ctx.has_state = scale, chunk, state is not None
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, the gates and the state."""
        q, k, v, forward_gate, backward_gate, *kept = ctx.saved_tensors
        gates = [forward_gate] if backward_gate is None else [forward_gate, backward_gate]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, *gates)]
        grad_state = torch.empty_like(grad_last) if grad_last is not None and ctx.has_state else None
        with torch.autocast(q.device.type, enabled=False):
            for number, part in enumerate(_slabs(q)):
                slab = _Slab.cut(part, q, k, v, gates, ctx.scale, ctx.chunk)
                states = kept[number * len(gates) : (number + 1) * len(gates)]
                after = None if grad_last is None else part.of_state(grad_last)
                found, before = slab.gradients(_cut(part.of(grad_out), ctx.chunk, slab.v.dtype), states, after)
                found[0].mul_(ctx.scale)
                for grad, piece in zip(grads, found, strict=True):
                    _join(piece, part.of(grad))
                if grad_state is not None:
                    _copy(before, part.of_state(grad_state))
        both = grads if backward_gate is not None else [*grads, None]
        return *both, grad_state, None, None


class _Part(NamedTuple):
    """Some samples and heads."""

    samples: slice
    heads: slice

    def of(self, tokens: Tensor) -> Tensor:
        """View of [B, T, H, channels]."""
        return tokens[self.samples, :, self.heads]

    def of_state(self, state: Tensor) -> Tensor:
        """View of [B, H, d, e]."""
        return state[self.samples, self.heads]


def _slabs(q: Tensor) -> Iterator[_Part]:
    """Parts of a size that stays near the cache on a processor; everything at once on other devices."""
    batch, tokens, heads, width = q.shape
    if q.device.type != "cpu":
        yield _Part(slice(None), slice(None))
        return
    rows = max(1, SLAB_ELEMENTS * torch.get_num_threads() // (tokens * width))  # a row is a head of a sample
    some_heads, samples = min(rows, heads), max(1, rows // heads)
    for first in range(0, batch, samples):
        for head in range(0, heads, some_heads):
            yield _Part(slice(first, first + samples), slice(head, head + some_heads))


class _Slab(NamedTuple):
    """Some samples and heads, cut into chunks.

    Attributes:
        v: Values, [N, R, n, e].
        directions: One or both.
    """

    v: Tensor
    directions: list[_Direction]

    @classmethod
    def cut(
        cls, part: _Part, q: Tensor, k: Tensor, v: Tensor, gates: Sequence[Tensor], scale: float, chunk: int
    ) -> _Slab:
        """Cut the part of each tensor, [B, T, H, channels], and scale the queries."""
        dtype = precise(q, k, v, *gates)
        queries, keys = _cut(part.of(q), chunk, dtype).mul_(scale), _cut(part.of(k), chunk, dtype)
        directions = [
            _Direction.of(queries, keys, _cut(part.of(gate), chunk, dtype), reverse=reverse)
            for gate, reverse in zip(gates, (False, True), strict=False)
        ]
        return cls(_cut(part.of(v), chunk, dtype), directions)

    def scores(self) -> Tensor:
        """What multiplies the values of a token's own chunk, [M, n, n]; with two directions the diagonal is double."""
        first, *others = (torch.bmm(_flat(one.q), _flat(one.k).mT) for one in self.directions)
        if not others:
            return first.tril_()
        lower = torch.ones(first.shape[1:], dtype=torch.bool, device=first.device).tril_()
        torch.where(lower, first, others[0], out=first)
        first.diagonal(dim1=-2, dim2=-1).mul_(2)
        return first

    def mix(self, state: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Read values and states.

        Args:
            state: State before the first token, [B, H, d, e].

        Returns:
            Mixed values [N, R, n, e] and, for each direction, the states between chunks [N + 1, R, d, e].
        """
        out = torch.bmm(self.scores(), _flat(self.v))
        kept = []
        for one in self.directions:
            states = one.states(self.v, state)
            out.baddbmm_(_flat(one.q), _flat(one.entering(states) * one.start))
            kept.append(states)
        return out.view_as(self.v), kept

    def gradients(self, grad_out: Tensor, kept: list[Tensor], after: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The backward pass.

        Args:
            grad_out: Gradient of the mixed values, [N, R, n, e].
            kept: States of each direction.
            after: Gradient of the last state, [B, H, d, e].

        Returns:
            Gradients of scaled queries, keys, values and each direction's gates, [N, R, n, channels], and that of the
            state before the first token, [R, d, e].
        """
        scores, grad_out = self.scores(), _flat(grad_out)
        grad_v = torch.bmm(scores.mT, grad_out)
        grad_scores = torch.bmm(grad_out, _flat(self.v).mT)
        lower = torch.ones(scores.shape[1:], dtype=scores.dtype, device=scores.device).tril_()
        parts = []
        for one, states in zip(self.directions, kept, strict=True):
            near = torch.mul(grad_scores, lower.mT if one.reverse else lower, out=scores)
            grad_states = one.grad_states(grad_out, after)
            parts.append(one.gradients(near, grad_out, self.v, states, grad_states))
            grad_v.baddbmm_(_flat(one.k), _flat(one.leaving(grad_states) * one.end))
        grad_q, grad_k = (sum(found[1:], start=found[0]) for found in ([p[0] for p in parts], [p[1] for p in parts]))
        return [grad_q, grad_k, grad_v.view_as(self.v), *(part[2] for part in parts)], grad_states[0]


class _Direction(NamedTuple):
    """One reading direction of a slab, with decays relative to the middle of each chunk.

    Attributes:
        q: Queries times ``decay``, [N, R, n, d].
        k: Keys over ``decay``, [N, R, n, d].
        decay: From the middle to a token; above one for tokens read before the middle, [N, R, n, d].
        start: Decay from the edge where reading starts to the middle, [N, R, d, 1].
        end: From the middle to the other edge, [N, R, d, 1].
        whole: Over the chunk, [N, R, d, 1].
        reverse: Tokens are read from the last to the first.
    """

    q: Tensor
    k: Tensor
    decay: Tensor
    start: Tensor
    end: Tensor
    whole: Tensor
    reverse: bool

    @classmethod
    def of(cls, q: Tensor, k: Tensor, log_gate: Tensor, *, reverse: bool) -> _Direction:
        """Make the factors of a direction from cut tensors, [N, R, n, d]."""
        sums = log_gate.cumsum(2)
        total = sums[:, :, -1:].clone()
        if reverse:
            torch.sub(total, sums, out=sums).add_(log_gate)
        place = log_gate.shape[2] // 2 - (0 if reverse else 1)
        middle = sums[:, :, place : place + 1].clone()
        decay = sums.sub_(middle).exp_()
        start, end, whole = middle.exp().mT, (total - middle).exp_().mT, total.exp_().mT
        return cls(q * decay, k / decay, decay, start, end, whole, reverse)

    def states(self, v: Tensor, first: Tensor | None) -> Tensor:
        """States between chunks, [N + 1, R, d, e], in the order of the tokens."""
        chunks, rows, _, width = self.q.shape
        states = v.new_empty(chunks + 1, rows, width, v.shape[-1])
        added = self.leaving(states)
        torch.bmm(_flat(self.k).mT, _flat(v), out=_flat(added))
        added.mul_(self.end)
        _set(states[-1 if self.reverse else 0], first)
        _accumulate(states, self.whole, self.reverse)
        return states

    def grad_states(self, grad_out: Tensor, last: Tensor | None) -> Tensor:
        """Gradients of the states between chunks, [N + 1, R, d, e]: the same recurrence, read the other way."""
        chunks, rows, _, width = self.q.shape
        grads = grad_out.new_empty(chunks + 1, rows, width, grad_out.shape[-1])
        added = self.entering(grads)
        torch.bmm(_flat(self.q).mT, grad_out, out=_flat(added))
        added.mul_(self.start)
        _set(grads[0 if self.reverse else -1], last)
        _accumulate(grads, self.whole, not self.reverse)
        return grads

    def gradients(
        self, near: Tensor, grad_out: Tensor, v: Tensor, states: Tensor, grad_states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and log gates, [N, R, n, d] each.

        Args:
            near: Gradient of this direction's scores, zero elsewhere, [M, n, n].
            grad_out: Gradient of the mixed values, [M, n, e].
            v: Values, [N, R, n, e].
            states: States between chunks, [N + 1, R, d, e].
            grad_states: Their gradients.
        """
        entering, leaving = self.entering(states) * self.start, self.leaving(grad_states) * self.end
        grad_q = torch.bmm(near, _flat(self.k)).baddbmm_(grad_out, _flat(entering).mT).view_as(self.q)
        grad_k = torch.bmm(near.mT, _flat(self.q)).baddbmm_(_flat(v), _flat(leaving).mT).view_as(self.k)
        # A gate scales all that is read after it: the queries' share minus the keys', summed from it to the chunk's
        # end, and what is carried into later chunks.
        shares = torch.mul(grad_q, self.q).addcmul_(grad_k, self.k, value=-1)
        grad_gate = shares.cumsum(2)
        if not self.reverse:
            total = grad_gate[:, :, -1:].clone()
            torch.sub(total, grad_gate, out=grad_gate).add_(shares)
        carried = (self.leaving(states) * self.leaving(grad_states)).sum(-1)  # N, R, d
        return grad_q.mul_(self.decay), grad_k.div_(self.decay), grad_gate.add_(carried.unsqueeze(2))

    def entering(self, states: Tensor) -> Tensor:
        """Of states between chunks those that enter the chunks, [N, R, d, e]."""
        return states[1:] if self.reverse else states[:-1]

    def leaving(self, states: Tensor) -> Tensor:
        """Of states between chunks those that leave the chunks, [N, R, d, e]."""
        return states[:-1] if self.reverse else states[1:]


def _accumulate(states: Tensor, decay: Tensor, reverse: bool) -> None:
    """Add to each state, in place, the decayed one before it.

    A loop of small fused steps; by pairs, pairs of pairs and so on it took 1.6 times as long for 100 chunks, and by
    blocks of ten the same.

    Args:
        states: [N + 1, R, d, e], the first (with ``reverse`` the last) complete.
        decay: [N, R, d, 1].
        reverse: Go from the last to the first.
    """
    steps, decays = states.unbind(0), decay.unbind(0)
    if reverse:
        steps, decays = steps[::-1], decays[::-1]
    for before, after, factor in zip(steps[:-1], steps[1:], decays, strict=True):
        after.addcmul_(factor, before)


def _set(state: Tensor, value: Tensor | None) -> None:
    """Fill [R, d, e] with [B, H, d, e], or with zeros."""
    if value is None:
        state.zero_()
    else:
        state.view(value.shape).copy_(value)


def _copy(state: Tensor, into: Tensor) -> None:
    """Write [R, d, e] into [B, H, d, e]."""
    into.copy_(state.view(into.shape))


def _cut(tokens: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """[B, T, H, channels] to contiguous chunks [N, B * H, n, channels]; zeros fill up the last one."""
    batch, length, heads, channels = tokens.shape
    whole, rest = divmod(length, chunk)
    chunks = tokens.new_empty(whole + (rest > 0), batch, heads, chunk, channels, dtype=dtype)
    rows = chunks.permute(1, 0, 3, 2, 4)  # B, N, n, H, channels
    rows[:, :whole].copy_(tokens[:, : whole * chunk].unflatten(1, (whole, chunk)))
    if rest:
        rows[:, whole, :rest].copy_(tokens[:, whole * chunk :])
        rows[:, whole, rest:].zero_()
    return chunks.flatten(1, 2)


def _join(chunks: Tensor, tokens: Tensor) -> None:
    """Write [N, B * H, n, channels] into [B, T, H, channels]."""
    batch, length, heads, _ = tokens.shape
    chunk = chunks.shape[2]
    rows = chunks.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4)  # B, N, n, H, channels
    whole, rest = divmod(length, chunk)
    tokens[:, : length - rest].unflatten(1, (whole, chunk)).copy_(rows[:, :whole])
    if rest:
        tokens[:, length - rest :].copy_(rows[:, whole, :rest])


def _flat(chunks: Tensor) -> Tensor:
    """[N, R, ...] to [M, ...], a view."""
    return chunks.flatten(0, 1)
