"""The range that networks see images in: centred on the mean colour of natural photographs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean red, green and blue of the DIV2K photographs, in [0, 1]."""


class ImageRange(nn.Module):
    """Centres images and brings them to a range, and back.

    Args:
        channels: Channels of the images.
        width: Length of the range that [0, 1] is brought to.
        mean: Mean of each channel; that of DIV2K for three channels, zero for any other number, if omitted.
    """

    mean: Tensor

    def __init__(self, channels: int, width: float = 1.0, mean: Sequence[float] | None = None) -> None:
        super().__init__()
        if mean is None:
            mean = DIV2K_MEAN if channels == 3 else [0.0] * channels
        self.width = width
        # Official weights know no mean: it belongs to the architecture.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)

    def centre(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] to what a network sees."""
        return (images - self.mean) * self.width

    def restore(self, images: Tensor) -> Tensor:
        """[B, C, H, W] as a network gives them to [0, 1], not clamped."""
        return images / self.width + self.mean

    def extra_repr(self) -> str:
        """The range."""
        return f"width={self.width:g}"
