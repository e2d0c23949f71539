"""Options of the classification app. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from apps.classification.models.config import MODELS, MajorityConfig, PositionsConfig
from apps.core.config import AppConfig, OptimConfig, ScheduleConfig, TrainerConfig
from apps.core.task import Task
from backbones.vision.config import BACKBONES
from datamodules.classification.config import DATASETS
from graftwork.components import component


@dataclass(kw_only=True)
class MixConfig:
    """Mixup and cutmix of training batches, drawn from seed, epoch and batch."""

    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0 is off, ImageNet recipes take 0.8."""
    cutmix: float = 0.0
    """Alpha of cutmix's beta distribution; 0 is off, ImageNet recipes take 1.0."""
    probability: float = 1.0
    """Share of batches that are mixed."""
    switch: float = 0.5
    """Share of the mixed batches that get cutmix where both are on."""

    @property
    def active(self) -> bool:
        """Whether any batch is mixed."""
        return bool(self.mixup or self.cutmix) and self.probability > 0

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} must be 0 (off) or more"
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name}={getattr(self, name)} must be a share from 0 to 1"


@dataclass(kw_only=True)
class DistillConfig:
    """Learning from a teacher whose outputs were stored by python -m apps.classification.teach."""

    store: str = ""
    """Folder with the teacher's outputs; empty is off."""
    weight: float = 1.0
    """Share of the loss that follows the teacher; the rest follows the labels."""
    temperature: float = 1.0
    """Softens both distributions before they are compared."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if not 0 <= self.weight <= 1:
            yield f"weight={self.weight} must be a share from 0 (labels alone) to 1 (teacher alone)"
        if not self.temperature > 0:
            yield f"temperature={self.temperature} must be above 0"


def _optim() -> OptimConfig:
    return OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05)


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(name="cosine")


def _trainer() -> TrainerConfig:
    return TrainerConfig(max_epochs=30)


@dataclass(kw_only=True)
class ClassificationConfig(AppConfig):
    """Tell the class of an image."""

    data: Any = component(DATASETS)
    model: Any = component(MODELS)
    smoothing: float = 0.0
    """Label smoothing: share of the target that is spread evenly over all classes."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Mixup and cutmix."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Distillation from a stored teacher."""
    top: int = 5
    """Classes listed in predictions and pictures."""
    optim: OptimConfig = field(default_factory=_optim)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=_schedule)
    """Learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=_trainer)
    """Training loop."""

    def __post_init__(self) -> None:
        if isinstance(self.model, PositionsConfig) and not self.checkpoint.monitor:
            self.checkpoint = replace(self.checkpoint, monitor="val/position_accuracy", mode="max")

    def problems(self) -> Iterator[str]:
        """Values of data, model and loss that contradict each other."""
        yield from super().problems()
        if not 0 <= self.smoothing < 1:
            yield f"smoothing={self.smoothing} must be at least 0 and below 1"
        if self.top < 1:
            yield f"top={self.top} must be at least 1"
        sizes = getattr(self.model, "size_problems", None)
        if sizes is not None and self.data.image_size >= 1:
            yield from sizes(self.data.image_size)
        if isinstance(self.model, PositionsConfig):
            yield from self._pretraining_problems()
        else:
            yield from self._class_problems()
        if self.distill.store and self.mix.active:
            yield (
                f"distill.store={self.distill.store} holds outputs for images that are not mixed; set mix.mixup=0 and "
                f"mix.cutmix=0 (now {self.mix.mixup:g} and {self.mix.cutmix:g})"
            )

    def _pretraining_problems(self) -> Iterator[str]:
        if self.mix.active or self.distill.store:
            yield "model.name=positions has no classes; leave mix and distill off"
        if self.checkpoint.monitor.startswith("val/top"):
            yield (
                f"checkpoint.monitor={self.checkpoint.monitor} is not measured by model.name=positions; "
                "try --checkpoint.monitor val/position_accuracy"
            )

    def _class_problems(self) -> Iterator[str]:
        if not getattr(self.data, "labels", True):
            yield "data.labels=false leaves nothing to classify; try --model.name positions"
        if self.checkpoint.monitor == "val/position_accuracy":
            name = MODELS.name_of(self.model)
            yield f"checkpoint.monitor=val/position_accuracy is not measured by model.name={name}; try val/top1"
        if self.distill.store and isinstance(self.model, MajorityConfig):
            yield f"model.name=majority has nothing to learn from distill.store={self.distill.store}"


TASK = Task(
    name="classification",
    title="classification of images, and pretraining and distillation of backbones",
    config=ClassificationConfig,
    module="apps.classification.module:create_module",
    predictor="apps.classification.predict:ImagePredictor",
    registries={"models": MODELS, "backbones": BACKBONES, "datasets": DATASETS},
    monitor="val/top1",
    mode="max",
)
