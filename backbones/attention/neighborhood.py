"""Neighborhood attention: every position of a map attends to the k x k positions nearest to it, dilated or not.

Source: Hassani et al. 2023, "Neighborhood Attention Transformer", and Hassani and Shi 2022, "Dilated Neighborhood
Attention Transformer". Differs: sides may be of any size, and kernel and dilation may differ between the axes.

Surprises: a window at the border is shifted inwards, never cut, so that every query sees k x k real keys; with dilation
d a query only ever sees positions of its own residues modulo d; the bias index grows with key minus query (the
transpose of Swin's convention) and counts dilated steps, so that one table serves every dilation; the bias is not
scaled.

Shape legend: B batch, H height, W width, h heads, c channels of a head, e channels of a head of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.attend import autocast_types, without_autocast
from backbones.attention.dispatch import backend_module, resolve_kernel
from backbones.attention.neighborhood_fast import tiled_attention
from graftwork.errors import ConfigError, ShapeError

OPERATOR = "neighborhood_attention"


@dataclass(frozen=True, kw_only=True)
class NeighborhoodRequest:
    """What foreign kernels must know of a call to say whether they can serve it.

    Attributes:
        device: Where the tensors are.
        dtype: Their type.
        width: Channels of a head of queries and keys.
        value_width: Channels of a head of values.
        kernel: Sides of the window.
        bias: A table of biases is given.
        needs_grad: Queries, keys or values need a gradient.
        empty: There is nothing to compute.
    """

    device: torch.device
    dtype: torch.dtype
    width: int
    value_width: int
    kernel: tuple[int, int]
    bias: bool = False
    needs_grad: bool = False
    empty: bool = False


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel_size: int | tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Let every position read a weighted mean of the values in its neighborhood.

    A map with a side below ``kernel_size * dilation`` is filled up to that with zeros at its bottom and right, and the
    result is cropped. The zeros take part as keys and values: this is what padding the input of projections without
    bias gives. Where projections have a bias, pad before them (see :func:`padding`).

    Args:
        q: Queries, [B, H, W, h, c].
        k: Keys, [B, H, W, h, c].
        v: Values, [B, H, W, h, e].
        kernel_size: Side of the window in positions, odd, or the sides (rows, columns).
        dilation: Step between neighbours, or the steps (rows, columns).
        bias: Table added to the scaled logits, [h, 2 * rows - 1, 2 * columns - 1], by key minus query in dilated steps;
            -inf hides a neighbour. May need a gradient.
        scale: Factor on the products of queries and keys; c ** -0.5 if omitted.
        backend: ``math`` for the literal gather of every window; ``natten`` for the kernels of that package, which know
            no bias; ``auto`` for natten on CUDA where it can serve, else the tiled form. ``sdpa`` and ``xformers``
            have no such operator and count as ``auto`` without natten.

    Returns:
        [B, H, W, h, e] in the type of the values; under autocast in its type. Sums are made in float32 for half types.

    Raises:
        ShapeError: Tensors that do not fit each other; the message names both shapes.
        ConfigError: An even kernel, values below 1, an unknown backend, or one wanted that cannot serve this call.
    """
    kernel, steps = _pair("kernel_size", kernel_size), _pair("dilation", dilation)
    _check(q, k, v, bias, kernel)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = autocast_types(q, k, v)
    form = resolve_kernel(OPERATOR, _request(q, k, v, bias, kernel), ("natten",), backend)
    height, width = q.shape[1:3]
    below, right = padding(height, width, kernel, steps)
    if lacking(below, right):
        q, k, v = (F.pad(tensor, (0, 0, 0, 0, 0, right, 0, below)) for tensor in (q, k, v))
    if form == "natten":
        mixed: Tensor = backend_module(form).run(q, k, v, kernel=kernel, dilation=steps, scale=scale)
    # The number of tiles follows from the size of the map, which a graph exported for any size does not know.
    elif form == "math" or not (isinstance(height, int) and isinstance(width, int)):
        mixed = literal_attention(q, k, v, bias, kernel, steps, scale)
    else:
        mixed = tiled_attention(q, k, v, bias, kernel, steps, scale)
    return cropped(mixed, height, width)


def padding(
    height: int, width: int, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1
) -> tuple[int, int]:
    """Positions that a map lacks at its bottom and right to hold one window of :func:`neighborhood_attention`."""
    kernel, steps = _pair("kernel_size", kernel_size), _pair("dilation", dilation)
    lacks = (kernel[0] * steps[0] - height, kernel[1] * steps[1] - width)
    # In a graph for any size they are symbols, which only torch's own maximum takes as they are.
    below, right = (max(0, lack) if isinstance(lack, int) else torch.sym_max(0, lack) for lack in lacks)
    return below, right


def lacking(below: int, right: int) -> bool:
    """Whether anything is to be padded; in a graph for any size that is found out when it runs, so there it is."""
    return not (isinstance(below, int) and isinstance(right, int)) or below > 0 or right > 0


def cropped(x: Tensor, height: int, width: int) -> Tensor:
    """The top left of a map [B, H, W, ...]."""
    if isinstance(height, int) and isinstance(width, int):
        return x[:, :height, :width]
    # A graph for any size cannot tell how a slice lies in memory; a copy lies as all tensors do.
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    return x.index_select(1, rows).index_select(2, columns)


