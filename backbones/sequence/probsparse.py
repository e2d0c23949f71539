"""Mixer with ProbSparse attention: full attention for the queries that stand out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from backbones.attention.probsparse import prob_sparse_attention, sampled_keys
from backbones.sequence.base import ProjectedMixer, merge_heads
from graftwork.errors import ConfigError


class ProbSparseMixer(ProjectedMixer):
    """ProbSparse attention between projections, as in Informer, without the layout quirks of its code bases.

    The attribute ``causal`` stays False even where the causal mask is asked for: the paper's masked form hides later
    keys from the kept queries, but *which* queries are kept depends on the whole sequence (``masked`` tells). Padding
    masks are refused, as drawn keys are shared by the whole batch. Keys are drawn anew in training and are always the
    same in evaluation, so that two calls agree.

    Args:
        width: Channels of the tokens.
        heads: Number of heads.
        factor: Keys drawn and queries kept per natural logarithm of their number.
        causal: Use the masked form; others than the kept queries then output the cumulative sum of the values.
    """

    def __init__(self, width: int, heads: int = 8, factor: int = 5, causal: bool = False) -> None:
        super().__init__(width, heads=heads)
        self.factor = factor
        self.masked = causal
        self.supports_cross = not causal

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
        refuse_padding("ProbSparseMixer", mask)
        queries, keys, values = self.project(x, memory)
        drawn = sampled_keys(queries.shape[1], keys.shape[1], self.factor, training=self.training)
        mixed = prob_sparse_attention(queries, keys, values, factor=self.factor, causal=self.masked, index_sample=drawn)
        return self.out(merge_heads(mixed)), None


def refuse_padding(name: str, mask: Tensor | None) -> None:
    """Stop where a mask hides tokens from an operator that cannot leave them out.

    Raises:
        ConfigError: Some token is hidden.
    """
    if mask is not None and not bool(mask.all()):
        mend = "Cut the samples of a batch to one length, or use a mixer that knows masks, e.g. softmax or flow"
        raise ConfigError(f"{name} cannot leave out padded tokens", where="mask", mend=mend)
