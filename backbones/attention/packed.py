"""Softmax attention inside each of many sequences that lie one after the other, not padded all to the longest.

Three forms of the same sum:

- ``math``: a loop over the sequences;
- ``xformers``: its kernels take the packed tokens as they are (CUDA);
- ``fast``: sequences of like length are taken together. A group is padded to its longest sequence as long as that
  costs less than a call of its own would, so that neither padding nor the number of calls gets out of hand; groups of
  one length need neither padding nor a mask.

Shape legend: Tq and Tk query and key tokens of all sequences, H heads, d channels of a head, e channels of a head of
values, n sequences of a group, Lq and Lk their longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.attention.attend import attend, autocast_types
from backbones.attention.backends import xformers
from backbones.attention.dispatch import Request, resolve_kernel, wish
from backbones.attention.tables import table
from graftwork.errors import ConfigError, ShapeError

OPERATOR = "attend_packed"
CALL_COST = {"cpu": 1 << 15}
"""Pairs of a query and a key of one head whose attention takes as long as a call of its own, by device; measured."""
GPU_CALL_COST = 1 << 22
"""The same elsewhere; an estimate."""


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_lengths: Sequence[int] | Tensor,
    k_lengths: Sequence[int] | Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Let every query read a weighted mean of the values of its own sequence.

    There is no bias: one that differs by sequence would be as large as the padding this operator avoids.

    Args:
        q: Queries of all sequences, one after the other, [Tq, H, d].
        k: Keys, [Tk, H, d].
        v: Values, [Tk, H, e].
        q_lengths: Query tokens of each sequence, zeros allowed; they add up to Tq. A tensor on a GPU is waited for.
        k_lengths: Key tokens of each sequence, zeros allowed (its queries then give zeros, with gradients of zero);
            like ``q_lengths`` if omitted.
        causal: The last query of a sequence sees all its keys, each query before it one key less.
        scale: Factor on the logits; d ** -0.5 if omitted.
        dropout: Share of the weights dropped. The caller passes 0 outside training.
        backend: ``math`` for a loop over the sequences; ``xformers`` for its kernels; ``sdpa`` for groups served by it.

    Returns:
        [Tq, H, e] in the type of the values; under autocast in its type.

    Raises:
        ShapeError: Tensors that do not fit each other, or lengths that do not add up to them.
        ConfigError: Unknown backend, one wanted that cannot serve this call, or dropout out of its range.
    """
    q_counts = _counts("q_lengths", q_lengths)
    k_counts = q_counts if k_lengths is None else _counts("k_lengths", k_lengths)
    _check(q, k, v, q_counts, k_counts, dropout)
    q, k, v = autocast_types(q, k, v)
    problem = _kernel_problem(q_counts, k_counts, causal)
    name, source = wish(backend)
    if name == "xformers" and problem:
        raise ConfigError(
            f"attention backend 'xformers' cannot serve this call of {OPERATOR}: {problem}",
            where=source,
            mend="Use 'auto' or 'math'",
        )
    form = resolve_kernel(OPERATOR, _request(q, k, v, causal, dropout), () if problem else ("xformers",), backend)
    if form == "xformers":
        return xformers.run_packed(q, k, v, q_counts, k_counts, causal=causal, scale=scale, dropout=dropout)
    if form == "math":
        return _one_by_one(q, k, v, q_counts, k_counts, causal, scale, dropout)
    return _in_groups(q, k, v, _plan(q_counts, k_counts, causal, q.shape[1], q.device), causal, scale, dropout, backend)


