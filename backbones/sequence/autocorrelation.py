"""Mixer with auto-correlation: averages the sequence shifted by its strongest periods."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from backbones.attention.autocorrelation import auto_correlation
from backbones.sequence.base import ProjectedMixer, merge_heads
from backbones.sequence.probsparse import refuse_padding
from graftwork.errors import ConfigError


class AutoCorrelationMixer(ProjectedMixer):
    """Auto-correlation between projections, as in Autoformer.

    In training the batch shares its delays, in evaluation every sample has its own, so outputs differ between the two.
    A memory shorter than the tokens is padded with zeros, a longer one is cut. Padding masks are refused: periods are
    those of the whole, circular sequence.

    Args:
        width: Channels of the tokens.
        heads: Number of heads; they share their delays, so their number has no effect on the result.
        factor: Delays kept per natural logarithm of the number of tokens.
        causal: Must be False; there is no causal form.

    Raises:
        ConfigError: ``causal`` is True.
    """

    supports_cross = True

    def __init__(self, width: int, heads: int = 8, factor: float = 1, causal: bool = False) -> None:
        if causal:
            mend = "Use a causal mixer: softmax, flow, scan or selective_scan"
            raise ConfigError("auto-correlation reads the whole sequence and has no causal form", mend=mend)
        super().__init__(width, heads=heads)
        self.factor = factor

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: Any = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens, see :meth:`Mixer.forward`; a ``mask`` that hides a token is a ConfigError."""
        self.check_inputs(x, memory, mask, state)
        refuse_padding("AutoCorrelationMixer", mask)
        queries, keys, values = self.project(x, memory)
        mixed = auto_correlation(queries, keys, values, factor=self.factor, shared_delays=self.training)
        return self.out(merge_heads(mixed)), None