def axis_neighbors(
    length: int, kernel_size: int, dilation: int = 1, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The neighborhood of every position along one axis; that on a map is the product of both axes.

    Args:
        length: Positions of the axis, at least ``kernel_size * dilation``.
        kernel_size: Neighbours that a position sees; odd.
        dilation: Step between them.
        device: Where to make the tables.

    Returns:
        Coordinates of the keys, ascending, and their bias indices (key minus query in dilated steps, plus
        ``kernel_size - 1``); both [length, kernel_size] int64.

    Raises:
        ShapeError: The axis is too short; the message names the length that is needed.
        ConfigError: An even kernel, or values below 1.
    """
    (kernel, _), (step, _) = _pair("kernel_size", kernel_size), _pair("dilation", dilation)
    if isinstance(length, int) and length < kernel * step:
        raise ShapeError(
            f"length={length} is too short for kernel_size={kernel} and dilation={step}",
            mend=f"Pad the axis to {kernel * step}",
        )
    return _axis_tables(length, kernel, step, device)


def _axis_tables(length: int, kernel: int, step: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    coordinate = torch.arange(length, device=device)
    residue, position = coordinate % step, coordinate // step
    positions = (length - residue + step - 1) // step  # of the same residue
    start = torch.minimum((position - kernel // 2).clamp(min=0), positions - kernel)
    neighbor = start[:, None] + torch.arange(kernel, device=device)  # length, kernel
    return residue[:, None] + step * neighbor, neighbor - position[:, None] + kernel - 1


def literal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> Tensor:
    """The formula itself, with a copy of every window; arguments as in :func:`neighborhood_attention`.

    Args:
        q: [B, H, W, h, c], both sides at least ``kernel * dilation``.
        k: [B, H, W, h, c].
        v: [B, H, W, h, e].
        bias: [h, 2 * kernel[0] - 1, 2 * kernel[1] - 1], or None.
        kernel: Odd sides of the window.
        dilation: Steps between neighbours.
        scale: Factor on the products.

    Returns:
        [B, H, W, h, e] in the type of the values.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    rows, row_bias = _axis_tables(q.shape[1], kernel[0], dilation[0], q.device)
    columns, column_bias = _axis_tables(q.shape[2], kernel[1], dilation[1], q.device)
    with without_autocast(q):
        # B, H, window rows, W, window columns, h, c
        keys, values = (tensor.to(precise)[:, rows][:, :, :, columns] for tensor in (k, v))
        # Products and sums, no matrix products: those would need to know how the windows lie in memory, which a graph
        # for any size does not.
        logits = ((q.to(precise) * scale)[:, :, None, :, None] * keys).sum(-1)
        if bias is not None:
            table = bias.to(precise)[:, row_bias[:, :, None, None], column_bias]  # h, H, rows, W, columns
            logits = logits + table.permute(1, 2, 3, 4, 0)
        weights = torch.softmax(logits.permute(0, 1, 3, 5, 2, 4).flatten(-2), dim=-1)  # B, H, W, h, window
        weights = weights.unflatten(-1, kernel).permute(0, 1, 4, 2, 5, 3)
        return (weights[..., None] * values).sum((2, 4)).to(v.dtype)


def _request(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: tuple[int, int]) -> NeighborhoodRequest:
    return NeighborhoodRequest(
        device=q.device,
        dtype=q.dtype,
        width=q.shape[4],
        value_width=v.shape[4],
        kernel=kernel,
        bias=bias is not None,
        needs_grad=q.requires_grad or k.requires_grad or v.requires_grad,
        empty=0 in q.shape or 0 in v.shape,
    )


def _pair(name: str, value: Any) -> tuple[int, int]:
    """An option for both axes, or one for each, checked."""
    pair = (value, value) if not isinstance(value, tuple | list) else tuple(value)
    if len(pair) != 2 or any(isinstance(side, int) and side < 1 for side in pair):
        raise ConfigError(f"{name}={value} must be at least 1, or a pair of such numbers")
    if name == "kernel_size":
        for side in pair:
            if side % 2 == 0:
                raise ConfigError(
                    f"kernel_size={value} must be odd, as the query is the centre of its window",
                    mend=f"Try {max(1, side - 1)} or {side + 1}",
                )
    return pair


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: tuple[int, int]) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 5:
            raise ShapeError(f"{name}: expected [batch, height, width, heads, channels], got {list(tensor.shape)}")
    if k.shape != q.shape:
        raise ShapeError(f"k: expected {list(q.shape)} as q, got {list(k.shape)}")
    if v.shape[:4] != q.shape[:4]:
        expected = str([*q.shape[:4], "channels"]).replace("'", "")
        raise ShapeError(f"v: expected {expected} to fit q {list(q.shape)}, got {list(v.shape)}")
    table = (q.shape[3], 2 * kernel[0] - 1, 2 * kernel[1] - 1)
    if bias is not None and bias.shape != table:
        raise ShapeError(
            f"bias: expected {list(table)} for {q.shape[3]} heads and kernel {kernel[0]} x {kernel[1]}, "
            f"got {list(bias.shape)}"
        )
