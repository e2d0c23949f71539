"""Options of learning from a larger segmenter. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from apps.segmentation.transkd import Distiller, Teacher
    from backbones.vision.base import VisionBackbone

Kind = Literal["none", "base", "gl", "ea"]
FeatureLoss = Literal["hcl", "channel"]


@dataclass(kw_only=True)
class DistillConfig:
    """TransKD: the backbone also learns from the levels and patch embeddings of a trained segmenter's backbone."""

    kind: Kind = "none"
    """none; base: levels and patch embeddings; gl: global and local mixing of the last embedding, too; ea: embeddings
    are helped by others of the teacher's width."""
    teacher: str = ""
    """The teacher: a checkpoint or a run folder of python -m apps.segmentation fit."""
    features: FeatureLoss = "hcl"
    """Compare levels by squares at several resolutions, or each channel as a distribution over positions."""
    feature_weight: float = 1.0
    """Factor of the levels in the loss."""
    embedding_weights: tuple[float, ...] = (0.1, 0.1, 0.5, 1.0)
    """Factors of the patch embeddings, fine to coarse; fewer levels than factors take the last ones."""
    temperature: float = 4.0
    """Softens the distributions over positions (features=channel)."""
    width: int = 64
    """Channels in which the levels of the student are fused."""
    heads: int = 8
    """Attention heads of the mixing of the last embedding (kind=gl); they must divide its channels."""
    residual: bool = False
    """Add what the mixing was given to what it gives (kind=gl)."""
    separate_single: bool = False
    """Let batches of one image take a layer of their own where levels are fused, as published; else they take the one
    of larger batches, with running statistics in its norm."""

    @property
    def active(self) -> bool:
        """Whether there is a teacher to learn from."""
        return self.kind != "none"

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds."""
        if self.active and not self.teacher:
            yield f"kind={self.kind} needs a teacher: a checkpoint or a run folder"
        if self.teacher and not self.active:
            yield f"teacher={self.teacher} is not used with kind=none; set kind to base, gl or ea"
        if self.feature_weight < 0:
            yield f"feature_weight={self.feature_weight:g} must be 0 or more"
        if not self.embedding_weights or min(self.embedding_weights) < 0:
            yield f"embedding_weights={list(self.embedding_weights)} must be one or more numbers from 0 on"
        if not self.temperature > 0:
            yield f"temperature={self.temperature:g} must be above 0"
        for name in ("width", "heads"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"

    def build(self, student: VisionBackbone, teacher: Teacher) -> Distiller:
        """The modules between two backbones that are trained beside the student.

        Args:
            student: The backbone that learns.
            teacher: What it learns from, see :func:`apps.segmentation.transkd.open_teacher`.

        Raises:
            ConfigError: The two do not go together.
        """
        from apps.segmentation.transkd import build_distiller

        return build_distiller(self, student, teacher)
