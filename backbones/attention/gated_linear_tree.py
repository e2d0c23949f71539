"""Gated linear attention by halves: exact for any gates, and a small graph of plain operators.

Blocks of tokens are joined in pairs, again and again. The queries of a right block meet the keys of the left block
beside it through two decays, from the border to the query and from the key to the border, so every factor is a product
of decays and never above one: nothing overflows, and a gate of minus infinity forgets everything before it. There is
one exponential per token, and no loop over tokens or chunks: rounds of joining, and of the scan over chunks, are
logarithms of their number. It serves traced graphs, where numbers cannot be looked at, and gates that are too extreme
for :mod:`backbones.attention.gated_linear_chunks`.

Shape legend: B batch, T tokens, H heads, d channels of a head, e channels of a head of values; N chunks, n tokens of a
chunk, M = N * B * H; P pairs of blocks of h tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32
"""Tokens of a chunk, a power of two."""


def by_halves(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
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
    tokens, chunks = q.shape[1], _count(q.shape[1])
    q, k, v, log_gate = (_cut(x, chunks) for x in (q, k, v, log_gate))
    each = (chunks, *state.shape[:2])
    near, q, k, decay = _within_chunks(q, k, v, log_gate.exp())
    added = torch.cat([state[None], torch.bmm(k.mT, v).unflatten(0, each)])  # N + 1, B, H, d, e
    if isinstance(tokens, int):
        decay = decay.mT.unflatten(0, each)  # N, B, H, d, 1
        states = _prefixes(added, torch.cat([decay[:1], decay]))
    else:
        total = log_gate.sum(1).unflatten(0, each)  # N, B, H, d
        states = _prefix_products(added, torch.cat([total[:1], total]))
    mixed = torch.baddbmm(near, q, states[:-1].flatten(0, 2)).unflatten(0, each)  # N, B, H, n, e
    mixed = mixed.permute(1, 0, 3, 2, 4).flatten(1, 2)  # B, T and more, H, e
    return mixed.index_select(1, torch.arange(tokens, device=mixed.device)), states[-1]


def _count(tokens: int) -> int:
    """Number of chunks."""
    if isinstance(tokens, int):
        return (tokens + CHUNK - 1) // CHUNK
    # A graph must not depend on how an open length divides: the number is handed through a tensor, as one of which
    # nothing is known, and a chunk more than needed makes it two or more for any length.
    count: int = torch.scalar_tensor((tokens + CHUNK - 1) // CHUNK + 1, dtype=torch.int64).item()
    torch._check(count >= 2)
    return count


def _cut(x: Tensor, chunks: int) -> Tensor:
    """[B, T, H, channels] to [M, n, channels]; zeros fill up the last chunks, which are decays of one."""
    x = F.pad(x, (0, 0, 0, 0, 0, 2 * CHUNK)).index_select(1, torch.arange(chunks * CHUNK, device=x.device))
    return x.unflatten(1, (chunks, CHUNK)).permute(1, 0, 3, 2, 4).flatten(0, 2)


def _within_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What tokens read inside their chunk, and the factors of what they read before and leave behind.

    Args:
        q: Queries, [M, n, d].
        k: Keys, [M, n, d].
        v: Values, [M, n, e].
        decay: Of every token, [M, n, d].

    Returns:
        Values read, [M, n, e]; queries with the decay since the chunk's start, and keys with the decay to its end,
        [M, n, d] each; the decay over the chunk, [M, 1, d].
    """
    mixed = (q * k).sum(-1, keepdim=True) * v
    q = q * decay
    size = 1
    while size < CHUNK:
        pairs = v.shape[0] * (CHUNK // (2 * size))
        (q, q_right), (k, k_right), (mixed, mixed_right) = (_pairs(x, pairs, size) for x in (q, k, mixed))  # P, h, ..
        decay, decay_right = _pairs(decay, pairs, 1)  # P, 1, d
        v_left, _ = _pairs(v, pairs, size)
        read = torch.bmm(torch.bmm(q_right, k.mT), v_left)
        mixed = torch.cat([mixed, mixed_right + read], dim=1)
        q = torch.cat([q, q_right * decay], dim=1)
        k = torch.cat([k * decay_right, k_right], dim=1)
        decay = decay * decay_right
        size *= 2
    return mixed, q, k, decay


def _pairs(x: Tensor, pairs: int, size: int) -> tuple[Tensor, Tensor]:
    """Blocks of tokens, in order, to the left and the right ones of all pairs, [P, h, channels]."""
    blocks = x.reshape(pairs, 2, size, x.shape[-1])
    return blocks[:, 0], blocks[:, 1]


def _prefixes(added: Tensor, decay: Tensor) -> Tensor:
    """``s_i = decay_i s_(i-1) + added_i`` along the first axis, by pairs, pairs of pairs and so on.

    Args:
        added: [N, ..., d, e].
        decay: [N, ..., d, 1]; the first is not read.
    """
    count = added.shape[0]
    if count == 1:
        return added
    pairs = count // 2
    first, second = added[0 : 2 * pairs : 2], added[1::2]
    first_decay, second_decay = decay[0 : 2 * pairs : 2], decay[1::2]
    ends = _prefixes(second + second_decay * first, second_decay * first_decay)  # after every second one
    others = torch.cat([added[:1], added[2::2] + decay[2::2] * ends[: (count - 1) // 2]])
    both = torch.stack([others[:pairs], ends], dim=1).flatten(0, 1)
    return both if count % 2 == 0 else torch.cat([both, others[pairs:]])


def _prefix_products(added: Tensor, log_decay: Tensor) -> Tensor:
    """The same as one product per channel, for a number of chunks that a graph leaves open.

    The N x N exponents are sums that start anew for every column: differences of one running sum would cancel.

    Args:
        added: [N, B, H, d, e].
        log_decay: [N, B, H, d]; the first is not read.
    """
    places = torch.arange(added.shape[0], device=added.device)
    later = places[:, None] > places  # row after column
    sums = torch.where(later, log_decay.permute(1, 2, 3, 0)[..., None], 0.0).cumsum(-2)  # B, H, d, N, N
    weights = torch.where(later | (places[:, None] == places), sums.exp(), 0.0)
    return (weights @ added.permute(1, 2, 3, 0, 4)).permute(3, 0, 1, 2, 4)
