"""Configuration of CRAFT. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.superres.models.config_checks import (
    Upsampler,
    common_problems,
    group_heads,
    head_problems,
    info_problems,
    refuse,
)
from apps.superres.models.info import ImageInfo

if TYPE_CHECKING:
    from apps.superres.models.craft import CRAFT


@dataclass(kw_only=True)
class CRAFTConfig:
    """CRAFT (ICCV 2023): attention in rectangles refined by high frequencies; light, twice as large as CFSR."""

    width: int = 48
    """Features, even."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Steps of each group, of two attention blocks each."""
    heads: tuple[int, ...] = (6, 6, 6, 6)
    """Heads of each group, at least 2; one number stands for all groups. Of an odd number, the attention within
    rectangles has one less."""
    window: tuple[int, int] = (4, 16)
    """Height and width of the rectangles for one half of the features, in pixels; upright for the other half."""
    mlp_ratio: float = 2.0
    """Features inside the feed-forward networks, in multiples of width."""
    gate_ratio: float = 2.66
    """Features inside the gated feed-forward networks, in multiples of width."""
    qkv_bias: bool = True
    """Projections to queries, keys and values have a bias."""
    qk_scale: float | None = None
    """Factor on the logits within rectangles; the features of a head there ** -0.5 if omitted."""
    group_convolution: bool = True
    """A 3x3 convolution ends every group and the body."""
    upsampler: Upsampler = "auto"
    """The last layers; auto is light, and residual for scale 1."""
    image_range: float = 1.0
    """Images in [0, 1] are multiplied by this after their mean is taken off."""
    checkpointing: bool = False
    """Compute steps again in the backward pass instead of keeping their activations."""

    @property
    def group_heads(self) -> tuple[int, ...]:
        """Heads of each group."""
        return group_heads(self)

    @property
    def position_width(self) -> int:
        """Features of the networks that make a bias of positions."""
        return self.width // 2 // 4 // 4

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values, a sentence each."""
        yield from common_problems(self)
        yield from head_problems(self)
        if self.width % 2:
            yield f"width={self.width} must be even: each half of the features sees rectangles of its own"
        else:
            yield from self._half_problems()
        if len(self.window) != 2 or min(self.window) < 1:
            yield f"window={tuple(self.window)} must be height and width, each at least 1"
        if self.gate_ratio * self.width < 1:
            yield f"gate_ratio={self.gate_ratio} leaves no features of width={self.width}"

    def _half_problems(self) -> Iterator[str]:
        """Heads that half the features cannot be shared out among, of an even width."""

        def fits(heads: int) -> bool:
            return heads > 1 and self.width % heads == 0 and self.width // 2 % (heads // 2) == 0

        for heads in sorted(set(self.heads)):
            if heads > 0 and self.width % heads == 0 and not fits(heads):
                near = min(filter(fits, range(2, self.width + 1)), key=lambda n: abs(n - heads), default=2)
                yield (
                    f"heads={heads} must be at least 2, and half of it, rounded down, must divide {self.width // 2}, "
                    f"half of width={self.width}; try heads={near}"
                )

    def info_problems(self, info: ImageInfo) -> Iterator[str]:
        """Scales and channels that the network cannot have, a sentence each."""
        yield from info_problems(self.upsampler, "light", info)

    def build(self, info: ImageInfo) -> CRAFT:
        """The network for images of this scale and these channels."""
        refuse(iter([*self.problems(), *self.info_problems(info)]))
        from apps.superres.models.craft import CRAFT

        return CRAFT(self, info)
