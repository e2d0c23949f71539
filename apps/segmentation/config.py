"""Options of the segmentation app. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apps.core.config import AppConfig, OptimConfig, ScheduleConfig, TrainerConfig
from apps.core.task import Task
from apps.segmentation.distill_config import DistillConfig
from apps.segmentation.models.config import HEADS, MODELS
from datamodules.segmentation.config import DATASETS
from graftwork.components import component


@dataclass(kw_only=True)
class InferenceConfig:
    """How images are seen at validation, test and prediction."""

    mode: Literal["whole", "slide"] = "whole"
    """Whole images, or windows of the size of training images that overlap."""
    crop: int | tuple[int, int] = 0
    """Side of the windows, or height and width, in pixels; 0 takes those of the training images."""
    stride: int | tuple[int, int] = 0
    """Pixels from window to window, or those down and to the right; 0 takes two thirds of the window."""
    blend: bool = False
    """Let windows fade into each other rather than count alike; published numbers are without. Tiles always do."""
    shorter_side: int = 0
    """Bring the shorter side of every image to this many pixels first, 512 for published numbers on ADE20K; scores are
    those of the image's own pixels. 0 leaves images as they are."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes that an image is seen at, relative to its own or to shorter_side; probabilities of all are averaged."""
    flip: bool = False
    """See each image mirrored, too."""
    max_pixels: int = 4_194_304
    """Larger images are read and predicted in tiles, so that memory does not grow with them; their objects are found
    at this size."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds."""
        sides = {name: _sides(getattr(self, name)) for name in ("crop", "stride")}
        for name, pair in sides.items():
            if len(pair) != 2 or (min(pair) < 1 and getattr(self, name) != 0):
                yield f"{name}={getattr(self, name)} must be a number of pixels, or two, or 0 (automatic)"
        if self.crop and any(step > side for step, side in zip(sides["stride"], sides["crop"], strict=False)):
            yield f"stride={self.stride} must be at most crop={self.crop}, else pixels are left out"
        if self.shorter_side and self.shorter_side < 32:
            yield f"shorter_side={self.shorter_side} must be at least 32, or 0 for images as they are"
        if not self.scales or min(self.scales) <= 0:
            yield f"scales={list(self.scales)} must be one or more numbers above 0"
        if self.max_pixels < 1024:
            yield f"max_pixels={self.max_pixels} must be at least 1024"


def _sides(value: int | Sequence[int]) -> Sequence[int]:
    """Height and width."""
    return (value, value) if isinstance(value, int) else value


@dataclass(kw_only=True)
class PanopticConfig:
    """Which masks become segments; the defaults are each head's published ones for COCO."""

    thing_threshold: float = -1.0
    """Certainty that a thing must exceed; -1 takes the head's own."""
    stuff_threshold: float = -1.0
    """The same for stuff; -1 takes the head's own."""
    overlap: float = 0.8
    """Share of a mask that must be left after those before it took theirs."""
    pixel_threshold: float = -1.0
    """Probability from which on a pixel belongs to a mask; -1 takes the head's own."""
    class_power: float = 1.0
    """Exponent of the class's certainty in the order of masks (kMaX-DeepLab)."""
    mask_power: float = 1.0
    """Exponent of the mask's certainty in the order of masks (kMaX-DeepLab); 0 for Cityscapes."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        for name in ("thing_threshold", "stuff_threshold", "pixel_threshold"):
            value = getattr(self, name)
            if value != -1 and not 0 <= value <= 1:
                yield f"{name}={value:g} must be from 0 to 1, or -1 for the head's own"
        if not 0 <= self.overlap <= 1:
            yield f"overlap={self.overlap:g} must be from 0 to 1"
        for name in ("class_power", "mask_power"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name):g} must be 0 or more"


CORRUPTION_GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "motion_blur", "zoom_blur"),
    "weather": ("fog", "frost", "snow", "brightness"),
    "digital": ("contrast", "jpeg", "pixelate"),
    "occlusion": ("occlusion",),
}
"""Names of the corruptions of each kind, see :mod:`apps.segmentation.corruptions`."""


@dataclass(kw_only=True)
class CorruptionConfig:
    """Scores of a test under corrupted images; each corruption costs five more tests."""

    names: str = ""
    """Corruptions with commas between, kinds (noise, blur, weather, digital, occlusion) or all; none if empty."""
    images: int = 100
    """Images of the test split that are corrupted, the first ones; 0 takes all."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of single corruptions, each once."""
        found: list[str] = []
        for word in filter(None, (part.strip() for part in self.names.split(","))):
            found += [name for group in CORRUPTION_GROUPS.values() for name in group] if word == "all" else []
            found += CORRUPTION_GROUPS.get(word, (word,)) if word != "all" else ()
        return tuple(dict.fromkeys(found))

    def problems(self) -> Iterator[str]:
        """Names that are none."""
        known = {name for group in CORRUPTION_GROUPS.values() for name in group}
        for name in self.chosen:
            if name not in known:
                yield f"names={self.names} has '{name}', which is no corruption; known: all, {', '.join(sorted(known))}"
        if self.images < 0:
            yield f"images={self.images} must be 0 (all) or more"


def _optim() -> OptimConfig:
    return OptimConfig(name="adamw", lr=1e-4, weight_decay=0.05)


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(name="cosine")


def _trainer() -> TrainerConfig:
    return TrainerConfig(max_epochs=100)


@dataclass(kw_only=True)
class SegmentationConfig(AppConfig):
    """Give every pixel a class, and every object a segment."""

    data: Any = component(DATASETS)
    model: Any = component(MODELS)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Windows, scales and tiles."""
    panoptic: PanopticConfig = field(default_factory=PanopticConfig)
    """From masks to segments."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Learning from a larger segmenter."""
    corruptions: CorruptionConfig = field(default_factory=CorruptionConfig)
    """Tests under corrupted images."""
    optim: OptimConfig = field(default_factory=_optim)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=_schedule)
    """Learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=_trainer)
    """Training loop."""

    def problems(self) -> Iterator[str]:
        """Values that contradict each other."""
        yield from super().problems()
        if self.distill.active and self.trainer.compile:
            yield "trainer.compile=true hides levels from a teacher; set it to false, or distill.kind=none"


TASK = Task(
    name="segmentation",
    title="semantic and panoptic segmentation of images",
    config=SegmentationConfig,
    module="apps.segmentation.module:SegmentationModule",
    predictor="apps.segmentation.predict:SegmentationPredictor",
    registries={"models": MODELS, "heads": HEADS, "datasets": DATASETS},
    monitor="val/miou",
    mode="max",
)
