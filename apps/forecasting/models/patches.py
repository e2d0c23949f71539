"""Series cut into overlapping patches of time, each variate alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apps.forecasting.models.embeddings import PositionTable


def patch_count(look_back: int, patch_length: int, stride: int) -> int:
    """Patches of a window of ``look_back`` steps whose last step was repeated ``stride`` times."""
    return (look_back - patch_length) // stride + 2


class PatchEmbedding(nn.Module):
    """Repeats the last step ``stride`` times, cuts patches, and embeds each with its position.

    Args:
        look_back: L, at least ``patch_length``.
        patch_length: Steps of a patch.
        stride: Steps between the beginnings of neighbouring patches.
        width: D.
        dropout: Of the embedded patches.
    """

    def __init__(self, look_back: int, patch_length: int, stride: int, width: int, dropout: float) -> None:
        super().__init__()
        self.patch_length = patch_length
        self.stride = stride
        self.count = patch_count(look_back, patch_length, stride)
        self.linear = nn.Linear(patch_length, width, bias=False)
        self.position = PositionTable(self.count, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: Tensor) -> Tensor:
        """[B, N, L] to [B * N, P, D]."""
        tail = series[..., -1:].expand(-1, -1, self.stride)
        patches = torch.cat([series, tail], dim=-1).unfold(-1, self.patch_length, self.stride)  # B, N, P, patch_length
        tokens: Tensor = self.dropout(self.position(self.linear(patches.flatten(0, 1))))
        return tokens