def _one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_counts: tuple[int, ...],
    k_counts: tuple[int, ...],
    causal: bool,
    scale: float | None,
    dropout: float,
) -> Tensor:
    if not q_counts:
        return _nothing(q, k, v)
    sequences = zip(q.split(q_counts), k.split(k_counts), v.split(k_counts), strict=True)
    options: dict[str, Any] = {"causal": causal, "scale": scale, "dropout": dropout}
    return torch.cat([attend(a[None], b[None], c[None], backend="math", **options)[0] for a, b, c in sequences])


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros for queries that have no keys, with gradients of zero."""
    return attend(q[None], k[None, :0], v[None, :0], backend="math")[0]


class Group(NamedTuple):
    """Sequences taken together.

    Attributes:
        sequences: Their number, n.
        queries: Query tokens of the longest.
        keys: Key tokens of the longest.
        valid: Key tokens of each, [n]; None where no query could see beyond them.
    """

    sequences: int
    queries: int
    keys: int
    valid: Tensor | None


class Plan(NamedTuple):
    """How packed tokens are laid out for the groups.

    Attributes:
        groups: The groups, in the order of the tokens they take.
        q_index: Query tokens in that order, padding included; None for all tokens as they are.
        k_index: Key tokens likewise.
        restore: Where the results of the query tokens are then; one past the end for queries without keys.
        gaps: There are such queries.
    """

    groups: tuple[Group, ...]
    q_index: Tensor | None
    k_index: Tensor | None
    restore: Tensor | None
    gaps: bool


def _in_groups(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, causal: bool, scale: float | None, dropout: float, backend: str
) -> Tensor:
    if not plan.groups:
        return _nothing(q, k, v)
    if plan.q_index is not None:
        q = q.index_select(0, plan.q_index)
    if plan.k_index is not None:
        k, v = k.index_select(0, plan.k_index), v.index_select(0, plan.k_index)
    queries = q.split([group.sequences * group.queries for group in plan.groups])
    keys, values = (tensor.split([group.sequences * group.keys for group in plan.groups]) for tensor in (k, v))
    mixed = []
    for group, *parts in zip(plan.groups, queries, keys, values, strict=True):
        batches = (part.unflatten(0, (group.sequences, -1)) for part in parts)  # n, Lq or Lk, H, d or e
        together = attend(*batches, causal=causal, lengths=group.valid, scale=scale, dropout=dropout, backend=backend)
        mixed.append(together.flatten(0, 1))
    if plan.gaps:
        mixed.append(mixed[0].new_zeros(1, *mixed[0].shape[1:]))
    out = torch.cat(mixed) if len(mixed) > 1 else mixed[0]
    return out if plan.restore is None else out.index_select(0, plan.restore)


@table(maxsize=32)
def _plan(q_counts: tuple[int, ...], k_counts: tuple[int, ...], causal: bool, heads: int, device: torch.device) -> Plan:
    allowed = CALL_COST.get(device.type, GPU_CALL_COST) // max(heads, 1)
    members = list(_grouped(q_counts, k_counts, causal, allowed))
    q_layouts, k_layouts = ([_layout(counts, group) for group in members] for counts in (q_counts, k_counts))
    groups = tuple(
        Group(
            len(q_layout.tokens), q_layout.tokens.shape[1], k_layout.tokens.shape[1], _valid(k_layout, causal, device)
        )
        for q_layout, k_layout in zip(q_layouts, k_layouts, strict=True)
    )
    restore, places = torch.full((sum(q_counts),), -1), 0
    for layout in q_layouts:
        taken = layout.present.flatten()
        restore[layout.tokens.flatten()[taken]] = places + taken.nonzero().squeeze(1)
        places += len(taken)
    gaps = bool((restore < 0).any())
    restore[restore < 0] = places
    return Plan(
        groups,
        _unless_identity(_joined(q_layouts), sum(q_counts), device),
        _unless_identity(_joined(k_layouts), sum(k_counts), device),
        _unless_identity(restore, places, device),
        gaps,
    )


def _grouped(
    q_counts: tuple[int, ...], k_counts: tuple[int, ...], causal: bool, allowed: int
) -> Iterator[tuple[int, ...]]:
    """Numbers of the sequences of each group; sequences without queries or keys are in none.

    Args:
        q_counts: Query tokens of each sequence.
        k_counts: Key tokens of each.
        causal: Groups need one difference of key and query tokens, so that one triangle fits all.
        allowed: Pairs of a query and a key that may be padding in a group.
    """
    shifts = [keys - queries if causal else 0 for queries, keys in zip(q_counts, k_counts, strict=True)]
    sequences = [i for i in range(len(q_counts)) if q_counts[i] and k_counts[i]]
    sequences.sort(key=lambda i: (shifts[i], -q_counts[i], -k_counts[i]))  # stable: equal ones stay in their order
    group: list[int] = []
    queries = keys = pairs = 0
    for i in sequences:
        longest = max(queries, q_counts[i]), max(keys, k_counts[i])
        pairs += q_counts[i] * k_counts[i]
        padding = (len(group) + 1) * longest[0] * longest[1] - pairs
        if group and (padding > allowed or shifts[i] != shifts[group[0]]):
            yield tuple(group)
            group, longest, pairs = [], (q_counts[i], k_counts[i]), q_counts[i] * k_counts[i]
        group.append(i)
        queries, keys = longest
    if group:
        yield tuple(group)


class _Layout(NamedTuple):
    """Packed tokens as a padded batch, both [n, L]; padding repeats the last token of its own sequence."""

    tokens: Tensor
    present: Tensor


def _layout(counts: tuple[int, ...], group: tuple[int, ...]) -> _Layout:
    starts = list(accumulate(counts, initial=0))
    first, lengths = (torch.tensor([numbers[i] for i in group])[:, None] for numbers in (starts, counts))
    steps = torch.arange(int(lengths.max()))
    return _Layout(first + torch.minimum(steps, lengths - 1), steps < lengths)


def _valid(keys: _Layout, causal: bool, device: torch.device) -> Tensor | None:
    # The triangle of a causal group hides what lies beyond the keys of a sequence already.
    return None if causal or bool(keys.present.all()) else keys.present.sum(1).to(device)


def _joined(layouts: list[_Layout]) -> Tensor:
    return torch.cat([layout.tokens.flatten() for layout in layouts] or [torch.empty(0, dtype=torch.int64)])


def _unless_identity(index: Tensor, size: int, device: torch.device) -> Tensor | None:
    """The index, or None if it would give ``size`` tokens as they are."""
    return None if torch.equal(index, torch.arange(size)) else index.to(device)


def _counts(name: str, lengths: Sequence[int] | Tensor) -> tuple[int, ...]:
    if isinstance(lengths, Tensor) and (lengths.dim() != 1 or lengths.is_floating_point()):
        raise ShapeError(f"{name}: expected integers [sequences], got {lengths.dtype} {list(lengths.shape)}")
    return tuple(int(length) for length in (lengths.tolist() if isinstance(lengths, Tensor) else lengths))


def _kernel_problem(q_counts: tuple[int, ...], k_counts: tuple[int, ...], causal: bool) -> str | None:
    """Why the kernels for packed tokens are not asked for these lengths."""
    if not q_counts or 0 in q_counts or 0 in k_counts:
        return "a sequence is empty"
    if causal and any(queries > keys for queries, keys in zip(q_counts, k_counts, strict=True)):
        return "a causal sequence has more queries than keys"
    return None


def _request(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float) -> Request:
    return Request(
        device=q.device,
        dtype=q.dtype,
        batch=1,
        queries=q.shape[0],
        keys=k.shape[0],
        heads=q.shape[1],
        width=q.shape[2],
        value_width=v.shape[2],
        causal=causal,
        dropout=dropout,
        needs_grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)),
        packed=True,
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_counts: tuple[int, ...], k_counts: tuple[int, ...], dropout: float
) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3:
            raise ShapeError(f"{name}: expected [tokens, heads, channels], got {list(tensor.shape)}")
    if k.shape[1:] != q.shape[1:]:
        raise ShapeError(f"k: expected [tokens, {q.shape[1]}, {q.shape[2]}] to fit q, got {list(k.shape)}")
    if v.shape[:2] != k.shape[:2]:
        raise ShapeError(f"v: expected [{k.shape[0]}, {k.shape[1]}, channels] to fit k, got {list(v.shape)}")
    if len(q_counts) != len(k_counts):
        raise ShapeError(f"k_lengths: expected {len(q_counts)} sequences as in q_lengths, got {len(k_counts)}")
    for name, counts, tensor in (("q_lengths", q_counts, q), ("k_lengths", k_counts, k)):
        if min(counts, default=0) < 0 or sum(counts) != tensor.shape[0]:
            raise ShapeError(
                f"{name}: expected no negative number and a sum of {tensor.shape[0]}, the tokens of "
                f"{list(tensor.shape)}, got a sum of {sum(counts)} over {len(counts)} sequences"
            )
    if not 0 <= dropout <= 1:
        raise ConfigError(f"dropout={dropout} must be between 0 and 1")
