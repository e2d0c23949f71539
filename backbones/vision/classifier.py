"""Classification of images by a vision backbone: norm, mean over positions, linear."""

from __future__ import annotations

from torch import Tensor, nn

from backbones.vision.base import VisionBackbone
from backbones.vision.layers import init_linear


class PooledHead(nn.Module):
    """Norm on the map, mean over its positions, linear layer.

    Args:
        norm: [B, C, H, W] to the same.
        width: Channels of the map, C.
        classes: Number of classes; 0 leaves out the linear layer.
    """

    def __init__(self, norm: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(width, classes) if classes else nn.Identity()
        init_linear(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, classes]."""
        logits: Tensor = self.linear(self.norm(features).mean(dim=(2, 3)))
        return logits


class Classifier(nn.Module):
    """A backbone with the classification head of its family.

    Args:
        backbone: Its last level is classified.
        classes: Number of classes; 0 gives pooled features instead of logits.
    """

    def __init__(self, backbone: VisionBackbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = backbone.head(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: [B, in_channels, H, W].

        Returns:
            [B, classes].
        """
        logits: Tensor = self.head(self.backbone.features(images))
        return logits
