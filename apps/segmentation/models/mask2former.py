"""Mask2Former: a pixel decoder and a masked decoder on any backbone, optionally with early exits.

Paper: Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation"; published code MIT,
published weights CC BY-NC 4.0. Early exits: see :mod:`apps.segmentation.models.early_exit`.

Three surprises: each output is matched with the segments by itself; masks are independent (a sigmoid each), so what is
a segment is decided afterwards; gradients are published clipped to a norm of 0.01 over the whole model.

Shape legend: B batch, C classes, N queries, H x W image, h x w mask map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from apps.segmentation.models import mask2former_panoptic
from apps.segmentation.models.early_exit import ExitGate, draw_depth, exit_weight
from apps.segmentation.models.head import MaskHead, MaskOutput, Panoptic, Size, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mask2former_config import Mask2FormerConfig
from apps.segmentation.models.mask2former_decoder import MaskedDecoder, Prediction
from apps.segmentation.models.mask2former_losses import PointLosses, Weights
from apps.segmentation.models.mask2former_panoptic import Instances, keep_queries, resize_masks
from apps.segmentation.models.mask2former_pixel_decoder import Decoded, PixelDecoder


class Mask2Former(MaskHead):
    """The head.

    Args:
        info: Sizes of backbone and data.
        config: Options.

    Attributes:
        stride: Pixels per position of the masks.

    Raises:
        ConfigError: The backbone has no levels.
    """

    def __init__(self, info: HeadInfo, config: Mask2FormerConfig) -> None:
        super().__init__(info)
        self.config = config
        self.pixel_decoder = pixel_decoder(info, config)
        plan = self.pixel_decoder.plan
        self.decoder = masked_decoder(config, outputs=info.classes + 1, maps=plan.read)
        self.stride = plan.stride
        self.coarsest = plan.encoded[0]
        self.gate = ExitGate(info.channels[self.coarsest], config.encoder_layers) if config.exits == "gate" else None
        self.losses = point_losses(info, config, plan.stride)

    @property
    def reads(self) -> frozenset[int]:
        """Levels that the encoder works on, and finer ones that are merged after it."""
        return frozenset((*self.pixel_decoder.plan.encoded, *self.pixel_decoder.plan.merged))

    def forward(self, levels: Sequence[Tensor], size: Size) -> MaskOutput:
        """Classes and masks of the queries.

        Args:
            levels: Of the backbone, each [B, channels, ceil(H / stride), ceil(W / stride)].
            size: H and W, which decide nothing here.

        Raises:
            ShapeError: Levels of another number or width than the head was built for.
        """
        if not self.training:
            return self.decode(self.pixel_decoder(levels, self.depth(levels)))
        if self.config.exits == "none":
            return self.decode(self.pixel_decoder(levels))
        depth = draw_depth(self.config.encoder_layers)
        return self.decode(self.pixel_decoder(levels, depth))._replace(weight=self._weight(depth))

    def _weight(self, depth: int) -> Tensor:
        """Factor of the loss at an exit; layers after it get gradients of zero, as processes that share them expect."""
        layers = self.pixel_decoder.encoder.layers
        weight = self.pixel_decoder.level_positions.new_tensor(exit_weight(depth, len(layers)))
        return weight + sum(0 * parameter.sum() for layer in layers[depth:] for parameter in layer.parameters())

    def depth(self, levels: Sequence[Tensor]) -> int | Tensor | None:
        """Layers of the encoder to run outside of training: for all images, for each of them, or None for all."""
        if self.config.exit_layer:
            return self.config.exit_layer
        return None if self.gate is None else self.gate.choose(levels[self.coarsest])

    def decode(self, decoded: Decoded) -> MaskOutput:
        """Classes and masks of what the pixel decoder gave; in training those of all layers."""
        every = self.training and self.config.deep_supervision
        outputs = [_output(prediction) for prediction in self.decoder(*decoded, every=every)]
        return outputs[-1]._replace(auxiliary=tuple(outputs[:-1]))

    def loss(self, output: MaskOutput, targets: Targets) -> dict[str, Tensor]:
        """``loss``, and its weighted parts ``classes``, ``masks`` and ``dice``, sums over the outputs."""
        return self.losses(output, targets)

    def class_scores(self, output: MaskOutput, size: Size) -> Tensor:
        """Sum over queries of the probability of each class and that of the mask, [B, C, H, W]."""
        return mask2former_panoptic.class_scores(output, size, self.stride)

    def mask_probabilities(self, output: MaskOutput, size: Size) -> Tensor:
        """Sigmoids of the masks, [B, N, H, W]; they do not sum to 1."""
        return resize_masks(output.masks.float(), size, self.stride).sigmoid()

    def panoptic(self, output: MaskOutput, size: Size, rules: Any) -> list[Panoptic]:
        """Segments of every image; masks of queries that are certain of nothing are not enlarged."""
        thing, stuff, pixel = (
            own if wanted == -1 else wanted
            for wanted, own in (
                (rules.thing_threshold, mask2former_panoptic.THRESHOLD),
                (rules.stuff_threshold, mask2former_panoptic.THRESHOLD),
                (rules.pixel_threshold, mask2former_panoptic.PIXEL_THRESHOLD),
            )
        )
        things = frozenset(self.info.things)
        found = []
        for classes, masks in zip(output.classes, output.masks, strict=True):
            kept = keep_queries(classes, things, thing, stuff)[0]
            large = resize_masks(masks[None, kept].float(), size, self.stride)[0]
            found.append(
                mask2former_panoptic.panoptic(
                    classes[kept],
                    large,
                    things,
                    thing_threshold=thing,
                    stuff_threshold=stuff,
                    overlap=rules.overlap,
                    pixel_threshold=pixel,
                )
            )
        return found

    def instances(self, output: MaskOutput, size: Size, top: int = 100) -> list[Instances]:
        """Objects of every image, at ``size``: of things, where the data have any, else of all classes."""
        things = self.info.things or None
        return [
            mask2former_panoptic.instances(classes, masks, size, self.stride, top=top, things=things)
            for classes, masks in zip(output.classes, output.masks, strict=True)
        ]


def pixel_decoder(info: HeadInfo, config: Mask2FormerConfig) -> PixelDecoder:
    """The pixel decoder of a configuration."""
    return PixelDecoder(
        info,
        width=config.width,
        mask_width=config.mask_width,
        layers=config.encoder_layers,
        levels=config.encoder_levels,
        heads=config.encoder_heads,
        points=config.encoder_points,
        mlp=config.encoder_mlp,
        groups=config.groups,
        merge_groups=config.merge_groups,
        dropout=config.dropout,
    )


def masked_decoder(config: Mask2FormerConfig, *, outputs: int, maps: int) -> MaskedDecoder:
    """The masked decoder of a configuration.

    Args:
        config: Options.
        outputs: Numbers that every query gives.
        maps: Maps that it reads.
    """
    return MaskedDecoder(
        config.width,
        outputs,
        maps=maps,
        width=config.query_width or config.width,
        mask_width=config.mask_width,
        queries=config.queries,
        layers=config.layers,
        heads=config.heads,
        mlp=config.mlp,
        norm_first=config.norm_first,
        project=config.project,
    )


def point_losses(info: HeadInfo, config: Mask2FormerConfig, stride: int) -> PointLosses:
    """The losses of a configuration, for masks of ``stride`` pixels per position."""
    weights = Weights(
        classes=config.class_weight,
        masks=config.mask_weight,
        dice=config.dice_weight,
        class_cost=config.class_cost,
        mask_cost=config.mask_cost,
        dice_cost=config.dice_cost,
    )
    return PointLosses(
        weights,
        points=config.loss_points,
        oversample=config.oversample,
        importance=config.importance,
        void_weight=config.void_weight,
        class_weights=info.weights,
        stride=stride,
    )


def _output(prediction: Prediction) -> MaskOutput:
    return MaskOutput(classes=prediction.values, masks=prediction.masks)
