"""Channel attention ("transposed"): channels of a head attend to each other by how alike their maps are.

A query is one channel's whole map, so the weights are a matrix of channels by channels, whose size knows nothing of
the image, and the cost is linear in the pixels. The ``math`` form normalises the maps, multiplies them, and multiplies
the values. The fast form never makes normalised maps: the logits are divided by the norms, which are two numbers per
channel. Where a projection follows, both matrices are one, see :func:`projected_channel_attention`: the values are read
once and written once.

Source: Zamir et al. 2022, "Restormer: Efficient Transformer for High-Resolution Image Restoration", section 3.1.

Shape legend: B batch, C channels, H x W map, h heads, d channels of a head (C = h * d), O outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.attend import autocast_types
from backbones.attention.dispatch import resolve_form
from graftwork.errors import ConfigError, ShapeError
from graftwork.names import unknown

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}
"""What makes weights of logits; only the first makes them sum to 1."""
NORM_EPS = 1e-12
"""Smallest norm that a map is divided by, as in :func:`torch.nn.functional.normalize`."""


def channel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    *,
    heads: int,
    activation: str = "softmax",
    backend: str = "auto",
) -> Tensor:
    """Make every channel a weighted sum of the channels of values in its head.

    Args:
        q: Queries, [B, C, H, W], channels ordered (head, channel of the head).
        k: Keys, [B, C, H, W].
        v: Values, [B, C, H, W].
        temperature: Factor on the cosines of queries and keys, one for each head: any shape of h numbers.
        heads: h.
        activation: A name of :data:`ACTIVATIONS`.
        backend: ``math`` for the literal form, which normalises whole maps.

    Returns:
        [B, C, H, W] in the type of the values; under autocast in its type. The memory order is that of the values.

    Raises:
        ShapeError: Tensors that do not fit each other or the heads; the message names both.
        ConfigError: Unknown activation or backend, or fewer than one head.

    Source: Zamir et al. 2022, section 3.1. Differs: other activations than softmax (DLGSANet, SparseGSA).
    """
    _check(q, k, temperature, heads, activation)
    if v.shape != q.shape:
        raise ShapeError(f"v: expected {list(q.shape)} as q, got {list(v.shape)}")
    q, k, v = autocast_types(q, k, v)
    weights = channel_weights(q, k, temperature, heads=heads, activation=activation, backend=backend).to(v.dtype)
    if resolve_form("channel_attention", backend) == "math":
        return (weights @ _by_head(v, heads)).reshape(v.shape)
    return _mixed(weights, v)


def projected_channel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    projection: Tensor,
    *,
    heads: int,
    activation: str = "softmax",
    backend: str = "auto",
) -> Tensor:
    """:func:`channel_attention` and a 1x1 convolution without bias after it, in one product.

    Args:
        q: Queries, [B, C, H, W].
        k: Keys, [B, C, H, W].
        v: Values, [B, C, H, W].
        temperature: One factor for each head.
        projection: Weight of the projection, [O, C] or [O, C, 1, 1].
        heads: h.
        activation: A name of :data:`ACTIVATIONS`.
        backend: ``math`` for one step after the other.

    Returns:
        [B, O, H, W].

    Raises:
        ShapeError: Tensors that do not fit each other or the heads; the message names both.
        ConfigError: Unknown activation or backend, or fewer than one head.
    """
    options: dict[str, Any] = {"heads": heads, "activation": activation, "backend": backend}
    if resolve_form("channel_attention", backend) == "math":
        mixed = channel_attention(q, k, v, temperature, **options)
        return F.conv2d(mixed, projection.reshape(*projection.shape[:2], 1, 1))
    q, k, v = autocast_types(q, k, v)
    weights = channel_weights(q, k, temperature, **options)
    return project_channels(v, folded_projection(weights, projection))


def channel_weights(
    q: Tensor, k: Tensor, temperature: Tensor, *, heads: int, activation: str = "softmax", backend: str = "auto"
) -> Tensor:
    """The weights of :func:`channel_attention` alone, for layers that fold them with what comes next.

    Args:
        q: Queries, [B, C, H, W], channels ordered (head, channel of the head).
        k: Keys, [B, C, H, W].
        temperature: Factor on the cosines, one for each head: any shape of h numbers.
        heads: h.
        activation: A name of :data:`ACTIVATIONS`.
        backend: ``math`` for the literal form, which normalises whole maps.

    Returns:
        [B, h, d, d], queries first; float32 for half types, whose squares over a whole image would overflow.

    Raises:
        ShapeError: Tensors that do not fit each other or the heads; the message names both.
        ConfigError: Unknown activation or backend, or fewer than one head.
    """
    _check(q, k, temperature, heads, activation)
    literal = resolve_form("channel_attention", backend) == "math"
    with torch.autocast(q.device.type, enabled=False):
        precise = torch.promote_types(q.dtype, torch.float32)
        q, k, temperature = (tensor.to(precise) for tensor in (q, k, temperature))
        cosines = _literal_cosines(q, k, heads) if literal else _cosines(q, k, heads)
        return ACTIVATIONS[activation](cosines * temperature.reshape(-1, 1, 1))


def folded_projection(weights: Tensor, projection: Tensor) -> Tensor:
    """Attention over channels and the projection after it as one matrix for each image.

    Args:
        weights: As of :func:`channel_weights`, [B, h, d, d].
        projection: Weight of the projection, [O, C], or that of a 1x1 convolution, [O, C, 1, 1].

    Returns:
        [B, O, C] for :func:`project_channels`, in the type of the projection.

    Raises:
        ShapeError: A projection of another number of channels, or a convolution's larger than 1x1.
    """
    channels = weights.shape[1] * weights.shape[2]
    if projection.dim() not in (2, 4) or projection.shape[1] != channels or projection.shape[2:].numel() != 1:
        raise ShapeError(
            f"projection: expected [outputs, {channels}] or [outputs, {channels}, 1, 1] for weights "
            f"{list(weights.shape)}, got {list(projection.shape)}"
        )
    by_head = projection.flatten(1).unflatten(1, weights.shape[1:3]).transpose(0, 1)  # h, O, d
    folded = by_head.to(weights.dtype) @ weights  # B, h, O, d
    return folded.transpose(1, 2).flatten(2).to(projection.dtype)


def project_channels(v: Tensor, matrices: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution whose weights differ from image to image.

    Args:
        v: Maps, [B, C, H, W].
        matrices: [B, O, C], or [1, O, C] for all images.
        bias: [O].

    Returns:
        [B, O, H, W]; channels are last in memory where those of the maps are.

    Raises:
        ShapeError: Matrices that do not fit the maps; the message names both shapes.
    """
    if (
        v.dim() != 4
        or matrices.dim() != 3
        or matrices.shape[0] not in (1, v.shape[0])
        or (matrices.shape[2] != v.shape[1])
    ):
        raise ShapeError(
            f"matrices: expected [{v.shape[0]}, outputs, {v.shape[1] if v.dim() > 1 else 'channels'}] for maps "
            f"{list(v.shape)}, got {list(matrices.shape)}"
        )
    if v.stride(1) == 1:
        rows = v.permute(0, 2, 3, 1).flatten(1, 2) @ matrices.transpose(1, 2)  # B, H W, O
        rows = rows if bias is None else rows + bias
        return rows.unflatten(1, v.shape[2:]).permute(0, 3, 1, 2)
    maps = matrices @ v.flatten(2)  # B, O, H W
    maps = maps if bias is None else maps + bias[:, None]
    return maps.unflatten(2, v.shape[2:])


