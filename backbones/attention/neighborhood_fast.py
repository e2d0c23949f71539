"""Neighborhood attention tile by tile: exact, with memory linear in the positions of the map.

Eager calls run :class:`TiledAttention`, which holds one chunk of logits at a time, in the processor's cache, and makes
them again in the backward pass. Traced calls (compiled, exported) and second derivatives run :func:`traced_attention`,
the same in plain operations.

Measured on a CPU (torch 2.10): explicit products and softmax are faster than fused attention at these sizes, tiles of 6
faster than others, and keeping the weights for the backward pass would save 10 to 20 % of a forward and backward pass
of the operator, for a third more memory of a whole block, so they are not kept.

Shape legend: as in neighborhood_tiles; N tiles of a chunk over all batches and heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.attend import without_autocast
from backbones.attention.neighborhood_tiles import Group, Table, groups
from backbones.attention.neighborhood_traced import traced_attention

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Logits held at once, by kind of device; others hold as many as they like."""
UNLIMITED = 1 << 62


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> Tensor:
    """Neighborhood attention on a map of at least ``kernel * dilation`` positions along both axes.

    Args:
        q: [B, H, W, h, c].
        k: [B, H, W, h, c].
        v: [B, H, W, h, e].
        bias: [h, 2 * kernel[0] - 1, 2 * kernel[1] - 1], or None.
        kernel: Odd sides of the window.
        dilation: Steps between neighbours.
        scale: Factor on the products of queries and keys.

    Returns:
        [B, H, W, h, e] in the type of the values. Sums are made in float32 for half types.
    """
    with without_autocast(q):
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return traced_attention(q, k, v, bias, kernel, dilation, scale)
        mixed: Tensor = TiledAttention.apply(q, k, v, bias, kernel, dilation, scale)
        return mixed


class TiledAttention(torch.autograd.Function):
    """Saves inputs only; arguments as in :func:`tiled_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        kernel: tuple[int, int],
        dilation: tuple[int, int],
        scale: float,
    ) -> Tensor:
        """Mix the values."""
        ctx.save_for_backward(q, k, v, bias)
        ctx.geometry = (kernel, dilation, scale)
        out = v.new_empty(v.shape)
        precise = torch.promote_types(q.dtype, torch.float32)
        entries = _bias_entries(bias, precise)
        for group in groups(*q.shape[1:3], kernel, dilation):
            tile_bias = _bias_of_tile(entries, group, q)
            queries, keys = group.windows(q, "queries"), group.windows(k, "keys")
            values, mixed = group.windows(v, "keys"), group.windows(out, "queries")
            for part in group.chunks(q.shape[0], q.shape[3], _chunk_elements(q)):
                _, weights = _weights(queries[part], _tokens(keys[part], precise), tile_bias, scale)
                target = mixed[part]
                target.copy_((weights @ _tokens(values[part], precise)).view(target.shape))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the bias; differentiable again."""
        q, k, v, bias = ctx.saved_tensors
        with without_autocast(q):
            if torch.is_grad_enabled():  # a second derivative is wanted
                found = _traced_gradients(gradients[0], q, k, v, bias, *ctx.geometry)
            else:
                found = _gradients(gradients[0], q, k, v, bias, ctx.needs_input_grad[3], *ctx.geometry)
        return (*found, None, None, None)


