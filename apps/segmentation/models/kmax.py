"""kMaX-DeepLab as a head on any backbone.

Paper: Yu et al., "k-means Mask Transformer", ECCV 2022. Origin: bytedance/kmax-deeplab and google-research/deeplab2,
Apache-2.0. Three surprises: masks compete for pixels by a softmax over queries; a query takes the sum of the pixels it
won, without gradient to who won them; any image size works, as position tables are read for the length at hand.

Shape legend: B batch, N queries, C classes, S segments of an image, P pixels of the mask map, H x W image, h x w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.models import kmax_panoptic
from apps.segmentation.models.head import MaskHead, MaskOutput, Panoptic, Segments, Size, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.kmax_decoder import KMaXDecoder, prior_logit
from apps.segmentation.models.kmax_layers import full
from apps.segmentation.models.kmax_losses import MapTargets, Options, Terms, all_losses, semantic_loss
from apps.segmentation.models.kmax_panoptic import resize_masks
from apps.segmentation.models.kmax_pixel_decoder import PixelDecoder, Stage
from apps.segmentation.models.kmax_semantic import build_semantic, finest_place
from apps.segmentation.models.mask2former_panoptic import Instances
from backbones.attention.attend import without_autocast
from backbones.attention.dispatch import exporting
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from apps.segmentation.models.kmax_config import KMaXConfig

FINEST, COARSEST = 4, 32
"""Strides of the levels that are used."""


def choose_levels(strides: Sequence[int], count: int) -> list[int]:
    """Places of the levels to use, coarse to fine.

    Args:
        strides: Pixels per position of each level, fine to coarse.
        count: Levels wanted; fewer are given where there are fewer.

    Raises:
        ConfigError: No level has a stride from 4 to 32.
    """
    usable = [place for place, stride in enumerate(strides) if FINEST <= stride <= COARSEST]
    if not usable:
        raise ConfigError(
            f"kmax needs levels with strides from {FINEST} to {COARSEST}, the backbone has strides {list(strides)}",
            "model.backbone",
            "Choose other out_indices or another backbone",
        )
    return usable[::-1][:count]


def build_decoders(
    config: KMaXConfig, channels: Sequence[int], outputs: int, last: float = 0.0
) -> tuple[PixelDecoder, KMaXDecoder]:
    """The pixel decoder and the decoder of queries of a configuration.

    Args:
        config: Sizes.
        channels: Of the levels, coarse to fine; stages of finer ones are left out.
        outputs: Numbers that every query gives.
        last: Added to the last of them.
    """
    stages = [
        Stage(blocks=blocks, width=width, axial=kind == "axial")
        for blocks, width, kind in zip(config.stage_layers, config.stage_widths, config.stage_blocks, strict=True)
    ][: len(channels)]
    pixels = PixelDecoder(channels, stages, config.axial_heads, config.stage_drop_path)
    return pixels, KMaXDecoder([4 * stage.width for stage in stages], outputs, config, last)


class KMaXHead(MaskHead):
    """Pixel decoder, k-means decoder and, in training, an auxiliary classifier of pixels.

    With fewer levels than stages the stages of the finer ones are left out, and masks are as fine as the finest level.

    Args:
        config: Sizes.
        info: Sizes of backbone and data.
    """

    def __init__(self, config: KMaXConfig, info: HeadInfo) -> None:
        super().__init__(info)
        self.config = config
        self.places = choose_levels(info.strides, len(config.stage_layers))
        self.stride = info.strides[self.places[-1]]
        channels = [info.channels[place] for place in self.places]
        self.pixel_decoder, self.decoder = build_decoders(config, channels, info.classes + 1, prior_logit(info.classes))
        self.semantic = build_semantic(channels, info.classes, config)
        self.semantic_stride = info.strides[self.places[finest_place(config.semantic, len(channels))]]
        self.options = Options(
            pixel_samples=config.pixel_samples,
            pixel_balance=config.pixel_balance,
            pixel_temperature=config.pixel_temperature,
            semantic_samples=config.semantic_samples,
            semantic_balance=config.semantic_balance,
            share_matching=config.share_matching,
            least_weight=config.least_weight,
        )
        weights = torch.ones(info.classes + 1)
        if info.weights:
            weights[:-1] = torch.tensor(info.weights)
        self.register_buffer("class_factors", weights, persistent=False)

    @property
    def reads(self) -> frozenset[int]:
        """Levels that are read, those of strides from 4 to 32."""
        return frozenset(self.places)

    def forward(self, levels: Sequence[Tensor], size: Size) -> MaskOutput:
        """Levels to classes and masks; outputs of the layers and of the auxiliary classifier in training alone.

        Raises:
            ShapeError: Fewer levels than the backbone was said to have, or of other channels.
        """
        self.check_levels(levels)
        chosen = [levels[place] for place in self.places]
        maps = self.pixel_decoder(chosen)
        output: MaskOutput = self.decoder(maps, self.training and self.config.supervise_layers)
        if self.training and self.semantic is not None:
            output = output._replace(semantic=self.semantic(chosen))
        return output

    def loss(self, output: MaskOutput, targets: Targets, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss`` and its weighted parts, each a sum over the final output and the layers.

        Args:
            output: Of :meth:`forward`.
            targets: Labels and segments.
            generator: Where the random choice of pixels comes from; torch's own if omitted.

        Returns:
            ``loss``, ``classes``, ``dice``, ``masks``, ``pixels`` and, in training, ``semantic``.
        """
        size = (output.masks.shape[2], output.masks.shape[3])
        prepared = [map_targets(segments, size, self.stride) for segments in targets.segments]
        labelled = (targets.labels != IGNORED).flatten(1).any(1).to(torch.float32)
        factors: Tensor = self.class_factors  # type: ignore[assignment]
        terms = all_losses(output, prepared, factors, self.options, generator, labelled)
        total = Terms(*(torch.stack(parts).sum() for parts in zip(*terms, strict=True)))
        config = self.config
        losses = {
            "classes": config.class_weight * total.classes,
            "dice": config.dice_weight * total.dice,
            "masks": config.mask_weight * total.masks,
            "pixels": config.pixel_weight * total.pixels,
        }
        if output.semantic is not None:
            size = (output.semantic.shape[2], output.semantic.shape[3])
            labels = sampled(targets.labels, size, self.semantic_stride)
            found = self.semantic_loss(output.semantic, labels.where(labels != IGNORED, -1), generator)
            losses["semantic"] = config.semantic_weight * found
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def semantic_loss(self, logits: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Loss of the auxiliary classifier before its weight.

        Args:
            logits: [B, C or C + 1, h, w].
            labels: [B, h, w] int64, negative where void.
            generator: Where the random choice of pixels comes from.
        """
        factors: Tensor = self.class_factors  # type: ignore[assignment]
        with without_autocast(logits):
            return torch.stack(
                [
                    semantic_loss(full(own.flatten(1)), known.flatten().long(), factors, self.options, generator)
                    for own, known in zip(logits, labels, strict=True)
                ]
            ).mean()

    def mask_probabilities(self, output: MaskOutput, size: Size) -> Tensor:
        """The softmax over queries at every pixel, [B, N, H, W]."""
        return resize_masks(full(output.masks), size, self.stride).softmax(1)

    def class_scores(self, output: MaskOutput, size: Size) -> Tensor:
        """Sum over queries of the probability of each class and that of the mask, image by image to save memory."""
        classes = full(output.classes).softmax(-1)[..., :-1]
        if exporting():  # a loop would fix the number of images
            return torch.einsum("bnc,bnhw->bchw", classes, self.mask_probabilities(output, size))
        scores = [
            torch.einsum("nc,nhw->chw", own, resize_masks(full(masks[None]), size, self.stride)[0].softmax(0))
            for own, masks in zip(classes, output.masks, strict=True)
        ]
        return torch.stack(scores) if scores else classes.new_zeros(0, classes.shape[2], *size)

    def panoptic(self, output: MaskOutput, size: Size, rules: Any) -> list[Panoptic]:
        """Segments of every image; -1 among the rules stands for the published value for COCO."""
        own = {
            "thing_threshold": kmax_panoptic.THING_THRESHOLD,
            "stuff_threshold": kmax_panoptic.STUFF_THRESHOLD,
            "pixel_threshold": kmax_panoptic.PIXEL_THRESHOLD,
        }
        limits = {name: value if getattr(rules, name) == -1 else getattr(rules, name) for name, value in own.items()}
        return [
            kmax_panoptic.panoptic(
                classes,
                resize_masks(full(masks[None]), size, self.stride)[0].softmax(0),
                frozenset(self.info.things),
                overlap=rules.overlap,
                class_power=rules.class_power,
                mask_power=rules.mask_power,
                **limits,
            )
            for classes, masks in zip(output.classes, output.masks, strict=True)
        ]

    def instances(self, output: MaskOutput, size: Size, top: int = 100) -> list[Instances]:
        """Objects of every image, of things alone if the data has things.

        Args:
            output: Of :meth:`forward`.
            size: Height and width to give them at.
            top: Pairs of query and class to give at most.
        """
        return [
            kmax_panoptic.instances(classes, masks, size, self.stride, top=top, things=self.info.things or None)
            for classes, masks in zip(output.classes, output.masks, strict=True)
        ]


def map_targets(segments: Segments, size: Size, stride: int) -> MapTargets:
    """Targets of one image at the size of its mask map; segments that vanish there are left out.

    Args:
        segments: At the size of the image.
        size: Height and width of the map.
        stride: Pixels per position of the map.
    """
    masks = sampled(segments.masks, size, stride)
    present = masks.flatten(1).any(1)
    return MapTargets.of(segments.classes[present], masks[present])


def sampled(labels: Tensor, size: Size, stride: int) -> Tensor:
    """Labels or masks at the size of a map: pixels at multiples of the stride, or the nearest where that does not fit.

    Args:
        labels: [X, H, W] of any type.
        size: Height and width of the map.
        stride: Pixels per position of the map.

    Returns:
        [X, *size].
    """
    picked = labels[:, ::stride, ::stride]
    if picked.shape[1:] == tuple(size):
        return picked
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].to(labels.dtype)  # below 2 ** 24
