"""Gated linear attention by pairs of tokens: exact for any gates, and a small graph of plain operators.

Inside short chunks every pair of tokens gets its own decay, the exponential of the sum of the log gates between the
two; the same is done for the chunks of a group, for the groups of a group of groups and so on. The sums are one product
with a matrix of zeros and ones, so that each is made of its own terms only: none is positive, nothing overflows,
nothing cancels, and a gate of minus infinity forgets everything before it. It serves traced graphs, where numbers
cannot be looked at, and gates that are too extreme for :mod:`backbones.attention.gated_linear_chunks`, at a few times
the cost.

Shape legend: B batch, T tokens, H heads, R = B * H, d channels of a head, e channels of a head of values; N chunks of n
tokens, G groups of g chunks.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8
"""Tokens of a chunk."""
GROUP = 16
"""Chunks of a group, and groups of a larger one."""
FLOOR = -1e5
"""Stands for minus infinity, and yet times zero it is zero."""


def by_pairs(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One direction of gated linear attention.

    Args:
        q: Queries, scaled, [B, T, H, d].
        k: Keys, [B, T, H, d].
        v: Values, [B, T, H, e].
        log_gate: Logarithms of the decays, [B, T, H, d].
        state: State before the first token, [B, H, d, e].

    Returns:
        Mixed values [B, T, H, e], and the state after the last token.
    """
    tokens, heads, width = q.shape[1:]
    packed = _cut(torch.cat([q, k, log_gate, v], dim=-1))
    q, k, log_gate, v = packed.split([width, width, width, v.shape[-1]], dim=-1)
    q, k = q.mT, k.mT  # R, N, d, n
    between, since, until, total = _decays(log_gate, inclusive=True)
    scores = (q[..., None] * k[..., None, :] * between).sum(2)  # R, N, n, n
    entering, last = _entering((k * until) @ v, total, state.flatten(0, 1))
    mixed = scores @ v + (q * since).mT @ entering  # R, N, n, e
    mixed = mixed.flatten(1, 2).unflatten(0, (-1, heads)).transpose(1, 2)  # B, T and more, H, e
    return _first(mixed, tokens), last.unflatten(0, (-1, heads))


def _cut(x: Tensor) -> Tensor:
    """[B, T, H, channels] to [R, N, n, channels]; zeros fill up the last chunks, which are decays of one."""
    tokens = x.shape[1]
    count = (tokens + CHUNK - 1) // CHUNK
    if isinstance(tokens, int):
        if tokens % CHUNK:
            x = F.pad(x, (0, 0, 0, 0, 0, count * CHUNK - tokens))
    else:
        # A graph must not depend on how an open length divides: the number is handed through a tensor, as one of which
        # nothing is known, and a chunk more than needed makes it two or more for any length.
        count = torch.scalar_tensor(count + 1, dtype=torch.int64).item()
        torch._check(count >= 2)
        x = _first(F.pad(x, (0, 0, 0, 0, 0, 2 * CHUNK)), count * CHUNK)
    return x.transpose(1, 2).flatten(0, 1).unflatten(1, (count, CHUNK))


def _first(x: Tensor, tokens: int) -> Tensor:
    """The first tokens of [B, T, H, channels]; by index where the number is open, for the same reason."""
    if isinstance(tokens, int) and isinstance(x.shape[1], int):
        return x if x.shape[1] == tokens else x[:, :tokens]
    return x.index_select(1, torch.arange(tokens, device=x.device))


def _entering(added: Tensor, log_decay: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """States before each chunk and after the last one.

    Args:
        added: What each chunk adds, [R, N, d, e].
        log_decay: Logarithm of its decay, [R, N, d].
        first: State before the first chunk, [R, d, e].

    Returns:
        [R, N, d, e] and [R, d, e].
    """
    count = added.shape[1]
    if not isinstance(count, int):
        return _entering_open(added, log_decay, first)
    size = min(count, GROUP)
    groups = (count + size - 1) // size
    if missing := groups * size - count:
        added, log_decay = F.pad(added, (0, 0, 0, 0, 0, missing)), F.pad(log_decay, (0, 0, 0, missing))
    added = added.unflatten(1, (groups, size)).transpose(2, 3)  # R, G, d, g, e
    log_decay = log_decay.unflatten(1, (groups, size))  # R, G, g, d
    between, since, until, total = _decays(log_decay, inclusive=False)
    whole = (until[..., None, :] @ added).squeeze(-2)  # R, G, d, e
    if groups == 1:
        starts, last = first[:, None], whole[:, 0] + total[:, 0, :, None].exp() * first
    else:
        starts, last = _entering(whole, total, first)
    entering = between @ added + since[..., None] * starts[..., None, :]
    return _first(entering.transpose(2, 3).flatten(1, 2), count), last


def _entering_open(added: Tensor, log_decay: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one group, for a number of chunks that a graph leaves open.

    The sums between two chunks start anew for each first one: differences of one running sum would cancel.
    """
    added = torch.cat([first[:, None], added], dim=1).transpose(1, 2)  # R, d, N + 1, e
    log_decay = F.pad(log_decay, (0, 0, 1, 0)).mT  # R, d, N + 1
    places = torch.arange(added.shape[2], device=added.device)
    later = places[:, None] > places  # row after column
    sums = torch.where(later, log_decay[..., None], 0.0).cumsum(-2)
    states = torch.where(later | (places[:, None] == places), sums.exp(), 0.0) @ added
    states = states.transpose(1, 2)  # R, N + 1, d, e
    return states[:, :-1], states[:, -1]


def _decays(log_decay: Tensor, *, inclusive: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All decays inside sequences of n steps.

    Args:
        log_decay: Logarithms of the decays of the steps, [..., n, d].
        inclusive: A step reads after it has decayed and added; otherwise before.

    Returns:
        The decay from each step (column) to each that reads it (row), zero elsewhere, [..., d, n, n]; since the
        beginning, [..., d, n]; until the end, [..., d, n]; the logarithm of the whole, [..., d].
    """
    size = log_decay.shape[-2]
    dtype, device = log_decay.dtype, log_decay.device
    terms, hidden = (torch.tensor(table, dtype=dtype, device=device) for table in _terms(size, inclusive))
    sums = F.linear(log_decay.clamp(min=FLOOR).mT, terms, hidden)  # ..., d, sums
    between, since, until = sums[..., :-1].exp().split([size * size, size, size], dim=-1)
    return between.unflatten(-1, (size, size)), since, until, sums[..., -1]


@cache
def _terms(size: int, inclusive: bool) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """Which steps each sum of :func:`_decays` is made of, a row per sum, and minus infinity for pairs out of order."""
    steps = range(size)
    reads = [range(step + inclusive) for step in steps]  # what has decayed the state when a step reads
    pairs = [(row, column) for row in steps for column in steps]
    between = [[float(step in reads[row] and step > column) for step in steps] for row, column in pairs]
    since = [[float(step in reads[row]) for step in steps] for row in steps]
    until = [[float(step > column) for step in steps] for column in steps]
    rows = [*between, *since, *until, [1.0] * size]
    hidden = [0.0 if column in reads[row] else -math.inf for row, column in pairs]
    return tuple(tuple(row) for row in rows), (*hidden, *[0.0] * (2 * size + 1))
