"""Flow-attention: competition among sources and allocation among sinks by conserved flows, linear in the tokens.

Source: Wu et al. 2022, "Flowformer: Linearizing Transformers with Conservation Flows". Differs: masks are known (the
result for valid tokens equals that of the sequence without the others), and the causal form carries a state.

Shape legend: B batch, L sinks (queries), S sources (keys), H heads, d channels of a head, e channels of a head of
values. The functions below work on [B, H, tokens, channels], flows are [B, H, tokens].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.attention.attend import check_tokens
from backbones.attention.dispatch import resolve_form
from graftwork.errors import ConfigError, ShapeError

CHUNK = 128
HIDDEN = -1e30  # stands for minus infinity, and yet two of them may be subtracted


class FlowState(NamedTuple):
    """What causal flow-attention remembers of the tokens before; its size does not depend on their number.

    Attributes:
        seen: Valid tokens so far, [B, 1, 1].
        keys: Sum of phi(k), [B, H, 1, d].
        queries: Sum of phi(q), [B, H, 1, d].
        key_flow: Sum of phi(k) over its outgoing flow, [B, H, 1, d].
        query_flow: Sum of phi(q) over its incoming flow, [B, H, 1, d].
        competition: Logarithm of the sum of exp(conserved outgoing flow), [B, H, 1].
        product: Sum of phi(k) outer competing value, [B, H, d, e].
    """

    seen: Tensor
    keys: Tensor
    queries: Tensor
    key_flow: Tensor
    query_flow: Tensor
    competition: Tensor
    product: Tensor


def flow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    clamp: float | None = None,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    chunk: int = CHUNK,
    backend: str = "auto",
) -> Tensor:
    """Mix values by conserved flows between sinks and sources.

    Args:
        q: Sinks, [B, L, H, d].
        k: Sources, [B, S, H, d].
        v: Values of the sources, [B, S, H, e].
        causal: Sink i reads from sources up to i only; needs L = S. Padding belongs at the end, or in ``key_mask``.
        clamp: Bound on the competition logits on both sides of zero; None for no bound.
        eps: Added to both factors of each inner product of flows.
        key_mask: True for valid sources, [B, S].
        query_mask: True for valid sinks, [B, L]; with ``causal`` that of the keys counts.
        chunk: Tokens the causal form takes at once.
        backend: ``math`` for the literal sums, with a cumulative [L, d, e] tensor where causal.

    Returns:
        [B, L, H, e] in the type of the values. Sums are made in float32 for half types.

    Raises:
        ShapeError: Tensors that do not fit each other, or L != S with ``causal``.
        ConfigError: Unknown backend, a bound that is not positive or a chunk below 1.
    """
    if causal:
        return causal_flow(q, k, v, clamp=clamp, eps=eps, mask=key_mask, chunk=chunk, backend=backend)[0]
    _check(q, k, v, causal, clamp, chunk, key_mask, query_mask)
    literal = resolve_form("flow_attention", backend) == "math"
    with _precise(q):
        phi_q, phi_k, values = _features(q, k, v)
        valid_q, valid_k = _valid(query_mask, phi_q), _valid(key_mask, phi_k)
        mixed = _bidirectional(phi_q, phi_k, values, valid_q, valid_k, clamp, eps, literal)
    return mixed.transpose(1, 2).to(v.dtype)


def causal_flow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    clamp: float | None = None,
    eps: float = 1e-6,
    mask: Tensor | None = None,
    state: FlowState | None = None,
    chunk: int = CHUNK,
    backend: str = "auto",
) -> tuple[Tensor, FlowState]:
    """Causal flow-attention that goes on where an earlier call stopped.

    Args:
        q: Sinks, [B, L, H, d].
        k: Sources, [B, L, H, d].
        v: Values, [B, L, H, e].
        clamp: See :func:`flow_attention`.
        eps: See :func:`flow_attention`.
        mask: True for valid tokens, [B, L].
        state: What the call for the tokens before returned; None at the beginning.
        chunk: Tokens taken at once.
        backend: ``math`` for the literal cumulative sums.

    Returns:
        [B, L, H, e] and the state after the last token.

    Raises:
        ShapeError: Tensors that do not fit each other.
        ConfigError: Unknown backend, a bound that is not positive or a chunk below 1.
    """
    _check(q, k, v, True, clamp, chunk, mask, None)
    # A length unknown in an exported graph cannot be cut into chunks.
    if resolve_form("flow_attention", backend) == "math" or not isinstance(q.shape[1], int):
        chunk = 0
    with _precise(q):
        phi_q, phi_k, values = _features(q, k, v)
        valid = _valid(mask, phi_k)
        state = _fresh(phi_k, values) if state is None else state
        mixed, state = _causal(phi_q, phi_k, values, valid, clamp, eps, state, chunk)
    return mixed.transpose(1, 2).to(v.dtype), state


def _bidirectional(
    phi_q: Tensor,
    phi_k: Tensor,
    values: Tensor,
    valid_q: Tensor,
    valid_k: Tensor,
    clamp: float | None,
    eps: float,
    literal: bool,
) -> Tensor:
    sinks, sources = valid_q.sum(-1, keepdim=True), valid_k.sum(-1, keepdim=True)  # B, 1, 1
    seen_q, seen_k = phi_q * valid_q[..., None], phi_k * valid_k[..., None]
    incoming = _flow(phi_q, seen_k.sum(-2, keepdim=True), eps)
    outgoing = _flow(phi_k, seen_q.sum(-2, keepdim=True), eps)
    conserved_in = _flow(phi_q, (seen_k / outgoing[..., None]).sum(-2, keepdim=True), eps)
    conserved_out = _flow(phi_k, (seen_q / incoming[..., None]).sum(-2, keepdim=True), eps)
    logits = _bounded(conserved_out, clamp).masked_fill(valid_k == 0, HIDDEN)
    competing = values * (torch.softmax(logits, dim=-1) * sources)[..., None]
    allocation = torch.sigmoid(conserved_in * sinks / sources.clamp(min=1))
    share = phi_q / incoming[..., None]
    if literal:
        mixed = (share @ seen_k.transpose(-2, -1)) @ competing  # the L x S matrix the paper avoids
    else:
        mixed = share @ (seen_k.transpose(-2, -1) @ competing)
    return mixed * allocation[..., None]


def _causal(
    phi_q: Tensor,
    phi_k: Tensor,
    values: Tensor,
    valid: Tensor,
    clamp: float | None,
    eps: float,
    state: FlowState,
    chunk: int,
) -> tuple[Tensor, FlowState]:
    count = valid.cumsum(-1) + state.seen  # B, 1, L
    steps = count.clamp(min=1)
    seen_q, seen_k = phi_q * valid[..., None], phi_k * valid[..., None]
    keys, queries = seen_k.cumsum(-2) + state.keys, seen_q.cumsum(-2) + state.queries
    incoming, outgoing = _flow(phi_q, keys, eps), _flow(phi_k, queries, eps)
    key_flow = (seen_k * (steps / outgoing)[..., None]).cumsum(-2) + state.key_flow
    query_flow = (seen_q * (steps / incoming)[..., None]).cumsum(-2) + state.query_flow
    conserved_in, conserved_out = _flow(phi_q, key_flow, eps) / steps, _flow(phi_k, query_flow, eps) / steps
    logits = _bounded(conserved_out, clamp).masked_fill(valid == 0, HIDDEN)
    # The literal exp over cumulative sum of exp would overflow without a bound; its logarithm does not.
    total = torch.logcumsumexp(torch.cat([state.competition, logits], dim=-1), dim=-1)[..., 1:]
    competing = values * (torch.exp(logits - total) * count)[..., None]
    product, last = _causal_product(phi_q, seen_k, competing, state.product, chunk)
    mixed = product * (torch.sigmoid(conserved_in) / incoming)[..., None]
    if not phi_q.shape[-2]:
        return mixed, state
    return mixed, FlowState(
        count[..., -1:],
        keys[..., -1:, :],
        queries[..., -1:, :],
        key_flow[..., -1:, :],
        query_flow[..., -1:, :],
        total[..., -1:],
        last,
    )


def _causal_product(q: Tensor, k: Tensor, v: Tensor, start: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """``q_i (start + sum over j <= i of k_j v_j^T)`` and the sum at the end."""
    if chunk == 0:
        sums = (k[..., :, None] * v[..., None, :]).cumsum(-3) + start[..., None, :, :]  # B, H, L, d, e
        return (q[..., None, :] @ sums).squeeze(-2), start + k.transpose(-2, -1) @ v
    mixed: Tensor = CausalProduct.apply(q, k, v, chunk)
    return mixed + q @ start, start + k.transpose(-2, -1) @ v


class CausalProduct(torch.autograd.Function):
    """``out_i = sum over j <= i of (q_i . k_j) v_j`` in chunks with one running d x e sum.

    Beside inputs and output it holds one chunk x chunk product and the running sum, in the backward too: the
    gradients are the same operator on other arguments, read forwards for q and backwards for k and v.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
        """Run the operator; all tensors [B, H, L, channels]."""
        ctx.save_for_backward(q, k, v)
        ctx.chunk = chunk
        return _chunked_product(q, k, v, chunk, backwards=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v; differentiable again."""
        (gradient,) = gradients
        q, k, v = ctx.saved_tensors
        grad_q = CausalProduct.apply(gradient, v, k, ctx.chunk)
        grad_k = _reversed_product(v, gradient, q, ctx.chunk)
        grad_v = _reversed_product(k, q, gradient, ctx.chunk)
        return grad_q, grad_k, grad_v, None


def _reversed_product(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    if torch.is_grad_enabled():  # a second derivative is wanted
        product: Tensor = CausalProduct.apply(q.flip(-2), k.flip(-2), v.flip(-2), chunk)
        return product.flip(-2)
    return _chunked_product(q, k, v, chunk, backwards=True)


def _chunked_product(q: Tensor, k: Tensor, v: Tensor, chunk: int, *, backwards: bool) -> Tensor:
    tokens = q.shape[-2]
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    running = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1])
    starts = range(0, tokens, chunk)
    for start in reversed(starts) if backwards else starts:
        part = slice(start, min(start + chunk, tokens))
        q_part, k_part, v_part = q[..., part, :], k[..., part, :], v[..., part, :]
        near = q_part @ k_part.transpose(-2, -1)  # B, H, chunk, chunk
        near = near.triu() if backwards else near.tril()
        out[..., part, :] = near @ v_part + q_part @ running
        running = running + k_part.transpose(-2, -1) @ v_part
    return out


def _flow(features: Tensor, sums: Tensor, eps: float) -> Tensor:
    return ((features + eps) * (sums + eps)).sum(-1)


def _bounded(flow: Tensor, clamp: float | None) -> Tensor:
    return flow if clamp is None else flow.clamp(-clamp, clamp)


def _features(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    precise = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (tensor.to(precise).transpose(1, 2) for tensor in (q, k, v))  # B, H, tokens, channels
    return torch.sigmoid(q), torch.sigmoid(k), v


def _valid(mask: Tensor | None, features: Tensor) -> Tensor:
    """One for valid tokens and zero for others, [B, 1, tokens], in the features' type."""
    if mask is None:
        return features.new_ones(features.shape[0], 1, features.shape[2])
    return mask[:, None].to(features.dtype)


def _fresh(phi_k: Tensor, values: Tensor) -> FlowState:
    batch, heads, _, width = phi_k.shape
    sums = phi_k.new_zeros(batch, heads, 1, width)
    product = phi_k.new_zeros(batch, heads, width, values.shape[-1])
    count, competition = phi_k.new_zeros(batch, 1, 1), phi_k.new_full((batch, heads, 1), 2 * HIDDEN)
    return FlowState(count, sums, sums, sums, sums, competition, product)


def _precise(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    clamp: float | None,
    chunk: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
) -> None:
    check_tokens(q, k, v)
    if causal and q.shape[1] != k.shape[1]:
        raise ShapeError(f"k: causal flow attention needs as many keys as queries {list(q.shape)}, got {list(k.shape)}")
    for name, mask, tokens in (("key_mask", key_mask, k), ("query_mask", query_mask, q)):
        if mask is not None and mask.shape != tokens.shape[:2]:
            raise ShapeError(f"{name}: expected {list(tokens.shape[:2])}, got {list(mask.shape)}")
    if clamp is not None and clamp <= 0:
        raise ConfigError(f"clamp={clamp} must be positive", mend="Use None for no bound")
    if chunk < 1:
        raise ConfigError(f"chunk={chunk} must be at least 1")
