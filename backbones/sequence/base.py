"""What every mixer of tokens in time has in common.

Shape legend: B batch, L tokens, S tokens of the memory, C width, H heads, d channels of a head (C = H * d).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftwork.errors import ConfigError, ShapeError


class Mixer(nn.Module):
    """Mixes tokens along time; every subclass can stand in the place of every other.

    Attributes:
        width: Channels of a token, C.
        causal: Output i depends on inputs up to i only.
        supports_cross: Accepts ``memory``, tokens of another sequence to read from.
        supports_state: Gives the same result in one pass and step by step with ``state``.
    """

    supports_cross: bool = False
    supports_state: bool = False

    def __init__(self, width: int, *, causal: bool = False) -> None:
        super().__init__()
        self.width = width
        self.causal = causal

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: Any = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens.

        Args:
            x: Tokens, [B, L, C].
            memory: Tokens to read from in place of ``x``, [B, S, C]; only where ``supports_cross``.
            mask: True for valid key tokens, [B, L], or [B, S] with ``memory``; None if all are valid. Outputs of
                valid tokens do not depend on what invalid ones hold.
            positions: Position of each token, [B, L]; mixers that know no positions ignore it.
            state: What an earlier call returned for the tokens before ``x``; None at the beginning.

        Returns:
            Mixed tokens, [B, L, C], and the state after them, None unless ``supports_state``.

        Raises:
            ConfigError: ``memory`` or ``state`` given to a mixer that cannot use it.
            ShapeError: A tensor does not fit ``x`` or the mixer's width.
        """
        raise NotImplementedError

    def check_inputs(self, x: Tensor, memory: Tensor | None, mask: Tensor | None, state: Any = None) -> None:
        """Refuse what this mixer cannot serve, see :meth:`forward`; subclasses call it first."""
        name = type(self).__name__
        if memory is not None and not self.supports_cross:
            raise ConfigError(f"{name} cannot read from a memory", mend="Use a mixer with supports_cross, e.g. softmax")
        if state is not None and not self.supports_state:
            raise ConfigError(f"{name}(causal={self.causal}) keeps no state", mend="Pass the whole sequence at once")
        if x.dim() != 3 or x.shape[-1] != self.width:
            raise ShapeError(f"x of {name}: expected [B, L, {self.width}], got {list(x.shape)}")
        if memory is not None and (memory.dim() != 3 or memory.shape[0] != x.shape[0]):
            raise ShapeError(f"memory of {name}: expected [{x.shape[0]}, S, C], got {list(memory.shape)}")
        if mask is None:
            return
        keys = (x if memory is None else memory).shape[1]
        fits = mask.dim() == 2 and mask.shape[0] == x.shape[0] and (state is not None or mask.shape[1] == keys)
        if not fits or mask.dtype != torch.bool:
            expected = f"bool [{x.shape[0]}, {keys}]"
            raise ShapeError(f"mask of {name}: expected {expected}, got {mask.dtype} {list(mask.shape)}")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, C] to [B, L, H, d]; the channels of a head are contiguous."""
    return x.unflatten(-1, (heads, -1))


def merge_heads(x: Tensor) -> Tensor:
    """[B, L, H, d] to [B, L, C]."""
    return x.flatten(-2)


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that do not divide the width.

    Raises:
        ConfigError: The message names both values and the nearest number of heads that fits.
    """
    if heads < 1 or width % heads:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        nearest = min(fits, key=lambda n: abs(n - heads))
        raise ConfigError(f"width={width} must be a multiple of heads={heads}", mend=f"Try heads={nearest}")


class ProjectedMixer(Mixer):
    """A mixer with the four projections of multi-head attention, each a Linear with bias.

    Args:
        width: Channels of the input tokens.
        heads: Number of heads; divides ``inner``.
        causal: See :class:`Mixer`.
        inner: Channels of queries, keys and values over all heads; ``width`` if omitted.
        out_width: Channels of the output tokens; ``width`` if omitted.
        memory_width: Channels of the tokens that keys and values are made from; ``width`` if omitted.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        causal: bool = False,
        inner: int | None = None,
        out_width: int | None = None,
        memory_width: int | None = None,
    ) -> None:
        super().__init__(width, causal=causal)
        inner = inner or width
        check_heads(inner, heads)
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(memory_width or width, inner)
        self.value = nn.Linear(memory_width or width, inner)
        self.out = nn.Linear(inner, out_width or width)

    def project(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, L, H, d] from ``x``; keys and values [B, S, H, d] from ``memory``, or from ``x`` without one."""
        source = x if memory is None else memory
        queries, keys, values = self.query(x), self.key(source), self.value(source)
        return split_heads(queries, self.heads), split_heads(keys, self.heads), split_heads(values, self.heads)
