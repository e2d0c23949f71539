"""Options of the super-resolution app. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from apps.core.config import AppConfig, OptimConfig, ScheduleConfig, TrainerConfig
from apps.core.task import Task
from apps.superres.models.config import MODELS
from datamodules.superres.config import DATASETS
from graftwork.components import component


@dataclass(kw_only=True)
class TileConfig:
    """Cutting of large images at inference; the defaults choose by the memory that is free."""

    size: int = 0
    """Side of the tiles in input pixels; 0 takes whole images where they fit into memory, else the largest that fit."""
    margin: int = -1
    """Pixels around each tile that are read for context only; -1 takes what the model sees."""
    blend: int = 8
    """Pixels over which neighbouring tiles fade into each other."""
    ensemble: bool = False
    """Average over the eight flips and transposes of each tile: eight times the cost. Not for mosaics, whose pattern a
    flip changes."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.size < 0:
            yield f"size={self.size} must be 0 (automatic) or more"
        if self.margin < -1:
            yield f"margin={self.margin} must be -1 (automatic) or more"
        if self.blend < 0:
            yield f"blend={self.blend} must be 0 or more"


@dataclass(kw_only=True)
class LossConfig:
    """Training loss on images in [0, 1]."""

    kind: Literal["l1", "mse", "charbonnier", "focus_power", "focus_exponential"] = "l1"
    """Error per value; the focus losses weigh large errors up, for demosaicing."""
    frequency_weight: float = 0.0
    """Weight of the mean absolute error between Fourier spectra; 0 leaves it out."""
    focus_gamma: float = 1.0
    """Strength of the focus losses."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        for name in ("frequency_weight", "focus_gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                yield f"{name}={getattr(self, name)} must be 0 or more"


def _optim() -> OptimConfig:
    return OptimConfig(name="adam", lr=5e-4, weight_decay=0.0, betas=(0.9, 0.99))


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(name="cosine", min_factor=0.01)


def _trainer() -> TrainerConfig:
    return TrainerConfig(max_epochs=100)


@dataclass(kw_only=True)
class SuperresConfig(AppConfig):
    """Enlarge images, or restore them at their own size."""

    data: Any = component(DATASETS)
    model: Any = component(MODELS, default="cfsr")
    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss."""
    tiles: TileConfig = field(default_factory=TileConfig)
    """Cutting of large images at inference."""
    optim: OptimConfig = field(default_factory=_optim)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=_schedule)
    """Learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=_trainer)
    """Training loop."""

    def problems(self) -> Iterator[str]:
        """Values of data and inference that contradict each other."""
        yield from super().problems()
        pattern = getattr(getattr(self.data, "degradation", None), "pattern", "")
        if pattern and self.tiles.ensemble:
            yield (
                f"tiles.ensemble=True flips images, and data.degradation.pattern={pattern} is another pattern when "
                "flipped; use --tiles.ensemble false"
            )


TASK = Task(
    name="superres",
    title="super-resolution and restoration of images",
    config=SuperresConfig,
    module="apps.superres.module:SuperresModule",
    predictor="apps.superres.predict:ImagePredictor",
    registries={"models": MODELS, "datasets": DATASETS},
    monitor="val/psnr",
    mode="max",
)
