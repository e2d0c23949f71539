"""Our backbones and cross entropy in mmsegmentation's registry; importing this module registers them.

In a configuration of mmsegmentation::

    custom_imports = dict(imports=["apps.segmentation.mmseg_parts"])
    model = dict(
        type="EncoderDecoder",
        backbone=dict(type="GraftworkBackbone", name="dinat_tiny", weights="dinat_tiny.pth"),
        decode_head=dict(type="UPerHead", in_channels=[64, 128, 256, 512], in_index=[0, 1, 2, 3], ...),
    )

Shape legend: B batch, C classes, H x W image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apps.segmentation.losses import Average, cross_entropy
from apps.segmentation.mmseg_bridge import registry
from backbones.vision.create import create_backbone
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ConfigError


class GraftworkBackbone(nn.Module):
    """A vision backbone by name, as mmsegmentation wants one.

    Args:
        name: Of ``python -m backbones list``, ``timm:<model>``, or ``custom:package.module.Class``.
        init_cfg: Not used; weights come from ``pretrained`` or ``weights``.
        options: Arguments of :func:`backbones.vision.create.create_backbone`. Maps are normalised as in
            published segmentation models unless ``output_norms`` says otherwise; ``drop_path`` and ``weights`` are the
            ones to think of.

    Attributes:
        out_channels: Channels of the maps, fine to coarse; ``in_channels`` of a head.
        strides: Pixels per position of each.

    Raises:
        ConfigError: Unknown name or option, or a value that does not fit.
        WeightsError: The weights cannot be read, fetched, or do not fit.
    """

    def __init__(self, name: str, init_cfg: Any = None, **options: Any) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ConfigError(
                f"init_cfg={init_cfg} is not for GraftworkBackbone", mend="Give weights=FILE or pretrained=True"
            )
        options = {key: list(value) if isinstance(value, list | tuple) else value for key, value in options.items()}
        self.backbone = create_backbone(name, dense=True, **options)
        self.out_channels = tuple(self.backbone.channels)
        self.strides = tuple(self.backbone.strides)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] (red, green, blue; less the mean, by the deviation) to maps, fine to coarse."""
        return tuple(self.backbone(images))

    def init_weights(self) -> None:
        """Nothing: the weights are those of the constructor."""


class GraftworkCrossEntropy(nn.Module):
    """The cross entropy of our heads as a loss of mmsegmentation's: class weights go together with ignored pixels.

    Args:
        class_weight: Factor of each class; None for 1 each.
        average: ``valid`` or ``all``, see :func:`apps.segmentation.losses.cross_entropy`.
        label_smoothing: Share of the target that is spread over all classes.
        loss_weight: Factor of the loss.
        loss_name: Its name in logs; one that begins with ``loss`` is trained on.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        class_weight: list[float] | None = None,
        average: Average = "valid",
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_ce",
    ) -> None:
        super().__init__()
        self.average, self.label_smoothing = average, label_smoothing
        self.loss_weight, self.loss_name = loss_weight, loss_name
        weights = None if class_weight is None else torch.tensor(class_weight)
        self.register_buffer("class_weight", weights, persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = IGNORED, **_: Any
    ) -> Tensor:
        """The loss.

        Args:
            logits: [B, C, H, W].
            labels: [B, H, W].
            weight: Of a sampler of pixels, [B, H, W] or [B, 1, H, W]; those at 0 are ignored.
            ignore_index: Label that is ignored.
        """
        if ignore_index != IGNORED:
            labels = labels.masked_fill(labels == ignore_index, IGNORED)
        if weight is not None:
            labels = labels.masked_fill(weight.reshape(labels.shape) == 0, IGNORED)
        options: dict[str, Any] = {"average": self.average, "smoothing": self.label_smoothing}
        return self.loss_weight * cross_entropy(logits, labels, weights=self.class_weight, **options)


for _part in (GraftworkBackbone, GraftworkCrossEntropy):
    registry("MODELS", f"registering {_part.__name__}").register_module(module=_part, force=True)
