"""Attention as a recurrence: the softmax-weighted mean of all values so far, by an associative scan.

Source: Feng et al. 2024, "Attention as an RNN" (Aaren), section 3. Differs: the scan takes blocks of tokens at once
and scans the blocks' summaries in turn, which gives the same sums with fewer and larger products.

Shape legend: B batch, L tokens, H heads, d channels of a head; inside, tokens come last or before the channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.dispatch import resolve_form
from graftwork.errors import ConfigError, ShapeError

CHUNK = 32


class ScanState(NamedTuple):
    """What the recurrence remembers of the tokens before; its size does not depend on their number.

    The shift only keeps exponentials in range: results do not depend on it, so no gradient flows through it.

    Attributes:
        shift: Largest logit so far, [B, H].
        weight: Sum of exp(logit - shift), [B, H].
        total: Sum of exp(logit - shift) * value, [B, H, d].
    """

    shift: Tensor
    weight: Tensor
    total: Tensor


def scan_attention(
    logits: Tensor,
    values: Tensor,
    *,
    state: ScanState | None = None,
    chunk: int = CHUNK,
    backend: str = "auto",
) -> tuple[Tensor, ScanState]:
    """Output i is the mean of values up to i, weighted by the softmax of the logits up to i.

    Args:
        logits: [B, L, H]; -inf hides a token. Differences count, not sizes: logits of 1e4 lose no precision.
        values: [B, L, H, d].
        state: What the call for the tokens before returned; None at the beginning.
        chunk: Tokens of a block. Beside inputs and output, L * chunk weights per head are held for the backward.
        backend: ``math`` for the literal masked softmax over an L x L matrix.

    Returns:
        [B, L, H, d] in the values' type (zeros where no token is visible so far), and the state after the last token,
        float32 for half types. Step by step with the state gives the same as one pass.

    Raises:
        ShapeError: Logits and values that do not fit each other or the state.
        ConfigError: Unknown backend, or a chunk below 2.
    """
    _check(logits, values, state, chunk)
    # A length unknown in an exported graph cannot be cut into blocks.
    literal = resolve_form("scan_attention", backend) == "math" or not isinstance(values.shape[1], int)
    with torch.autocast(values.device.type, enabled=False):
        precise = torch.promote_types(torch.promote_types(values.dtype, logits.dtype), torch.float32)
        scores, content = logits.to(precise).transpose(1, 2), values.to(precise).transpose(1, 2)  # B, H, L(, d)
        past = None if state is None else ScanState(*(part.to(precise) for part in state))
        if values.shape[1] == 0:
            return values, _nothing(content) if past is None else past
        mixed, after = _literal(scores, content, past) if literal else _scan(scores, content, past, chunk)
    return mixed.transpose(1, 2).to(values.dtype), after


def _scan(scores: Tensor, values: Tensor, past: ScanState | None, chunk: int) -> tuple[Tensor, ScanState]:
    # A token's own weight exp(logit - shift) is one and carries the gradient; a hidden token keeps its place with
    # weight zero and a finite shift below any real one.
    shift = scores.detach().clamp(min=_floor(scores))
    weight = torch.exp(scores - shift)
    sums = _prefixes(ScanState(shift, weight, weight[..., None] * values), chunk)
    if past is not None:
        sums = _join(ScanState(past.shift[..., None], past.weight[..., None], past.total[..., None, :]), sums)
    after = ScanState(sums.shift[..., -1], sums.weight[..., -1], sums.total[..., -1, :])
    return _mean(sums.weight, sums.total), after


def _prefixes(items: ScanState, chunk: int) -> ScanState:
    """Combine each element with all before it; the tokens are the last axis (of ``total`` the last but one)."""
    tokens = items.shift.shape[-1]
    if tokens <= chunk:
        return _block(items)
    missing = -tokens % chunk
    blocks = _block(
        ScanState(
            F.pad(items.shift, (0, missing), value=_floor(items.shift)).unflatten(-1, (-1, chunk)),
            F.pad(items.weight, (0, missing)).unflatten(-1, (-1, chunk)),
            F.pad(items.total, (0, 0, 0, missing)).unflatten(-2, (-1, chunk)),  # ..., blocks, chunk, d
        )
    )
    # The last element of a block sums it up; a block's past is the scan over the sums of the blocks before.
    ends = ScanState(blocks.shift[..., :-1, -1], blocks.weight[..., :-1, -1], blocks.total[..., :-1, -1, :])
    past = _prefixes(ends, chunk)
    past = ScanState(
        F.pad(past.shift, (1, 0), value=_floor(past.shift))[..., None],
        F.pad(past.weight, (1, 0))[..., None],
        F.pad(past.total, (0, 0, 1, 0))[..., None, :],
    )
    whole = _join(past, blocks)
    return ScanState(
        whole.shift.flatten(-2)[..., :tokens],
        whole.weight.flatten(-2)[..., :tokens],
        whole.total.flatten(-3, -2)[..., :tokens, :],
    )


def _block(items: ScanState) -> ScanState:
    """The scan of few elements as one triangular product, [..., T, T] times [..., T, d]."""
    tokens = items.shift.shape[-1]
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=items.shift.device).triu(1)
    shifts = items.shift[..., None, :].masked_fill(later, float("-inf"))  # ..., T, T
    shift = shifts.amax(-1)
    factors = torch.exp(shifts - shift[..., None])
    return ScanState(shift, (factors @ items.weight[..., None]).squeeze(-1), factors @ items.total)


def _join(past: ScanState, items: ScanState) -> ScanState:
    """The associative combination of what came before and what comes now, shapes broadcast."""
    shift = torch.maximum(past.shift, items.shift)
    before, now = torch.exp(past.shift - shift), torch.exp(items.shift - shift)
    total = before[..., None] * past.total + now[..., None] * items.total
    return ScanState(shift, before * past.weight + now * items.weight, total)


def _literal(scores: Tensor, values: Tensor, past: ScanState | None) -> tuple[Tensor, ScanState]:
    tokens = scores.shape[-1]
    shift = scores.detach().amax(-1).clamp(min=_floor(scores))
    weights = torch.exp(scores - shift[..., None])
    after = ScanState(shift, weights.sum(-1), (weights[..., None] * values).sum(-2))
    logits = scores[..., None, :].expand(*scores.shape, tokens)  # B, H, L, L
    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).tril()
    logits = logits.masked_fill(~visible, float("-inf"))
    if past is not None:  # everything before counts as one token
        after = _join(past, after)
        some = past.weight > 0
        size = torch.where(some, past.weight, torch.ones_like(past.weight)).log()
        first = (past.shift + size).masked_fill(~some, float("-inf"))
        logits = torch.cat([first[..., None, None].expand(*scores.shape, 1), logits], dim=-1)
        values = torch.cat([_mean(past.weight, past.total)[..., None, :], values], dim=-2)
    empty = (logits == float("-inf")).all(-1, keepdim=True)
    mixed = torch.softmax(logits.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0) @ values
    return mixed, after


def _mean(weight: Tensor, total: Tensor) -> Tensor:
    """Total over weight, zeros where there is no weight."""
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))[..., None]


def _floor(like: Tensor) -> float:
    return torch.finfo(like.dtype).min / 4


def _nothing(values: Tensor) -> ScanState:
    batch, heads, _, channels = values.shape
    none = values.new_zeros(batch, heads)
    return ScanState(none + _floor(values), none, values.new_zeros(batch, heads, channels))


def _check(logits: Tensor, values: Tensor, state: ScanState | None, chunk: int) -> None:
    if values.dim() != 4:
        raise ShapeError(f"values: expected [batch, tokens, heads, channels], got {list(values.shape)}")
    if logits.shape != values.shape[:3]:
        raise ShapeError(f"logits: expected {list(values.shape[:3])} to fit the values, got {list(logits.shape)}")
    expected = (values.shape[0], *values.shape[2:])
    if state is not None and state.total.shape != expected:
        raise ShapeError(f"state.total: expected {list(expected)} to fit the values, got {list(state.total.shape)}")
    if chunk < 2:
        raise ConfigError(f"chunk={chunk} must be at least 2")