def _cosines(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Of channels of queries and keys, [B, h, d, d]."""
    products = _by_head(q, heads) @ _by_head(k, heads).transpose(-2, -1)
    q_norms, k_norms = (_norms(x).unflatten(1, (heads, -1)) for x in (q, k))  # B, h, d
    return products / (q_norms[..., None] * k_norms[:, :, None])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, C, H, W] to [B, h, d, H W]."""
    return x.unflatten(1, (heads, -1)).flatten(3)


def _norms(x: Tensor) -> Tensor:
    """Lengths of the maps, [B, C]; with channels last in memory twice as fast as ``vector_norm``."""
    return x.square().sum((2, 3)).clamp_min(NORM_EPS**2).sqrt()


def _literal_cosines(q: Tensor, k: Tensor, heads: int) -> Tensor:
    q, k = (F.normalize(_by_head(x, heads), dim=-1, eps=NORM_EPS) for x in (q, k))
    return q @ k.transpose(-2, -1)


def _mixed(weights: Tensor, v: Tensor) -> Tensor:
    """The sums of values, in their memory order."""
    values = _by_head(v, weights.shape[1])
    if v.stride(1) != 1:
        return (weights @ values).flatten(1, 2).unflatten(2, v.shape[2:])
    rows = values.transpose(2, 3) @ weights.transpose(2, 3)  # B, h, H W, d
    return rows.transpose(1, 2).flatten(2).unflatten(1, v.shape[2:]).permute(0, 3, 1, 2)


def _check(q: Tensor, k: Tensor, temperature: Tensor, heads: int, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if heads < 1:
        raise ConfigError(f"heads={heads} must be at least 1")
    if q.dim() != 4 or q.shape[1] % heads:
        raise ShapeError(
            f"q: expected [batch, channels, height, width], channels a multiple of {heads} heads, got {list(q.shape)}"
        )
    if k.shape != q.shape:
        raise ShapeError(f"k: expected {list(q.shape)} as q, got {list(k.shape)}")
    if temperature.numel() != heads:
        raise ShapeError(f"temperature: expected {heads} numbers for {heads} heads, got {list(temperature.shape)}")
