"""Gated linear attention: a linear recurrence whose state decays per channel, in one direction or in both.

    S_t = diag(exp g_t) S_(t-1) + k_t v_t^T         state, d x e
    o_t = scale q_t^T S_t

Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", section 4; both
directions in one call: Liao et al. 2024, "ViG", section 3.2.

Three forms of the same recurrence:

- ``math``: the formula as a loop over tokens, differentiated by autograd;
- :mod:`backbones.attention.gated_linear_chunks`: products of whole chunks, with exponents relative to their middle;
- :mod:`backbones.attention.gated_linear_pairs`: every pair of tokens by itself, for any gates and for traced graphs.

The fast form takes the second after a look at the gates: one number is read from the device per call. Where that cannot
be (a traced or a captured graph, the meta device) or the gates are extreme it takes the third.

Shape legend: B batch, T tokens, H heads, d channels of a head, e channels of a head of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backbones.attention.attend import check_tokens, without_autocast
from backbones.attention.dispatch import exporting, resolve_form
from backbones.attention.gated_linear_chunks import ChunkedGatedLinear, is_mild, precise
from backbones.attention.gated_linear_pairs import by_pairs
from graftwork.errors import ConfigError, ShapeError

CHUNK = 32
"""Most tokens of a chunk; of 16 to 128 the fastest, or as fast, from 49 to 3136 tokens."""
PAIRED_ELEMENTS = 1 << 20
"""Elements of the queries that are taken pair by pair at once: it bounds the memory of extreme gates."""


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    *,
    backward_gate: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Read a state that every token decays per channel and adds to.

    Args:
        q: Queries, [B, T, H, d].
        k: Keys, [B, T, H, d].
        v: Values, [B, T, H, e].
        log_gate: Logarithm of the decay that a token applies to the state before it adds to it, at most 0,
            [B, T, H, d]; minus infinity forgets everything.
        backward_gate: The same for reading from the last token to the first. With it the result is the mean of both
            directions, each of which includes the token itself; there is no state then.
        scale: Factor on the queries; d ** -0.5 if omitted.
        state: What an earlier call returned for the tokens before, [B, H, d, e]; zeros at the beginning.
        chunk: Tokens of a chunk of the fast form, rounded up to an even number; chosen by the length if omitted. No
            effect on the result.
        backend: ``math`` for the loop over tokens.

    Returns:
        [B, T, H, e] in the type of the values, and the state after the last token in float32 (float64 for float64
        inputs), also under autocast; None with ``backward_gate``. One call for all tokens gives the same as one for
        each. Memory grows linearly with the tokens.

    Raises:
        ShapeError: Tensors that do not fit each other; the message names both shapes.
        ConfigError: Unknown backend, a chunk below 1, or a state given beside ``backward_gate``.
    """
    _check(q, k, v, log_gate, backward_gate, state, chunk)
    literal = resolve_form("gated_linear_attention", backend) == "math"
    gates = [log_gate] if backward_gate is None else [log_gate, backward_gate]
    scale = (q.shape[-1] ** -0.5 if scale is None else scale) / len(gates)
    with without_autocast(q):
        if not isinstance(q.shape[1], int):  # a graph leaves the length open
            out, last = _run(by_pairs, q, k, v, gates, scale, state)
        elif 0 in v.shape[:3]:
            out, last = _run(_nothing_read, q, k, v, gates, scale, state)
        elif literal or (q.shape[1] == 1 and len(gates) == 1):  # nothing is faster for a single token
            out, last = _run(_by_tokens, q, k, v, gates, scale, state)
        elif _has_numbers(q) and is_mild(gates, size := _chunk(q.shape[1], chunk)):
            out, last = ChunkedGatedLinear.apply(q, k, v, log_gate, backward_gate, state, scale, size)
        else:
            out, last = _run(_light_by_pairs, q, k, v, gates, scale, state)
    return out.to(v.dtype), last


