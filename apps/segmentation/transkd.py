"""Learning from the backbone of a larger segmenter while learning to segment.

A teacher gives its levels and patch embeddings; a :class:`Distiller` brings the student's to the teacher's widths and
compares them. After training only the student remains.

Source: Liu et al. 2022, "TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation". Differs:
any two backbones with the same number of levels, whose maps are resized where their strides differ.

Shape legend: B batch, C channels of the student, D channels of the teacher, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.distill_config import DistillConfig
from apps.segmentation.pyramid import Features, PyramidReader, PyramidSizes
from apps.segmentation.transkd_losses import channel_loss, pyramid_loss
from apps.segmentation.transkd_modules import (
    SQUEEZED,
    CrossSelectiveFusion,
    EmbeddingAlignment,
    EmbeddingAssistant,
    GlobalLocalMixer,
)
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from apps.segmentation.models.segmenter import Segmenter
    from backbones.vision.base import VisionBackbone
    from datamodules.segmentation.info import SegmentationInfo


class Distiller(nn.Module):
    """What is trained between two backbones, and the loss it gives.

    Args:
        config: Which modules, and the factors of the loss.
        student: Sizes of the backbone that learns.
        teacher: Sizes of the one it learns from.
        image_channels: Channels of the images.
        squeezed: Channels that the shares of a fusion are computed from.

    Raises:
        ConfigError: The numbers of levels differ, or the sizes do not suit the modules.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: PyramidSizes,
        teacher: PyramidSizes,
        *,
        image_channels: int = 3,
        squeezed: int = SQUEEZED,
    ) -> None:
        super().__init__()
        _check_levels(config, student, teacher)
        self.config = config
        self.embedding_weights = tuple(config.embedding_weights)[-len(student.channels) :]
        self.fusion = CrossSelectiveFusion(
            student.channels,
            teacher.channels,
            config.width,
            separate_single=config.separate_single,
            squeezed=squeezed,
        )
        self.alignment = EmbeddingAlignment(student.embeddings, teacher.embeddings)
        self.mixer: GlobalLocalMixer | None = None
        self.assistant: EmbeddingAssistant | None = None
        if config.kind == "gl":
            self.mixer = GlobalLocalMixer(student.embeddings[-1], config.heads, residual=config.residual)
        elif config.kind == "ea":
            self.assistant = EmbeddingAssistant(image_channels, student.channels, student.strides, teacher.embeddings)

    def forward(
        self,
        student_levels: Sequence[Tensor],
        student_embeddings: Sequence[Tensor],
        teacher_levels: Sequence[Tensor],
        teacher_embeddings: Sequence[Tensor],
        images: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            student_levels: Fine to coarse, [B, C, H, W] each.
            student_embeddings: Patch embeddings of the levels, likewise.
            teacher_levels: [B, D, H, W] each; no gradient flows to the teacher.
            teacher_embeddings: Likewise.
            images: What the student saw, [B, channels, H, W].

        Returns:
            ``loss``, and its weighted parts ``features`` and ``embeddings``.
        """
        fused = self.fuse(student_levels)
        features = torch.stack(self.feature_terms(fused, teacher_levels)).sum() * self.config.feature_weight
        aligned = self.align(student_embeddings, student_levels, images)
        terms = zip(self.embedding_weights, embedding_terms(aligned, teacher_embeddings), strict=True)
        embeddings = torch.stack([weight * term for weight, term in terms]).sum()
        return {"loss": features + embeddings, "features": features, "embeddings": embeddings}

    def fuse(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The student's levels at the teacher's widths, [B, C, H, W] to [B, D, H, W] each."""
        fused: list[Tensor] = self.fusion(levels)
        return fused

    def align(self, embeddings: Sequence[Tensor], levels: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        """The student's embeddings at the teacher's widths, mixed and helped as configured."""
        if self.mixer is not None:
            embeddings = [*embeddings[:-1], self.mixer(embeddings[-1])]
        aligned: list[Tensor] = self.alignment(embeddings)
        if self.assistant is not None:
            aligned = self.assistant(aligned, levels, images)
        return aligned

    def feature_terms(self, fused: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Loss of every level, fine to coarse, without its factor."""
        pairs = [(resized(ours, theirs), theirs) for ours, theirs in zip(fused, teacher, strict=True)]
        if self.config.features == "hcl":
            return [pyramid_loss(*pair) for pair in pairs]
        return [channel_loss(*pair, temperature=self.config.temperature) for pair in pairs]


def embedding_terms(aligned: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
    """Mean squared error of every patch embedding, fine to coarse; no gradient flows to the teacher."""
    pairs = [(resized(ours, theirs), theirs.detach()) for ours, theirs in zip(aligned, teacher, strict=True)]
    precise = [torch.promote_types(ours.dtype, torch.float32) for ours, _ in pairs]
    return [F.mse_loss(ours.to(dtype), theirs.to(dtype)) for (ours, theirs), dtype in zip(pairs, precise, strict=True)]


def resized(ours: Tensor, theirs: Tensor) -> Tensor:
    """The student's map at the size of the teacher's, where their strides differ."""
    size = theirs.shape[-2:]
    return ours if ours.shape[-2:] == size else F.interpolate(ours, size=size, mode="bilinear", align_corners=False)


def _check_levels(config: DistillConfig, student: PyramidSizes, teacher: PyramidSizes) -> None:
    ours, theirs = len(student.channels), len(teacher.channels)
    if ours != theirs:
        raise ConfigError(
            f"the student's backbone has {ours} levels (strides {list(student.strides)}), the teacher's {theirs} "
            f"(strides {list(teacher.strides)})",
            mend="Take backbones with as many levels as each other",
        )
    if len(config.embedding_weights) < ours:
        raise ConfigError(
            f"embedding_weights={list(config.embedding_weights)} has {len(config.embedding_weights)} factors, the "
            f"backbones have {ours} levels",
            mend="Give a factor for each level",
        )


class Teacher:
    """A trained segmenter's backbone, which is only looked at.

    It is no module, so that it is neither trained nor kept in the student's checkpoints; it follows the images to
    their device.

    Args:
        segmenter: The trained model; its backbone is frozen.
        info: Of the data it was trained on, whose scale of pixels it expects.
        student_info: Of the data of the student, whose images it is given.

    Raises:
        ConfigError: The two see images of other channels.
    """

    def __init__(self, segmenter: Segmenter, info: SegmentationInfo, student_info: SegmentationInfo) -> None:
        if info.channels != student_info.channels:
            raise ConfigError(
                f"the teacher sees images of {info.channels} channels, the data has {student_info.channels}",
                mend="Take a teacher that was trained on such images",
            )
        self.backbone: VisionBackbone = segmenter.backbone.eval().requires_grad_(False)
        self.reader = PyramidReader(self.backbone)
        self._factor, self._offset = _rescaling(student_info, info)

    @property
    def sizes(self) -> PyramidSizes:
        """Of its levels and embeddings."""
        return self.reader.sizes

    def __call__(self, images: Tensor) -> Features:
        """Its levels and patch embeddings of the student's images [B, C, H, W]."""
        self.backbone.to(images.device)
        with torch.no_grad(), self.reader.reading() as found:
            self.backbone(self.rescaled(images))
        return found

    def rescaled(self, images: Tensor) -> Tensor:
        """Images less the student's mean by its deviation, to less the teacher's by the teacher's."""
        if self._factor is None or self._offset is None:
            return images
        return images * self._factor.to(images) + self._offset.to(images)


def _rescaling(ours: SegmentationInfo, theirs: SegmentationInfo) -> tuple[Tensor | None, Tensor | None]:
    """Factor and offset from one scale of the channels to another, [C, 1, 1]; None where they are the same."""
    if (ours.mean, ours.std) == (theirs.mean, theirs.std):
        return None, None
    mean, std, their_mean, their_std = (
        torch.tensor(values)[:, None, None] for values in (ours.mean, ours.std, theirs.mean, theirs.std)
    )
    return std / their_std, (mean - their_mean) / their_std


def open_teacher(weights: str, info: SegmentationInfo) -> Teacher:
    """The teacher of a run of ours.

    Args:
        weights: A checkpoint or a run folder.
        info: Of the student's data. Classes may differ: only the backbones are compared.

    Raises:
        ConfigError: The run's model has no backbone, or sees other images.
        WeightsError: The weights cannot be read.
    """
    from apps.core.inference.load import load
    from apps.segmentation.models.segmenter import Segmenter

    module = load("segmentation", weights, device="cpu").module
    if not isinstance(module.model, Segmenter):
        raise ConfigError(f"{type(module.model).__name__} has no backbone to learn from", "distill.teacher")
    return Teacher(module.model, module.info, info)


def build_distiller(config: DistillConfig, student: VisionBackbone, teacher: Teacher) -> Distiller:
    """The modules between a student and a teacher.

    Raises:
        ConfigError: The two do not go together.
    """
    sizes = PyramidReader(student).sizes
    return Distiller(config, sizes, teacher.sizes, image_channels=student.in_channels)
