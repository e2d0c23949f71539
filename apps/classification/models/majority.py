"""The classifier that any other should beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.classification.info import ClassificationInfo


class Majority(nn.Module):
    """Gives every image the frequencies of the classes in training.

    Args:
        info: Training images of each class.
    """

    prior: Tensor

    def __init__(self, info: ClassificationInfo) -> None:
        super().__init__()
        counts = torch.tensor(info.counts, dtype=torch.float32).clamp(min=1e-6)
        self.register_buffer("prior", (counts / counts.sum()).log())

    def forward(self, images: Tensor) -> Tensor:
        """[B, ...] to the same logarithms of probabilities for each, [B, classes]."""
        return self.prior.expand(len(images), -1)
