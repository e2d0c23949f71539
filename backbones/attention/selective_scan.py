"""Selective state space scan: the recurrence of Mamba (Gu and Dao 2023), formulas only.

    h_t = exp(dt_t A) * h_{t-1} + (dt_t x_t) B_t        state, D channels x n states
    y_t = C_t . h_t + D_skip * x_t

Three forms of the same recurrence, all stable for any step size, as they only ever multiply by decays (<= 1):

- ``math``: the formula as a loop over time, differentiated by autograd;
- ``fast``: chunk by chunk. What needs no recurrence (decays, inputs, readout, all gradients of the parameters) is done
  for a whole chunk at once, the recurrence itself is one fused multiply-add in place per step, and the backward pass
  recomputes a chunk's states from the state that entered it, so saved memory is L/chunk states instead of L;
- a prefix-doubling form without a time loop for ``torch.export`` and ``torch.compile``.

Surprises: B is discretised by the Euler rule ``dt B`` while A is by zero-order hold; the state is float32 (or float64)
whatever the precision of the inputs; a form that divides by cumulative decays underflows for large steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.attention.dispatch import resolve_form
from graftwork.errors import ConfigError, ShapeError

# B batch, L tokens, D channels, n states, c tokens of a chunk, K chunks.
# Inside the fast form time comes first and channels last: every step is contiguous and broadcasts run along D.

SCRATCH_ELEMENTS = 1 << 20
"""Size of the fast form's work buffers; measured: they should stay in the processor's cache."""
MIN_CHUNK, MAX_CHUNK = 8, 64


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan an input-dependent linear recurrence over the tokens.

    Args:
        x: Inputs, [batch, tokens, channels].
        dt: Step sizes after softplus (>= 0), [batch, tokens, channels]; 0 leaves the state as it is.
        A: Decay rates (<= 0), [channels, states].
        B: Input weights, [batch, tokens, states].
        C: Readout weights, [batch, tokens, states].
        D: Skip weights, [channels]; none if omitted.
        state: State before the first token, [batch, channels, states]; zeros if omitted.
        chunk: Tokens per chunk of the fast form; chosen for the processor's cache if omitted. No effect on the result.
        backend: ``"auto"``, or ``"math"`` for the time loop.

    Returns:
        Outputs, [batch, tokens, channels] in the dtype of ``x``, and the state after the last token,
        [batch, channels, states], in float32 (float64 for float64 inputs), also under autocast.

    Raises:
        ShapeError: An argument does not fit ``x`` and ``A``.
        ConfigError: ``chunk`` is not positive.

    Source: Gu and Dao 2023, section 3.2 and algorithm 2.
    """
    _check(x, dt, A, B, C, D, state)
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk={chunk} must be at least 1")
    form = resolve_form("selective_scan", backend)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        h = x.new_zeros(x.shape[0], *A.shape, dtype=dtype) if state is None else state.to(dtype)
        inputs = [tensor.to(dtype) for tensor in (x, dt, A, B, C)]
        if form == "math":
            y, h = _loop(h, *inputs)
        elif torch.compiler.is_compiling():
            y, h = _doubling(h, *inputs)
        else:
            y, h = _ChunkedScan.apply(h, *inputs, chunk or _cache_sized_chunk(x.shape[0] * A.numel()))
        if D is not None:
            y = torch.addcmul(y, inputs[0], D.to(dtype))
    return y.to(x.dtype), h


