"""Logistic regression on pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.classification.info import ClassificationInfo
from graftwork.errors import ShapeError


class LinearClassifier(nn.Module):
    """A linear layer over all pixels of a shrunk image; it begins at zero, which is where its loss is convex from.

    Args:
        info: Channels, size and classes.
        side: Images above this many pixels a side are shrunk to it.
    """

    def __init__(self, info: ClassificationInfo, side: int) -> None:
        super().__init__()
        self.channels, self.side = info.channels, min(side, info.image_size)
        self.linear = nn.Linear(self.channels * self.side**2, len(info.classes))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: [B, channels, H, W].

        Returns:
            [B, classes].

        Raises:
            ShapeError: Images of another number of channels, or smaller than what the model was built for.
        """
        if images.dim() != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < self.side:
            raise ShapeError(
                f"images of LinearClassifier: expected [batch, {self.channels}, H, W] with sides of at least "
                f"{self.side}, got {list(images.shape)}"
            )
        small = images if images.shape[2:] == (self.side, self.side) else F.adaptive_avg_pool2d(images, self.side)
        logits: Tensor = self.linear(small.flatten(1))
        return logits
