"""The attention layers of Informer, with the output layouts of its two code bases.

Source: Zhou et al. 2021 (Informer), section 3.1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from backbones.attention.attend import attend
from backbones.attention.probsparse import prob_sparse_attention, sampled_keys
from backbones.sequence.base import ProjectedMixer, merge_heads


class InformerAttention(ProjectedMixer):
    """ProbSparse or full attention between projections.

    Args:
        width: D.
        heads: H.
        sparse: ProbSparse attention; full softmax attention otherwise.
        factor: Of ProbSparse attention.
        causal: Step i reads steps up to i only.
        mixed: Flatten the result as [H, L, d] instead of [L, H, d], so that the channels of a step come from
            different heads *and times*. Both official code bases do this in some places, and their weights need it.
        dropout: Of the weights of full attention; ProbSparse attention never drops any.
    """

    supports_cross = True

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        sparse: bool,
        factor: int = 5,
        causal: bool = False,
        mixed: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads=heads, causal=causal)
        self.sparse = sparse
        self.factor = factor
        self.mixed = mixed
        self.dropout = dropout
        self.index_sample: Tensor | None = None

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: Any = None,
    ) -> tuple[Tensor, None]:
        """Mix [B, L, D], see :class:`Mixer`; all tokens are taken as valid.

        ``index_sample``, when set, is the table of sampled keys, [L, U]; otherwise keys are drawn at random in
        training and from a fixed seed in evaluation, so that two calls agree.
        """
        self.check_inputs(x, memory, mask, state)
        queries, keys, values = self.project(x, memory)
        if self.sparse:
            attended = prob_sparse_attention(
                queries,
                keys,
                values,
                factor=self.factor,
                causal=self.causal,
                index_sample=self._sampled_keys(queries, keys),
            )
        else:
            drop = self.dropout if self.training else 0.0
            attended = attend(queries, keys, values, causal=self.causal, dropout=drop)
        if self.mixed:
            attended = attended.transpose(1, 2).reshape(attended.shape)  # B, H, L, d read as B, L, H, d
        return self.out(merge_heads(attended)), None

    def _sampled_keys(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The table to use: the one set, else a new one in training, else the fixed one of evaluation."""
        table = self.index_sample
        if table is None:
            table = sampled_keys(queries.shape[1], keys.shape[1], self.factor, training=self.training)
        return table.to(queries.device)