def gated_linear_step(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, *, state: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """One token of :func:`gated_linear_attention`, for streams: a few small operators, whatever came before.

    Args:
        q: Query, [B, H, d].
        k: Key, [B, H, d].
        v: Value, [B, H, e].
        log_gate: Logarithm of the decay, [B, H, d].
        state: State before the token, [B, H, d, e]; zeros if omitted.
        scale: Factor on the query; d ** -0.5 if omitted.

    Returns:
        [B, H, e] in the type of the value, and the state after the token, float32 or float64.

    Raises:
        ShapeError: Tensors that do not fit each other.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v), ("log_gate", log_gate)):
        if tensor.dim() != 3:
            raise ShapeError(f"{name}: expected [batch, heads, channels], got {list(tensor.shape)}")
    q, k, v, log_gate = (tensor.unsqueeze(1) for tensor in (q, k, v, log_gate))
    _check(q, k, v, log_gate, None, state, None)
    with without_autocast(q):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out, after = _run(_by_tokens, q, k, v, [log_gate], scale, state)
    return out.squeeze(1).to(v.dtype), cast(Tensor, after)


Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A form of one direction: scaled queries, keys, values, log gates and state to values [B, T, H, e] and state."""


def _run(
    form: Form, q: Tensor, k: Tensor, v: Tensor, gates: list[Tensor], scale: float, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Bring a call into the shape of one direction: reading backwards is more samples, with their tokens flipped."""
    dtype = precise(q, k, v, *gates)
    # an idle conversion would be two nodes of a graph
    q, k, v, *gates = (tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in (q, k, v, *gates))
    samples = q.shape[0]
    if len(gates) == 2:
        q, k, v = (torch.cat([tensor, tensor.flip(1)]) for tensor in (q, k, v))
    gate = gates[0] if len(gates) == 1 else torch.cat([gates[0], gates[1].flip(1)])
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out, last = form(q * scale, k, v, gate, state.to(dtype))
    if len(gates) == 1:
        return out, last
    return out[:samples] + out[samples:].flip(1), None


def _by_tokens(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The formula, one token at a time."""
    outputs = []
    # unbind, not indexing: the gradient of an index is a zero tensor of the full length, at every step
    for q_t, k_t, v_t, gate_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), log_gate.unbind(1), strict=True):
        state = gate_t.exp()[..., None] * state + k_t[..., None] * v_t[..., None, :]  # B, H, d, e
        outputs.append((q_t[..., None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def _light_by_pairs(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`by_pairs` for a few samples at a time, run again in the backward pass rather than kept."""
    if torch.compiler.is_compiling() or exporting():
        return by_pairs(q, k, v, log_gate, state)
    samples = max(1, PAIRED_ELEMENTS // q[0].numel())
    results = [
        checkpoint(by_pairs, *some, use_reentrant=False, preserve_rng_state=False)
        for some in zip(*(tensor.split(samples) for tensor in (q, k, v, log_gate, state)), strict=True)
    ]
    mixed, last = (torch.cat(parts) for parts in zip(*results, strict=True))
    return mixed, last


def _nothing_read(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Without a sample, token or head nothing is read, and the state stays."""
    return (q * k * log_gate).sum(-1, keepdim=True) * v, state


def _has_numbers(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at in the middle of a computation."""
    if torch.compiler.is_compiling() or exporting() or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def _chunk(tokens: int, wanted: int | None) -> int:
    """Tokens of a chunk, an even number: as wanted, or an equal share of all."""
    size = wanted or -(-tokens // -(-tokens // CHUNK))
    return size + size % 2


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    backward_gate: Tensor | None,
    state: Tensor | None,
    chunk: int | None,
) -> None:
    check_tokens(q, k, v)
    if q.shape[1] != k.shape[1]:
        raise ShapeError(f"k: expected as many tokens as q {list(q.shape)}, got {list(k.shape)}")
    for name, gate in (("log_gate", log_gate), ("backward_gate", backward_gate)):
        if gate is not None and gate.shape != k.shape:
            raise ShapeError(f"{name}: expected {list(k.shape)} to fit k, got {list(gate.shape)}")
    expected = [q.shape[0], q.shape[2], q.shape[3], v.shape[3]]
    if state is not None and list(state.shape) != expected:
        raise ShapeError(f"state: expected [batch, heads, d, e] = {expected}, got {list(state.shape)}")
    if state is not None and backward_gate is not None:
        raise ConfigError(
            "state and backward_gate are both given, but reading backwards goes on from no state",
            mend="Pass the whole sequence without a state, or leave out backward_gate",
        )
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk={chunk} must be at least 1")