def _check(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor | None) -> None:
    if x.dim() != 3 or a.dim() != 2:
        raise ShapeError(f"selective_scan: expected x (B, L, D) and A (D, n), got {tuple(x.shape)}, {tuple(a.shape)}")
    batch, tokens, channels = x.shape
    states = a.shape[1]
    expected = {
        "dt": (dt, (batch, tokens, channels)),
        "A": (a, (channels, states)),
        "B": (b, (batch, tokens, states)),
        "C": (c, (batch, tokens, states)),
        "D": (d, (channels,)),
        "state": (state, (batch, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"selective_scan: {name}: expected {shape}, got {tuple(tensor.shape)}")
    if tokens == 0:
        raise ShapeError("selective_scan: x has no tokens")


def _cache_sized_chunk(state_elements: int) -> int:
    return min(max(SCRATCH_ELEMENTS // max(state_elements, 1), MIN_CHUNK), MAX_CHUNK)


def _loop(h: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The formula, one token at a time."""
    outputs = []
    # unbind, not indexing: the gradient of an index is a zero tensor of the full length, at every step
    for x_t, dt_t, b_t, c_t in zip(x.unbind(1), dt.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        decay = torch.exp(dt_t[:, :, None] * a)  # B, D, n
        h = decay * h + (dt_t * x_t)[:, :, None] * b_t[:, None, :]
        outputs.append((h @ c_t[:, :, None]).squeeze(2))
    return torch.stack(outputs, dim=1), h


def _doubling(h: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Inclusive prefix scan in log2(L) rounds; each round composes a step with the one ``shift`` tokens before."""
    decay = torch.exp(dt[:, :, :, None] * a)  # B, L, D, n
    states = (dt * x)[:, :, :, None] * b[:, :, None, :]
    states = torch.cat([states[:, :1] + (decay[:, 0] * h)[:, None], states[:, 1:]], dim=1)
    shift = 1
    while shift < x.shape[1]:
        later = states[:, shift:] + decay[:, shift:] * states[:, :-shift]
        states = torch.cat([states[:, :shift], later], dim=1)
        decay = torch.cat([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], dim=1)
        shift *= 2
    return (states @ c[:, :, :, None]).squeeze(3), states[:, -1]


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]


def _time_first(part: slice, *tensors: Tensor) -> list[Tensor]:
    """Views of the tokens of one chunk of each tensor, [B, L, ..] -> [c, B, ..]."""
    return [tensor[:, part].transpose(0, 1) for tensor in tensors]


class _Buffer(NamedTuple):
    """Work memory of a chunk, [c, B, n, D], and views of its steps, made once as there are as many as tokens."""

    whole: Tensor
    steps: tuple[Tensor, ...]

    @classmethod
    def like(cls, state: Tensor, size: int) -> _Buffer:
        """A buffer of ``size`` steps for states like this one."""
        whole = state.new_empty(size, *state.shape)
        return cls(whole, whole.unbind(0))

    def cut(self, start: int, stop: int) -> _Buffer:
        """The part of it from step ``start`` to ``stop``."""
        return _Buffer(self.whole[start:stop], self.steps[start:stop])


def _fill_states(dt: Tensor, u: Tensor, a: Tensor, b: Tensor, h: Tensor, decay: _Buffer, states: _Buffer) -> Tensor:
    """Write the decays and states of one chunk into ``decay`` and ``states``; return the last state.

    Args:
        dt: Step sizes, [c, B, D].
        u: dt * x, [c, B, D].
        a: Decay rates, [n, D].
        b: Input weights, [c, B, n].
        h: State before the chunk, [B, n, D].
        decay: Buffer of c steps for the decays.
        states: Buffer of c steps for the states.
    """
    torch.mul(dt.unsqueeze(2), a, out=decay.whole)
    decay.whole.exp_()
    torch.mul(u.unsqueeze(2), b.unsqueeze(3), out=states.whole)
    for step, decay_t in zip(states.steps, decay.steps, strict=True):
        h = step.addcmul_(decay_t, h)
    return h


def _fill_gradients(grad_y: Tensor, c: Tensor, carry: Tensor, decay: _Buffer, grads: _Buffer) -> Tensor:
    """Write the gradients of a chunk's states into ``grads``, and their decayed values into ``decay``.

    Returns:
        Gradient of the state before the chunk, [B, n, D], a part of ``decay``.
    """
    torch.mul(grad_y.unsqueeze(2), c.unsqueeze(3), out=grads.whole)
    for step, decay_t in zip(reversed(grads.steps), reversed(decay.steps), strict=True):
        carry = decay_t.mul_(step.add_(carry))
    return carry


def _rows_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """[c, B, i] x [c, B, i, j] -> [B, c, j]; measured on CPU: twice as fast as matrix times column."""
    return torch.matmul(rows.unsqueeze(2), matrices).squeeze(2).transpose(0, 1)


class _ChunkedScan(torch.autograd.Function):
    """The fast form; saves its inputs and the state that enters each chunk."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        chunks = _chunks(x.shape[1], min(chunk, x.shape[1]))
        rates, h = a.t().contiguous(), state.mT  # n, D; B, n, D
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        decay, states = _Buffer.like(h, chunks[0].stop), _Buffer.like(h, chunks[0].stop)
        entering = _Buffer.like(h, len(chunks))
        for part, enters in zip(chunks, entering.steps, strict=True):
            size = part.stop - part.start
            x_c, dt_c, b_c, c_c = _time_first(part, x, dt, b, c)
            enters.copy_(h)
            h = _fill_states(dt_c, x_c * dt_c, rates, b_c, enters, decay.cut(0, size), states.cut(0, size))
            y[:, part] = _rows_times(c_c, states.whole[:size])
        ctx.save_for_backward(x, dt, a, b, c, entering.whole)
        ctx.chunks = chunks
        return y, h.mT.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_y.device.type, enabled=False):
            return *_gradients(ctx.saved_tensors, ctx.chunks, grad_y, grad_state), None


def _gradients(saved: tuple[Tensor, ...], chunks: list[slice], grad_y: Tensor, grad_state: Tensor) -> list[Tensor]:
    """Gradients of (state, x, dt, A, B, C), walking the chunks backwards."""
    x, dt, a, b, c, entering = saved
    rates = a.t().contiguous()  # n, D
    grad_x, grad_dt, grad_b, grad_c = (torch.empty_like(tensor) for tensor in (x, dt, b, c))
    decay, grads = (_Buffer.like(entering[0], chunks[0].stop) for _ in range(2))
    states = _Buffer.like(entering[0], chunks[0].stop + 1)  # the entering state comes first
    grad_rates = torch.zeros_like(decay.whole)  # per token of a chunk
    carry = torch.empty_like(entering[0]).copy_(grad_state.mT)  # gradient of the state that leaves the chunk
    for part, enters in zip(reversed(chunks), reversed(entering.unbind(0)), strict=True):
        size = part.stop - part.start
        x_c, dt_c, b_c, c_c, grad_y_c = _time_first(part, x, dt, b, c, grad_y)
        u, decay_c, states_c, grads_c = x_c * dt_c, decay.cut(0, size), states.cut(1, size + 1), grads.cut(0, size)
        states.steps[0].copy_(enters)
        _fill_states(dt_c, u, rates, b_c, states.steps[0], decay_c, states_c)
        carry.copy_(_fill_gradients(grad_y_c, c_c, carry, decay_c, grads_c))
        grad_c[:, part] = _rows_times(grad_y_c, states_c.whole.mT)
        grad_b[:, part] = _rows_times(u, grads_c.whole.mT)
        grad_u = _rows_times(b_c, grads_c.whole)  # B, c, D
        exponent = decay_c.whole.mul_(states.whole[:size])  # gradient of dt A
        grad_rates[:size].addcmul_(exponent, dt_c.unsqueeze(2))
        torch.addcmul(exponent.mul_(rates).sum(2).transpose(0, 1), grad_u, x[:, part], out=grad_dt[:, part])
        torch.mul(grad_u, dt[:, part], out=grad_x[:, part])
    return [carry.mT, grad_x, grad_dt, grad_rates.sum((0, 1)).t(), grad_b, grad_c]