def _gradients(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    wants_bias: bool,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor | None, ...]:
    precise = torch.promote_types(q.dtype, torch.float32)
    entries = _bias_entries(bias, precise)
    grad_q = q.new_empty(q.shape)
    grad_k, grad_v = k.new_zeros(k.shape, dtype=precise), v.new_zeros(v.shape, dtype=precise)
    grad_bias = torch.zeros_like(bias, dtype=precise) if wants_bias and bias is not None else None
    for group in groups(*q.shape[1:3], kernel, dilation):
        tile_bias = _bias_of_tile(entries, group, q)
        tile_grad = q.new_zeros(q.shape[3], group.queries * group.keys, dtype=precise) if wants_bias else None
        inputs = [group.windows(q, "queries"), group.windows(k, "keys"), group.windows(v, "keys")]
        above, below = group.windows(gradient, "queries"), group.windows(grad_q, "queries")
        sums = group.windows(grad_k, "keys"), group.windows(grad_v, "keys")
        for part in group.chunks(q.shape[0], q.shape[3], _chunk_elements(q)):
            queries, keys, values = (tensor[part] for tensor in inputs)
            grad_queries, *blocks = _tile_gradients(above[part], queries, keys, values, tile_bias, tile_grad, scale)
            below[part].copy_(grad_queries.view(queries.shape))
            for target, found in zip(sums, blocks, strict=True):
                _add_overlapping(target[part], found, group)
        if grad_bias is not None and tile_grad is not None:
            grad_bias += _fold_bias(tile_grad, group)
    return (
        grad_q,
        grad_k.to(k.dtype),
        grad_v.to(v.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )


def _tile_gradients(
    above: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    tile_bias: Tensor | None,
    tile_grad: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a chunk's queries [N, M, c], keys [N, K, c] and values [N, K, e]; adds that of the bias."""
    precise = torch.promote_types(queries.dtype, torch.float32)
    k, v, grad_out = (_tokens(tensor, precise) for tensor in (keys, values, above))
    q, weights = _weights(queries, k, tile_bias, scale)
    grad_v = weights.mT @ grad_out
    grad_logits = torch.ops.aten._softmax_backward_data(grad_out @ v.mT, weights, -1, weights.dtype)
    if tile_grad is not None:
        tile_grad += grad_logits.view(queries.shape[0], queries.shape[1], -1, tile_grad.shape[1]).sum((0, 2))
    return (grad_logits @ k).mul_(scale), grad_logits.mT @ q, grad_v


def _weights(queries: Tensor, k: Tensor, tile_bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Scaled queries [N, M, c] and attention weights [N, M, K] of a chunk."""
    q = _tokens(queries, k.dtype) * scale
    logits = q @ k.mT
    if tile_bias is not None:
        per_head = logits.view(queries.shape[0], queries.shape[1], -1, *logits.shape[1:])  # B, h, tiles, M, K
        per_head += tile_bias[:, None]
    return q, torch.softmax(logits, dim=-1)


def _tokens(windows: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, h, r, n, r, n, S, S, c] to a copy [N, S * S, c]."""
    tiles = windows.shape[:6].numel()
    return windows.reshape(tiles, windows.shape[6] * windows.shape[7], windows.shape[8]).to(dtype)


def _add_overlapping(target: Tensor, found: Tensor, group: Group) -> None:
    """Add gradients of blocks of keys [N, K, c] to the map they overlap on, in layers of tiles that do not overlap."""
    blocks = found.view(target.shape)
    down, across = group.rows.phases, group.columns.phases
    for row, column in product(range(min(down, target.shape[3])), range(min(across, target.shape[5]))):
        rows, columns = slice(row, None, down), slice(column, None, across)
        target[:, :, :, rows, :, columns].add_(blocks[:, :, :, rows, :, columns])


def _chunk_elements(q: Tensor) -> int:
    return CHUNK_ELEMENTS.get(q.device.type, UNLIMITED)


def _bias_entries(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias table flattened, with minus infinity for hidden pairs at its end: [h, entries + 1]."""
    return None if bias is None else F.pad(bias.flatten(1).to(dtype), (0, 1), value=-torch.inf)


def _bias_of_tile(entries: Tensor | None, group: Group, like: Tensor) -> Tensor | None:
    """What is added to the logits of every tile of a group, [h or 1, M, K]; None where that is nothing.

    Args:
        entries: From :func:`_bias_entries`.
        group: The tiles.
        like: A tensor on the device of the logits.
    """
    if entries is None and group.sees_all:
        return None
    if entries is None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        entries = F.pad(like.new_zeros(1, group.bias_entries, dtype=dtype), (0, 1), value=-torch.inf)
    index = _table(Group.bias_index, group, like.device)
    return entries.index_select(1, index).unflatten(1, (group.queries, group.keys))


def _fold_bias(tile_grad: Tensor, group: Group) -> Tensor:
    """Sum the gradient of a tile's bias [h, M * K] into the table, by two small products: the same in every run."""
    rows, columns = group.rows, group.columns
    down, across = (
        _table(make, group, tile_grad.device).to(tile_grad.dtype) for make in (Group.row_one_hot, Group.column_one_hot)
    )
    pairs = tile_grad.unflatten(1, (rows.queries, columns.queries, rows.keys, columns.keys))
    pairs = pairs.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # h, Sq * Sk of rows, Sq * Sk of columns
    return down.mT @ pairs @ across


def _traced_gradients(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *geometry: Any
) -> tuple[Tensor | None, ...]:
    inputs = (q, k, v, bias)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    mixed = traced_attention(q, k, v, bias, *geometry)
    found = iter(torch.autograd.grad(mixed, wanted, gradient, create_graph=True))
    return tuple(next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs)


def _table(make: Callable[[Group], Table], group: Group, device: torch.device) -> Tensor:
    """A table of a group as a tensor; kept where that would mean copying it to the device at every call."""
    if device.type == "cpu":
        return torch.from_numpy(make(group))
    return _resident_table(make, group, device)


@lru_cache(maxsize=1024)
def _resident_table(make: Callable[[Group], Table], group: Group, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(make(group)).to(device)
