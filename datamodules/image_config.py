"""Options that datasets of images share. Standard library only: help and checks need no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from graftwork.errors import all_problems

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the channels of ImageNet on the scale from 0 to 1, which most published weights expect."""


@dataclass(kw_only=True)
class ImageFilesConfig:
    """Files, splits and loaders of images."""

    counts: ClassVar[tuple[str, ...]] = ("batch_size", "eval_batch_size")
    """Options that must be 1 or more."""

    root: str | None = None
    """Folder with the images."""
    channels: int = 3
    """3 for colour, 1 for grey; images are converted."""
    val_share: float = 0.1
    """Share of the images that is set aside for validation where the data has no validation images."""
    test_share: float = 0.1
    """Share of the images that is set aside for testing where the data has neither training nor test folders."""
    batch_size: int = 8
    """Images per training batch and device."""
    eval_batch_size: int = 1
    """Whole images per validation and test batch; above 1 they must be of one size. Scores do not depend on it."""
    num_workers: int = 0
    """Loader processes; results do not depend on it. Photographs want 4 and more."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What a file that cannot be decoded does: stop, or be replaced by the next image and listed in the report."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds with each other."""
        for name in self.counts:
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        if self.channels not in (1, 3):
            yield f"channels={self.channels} must be 3 (colour) or 1 (grey)"
        for name in ("val_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 0 and below 1"
        if self.val_share + self.test_share >= 1:
            yield f"val_share={self.val_share} and test_share={self.test_share} leave nothing to train on"
        if self.num_workers < 0:
            yield f"num_workers={self.num_workers} must be 0 (load in the main process) or more"

    def nested(self) -> dict[str, Any]:
        """Sections of these options that have problems of their own, by name."""
        return {}

    def check(self) -> None:
        """Stop with every problem at once.

        Raises:
            ConfigError: There is a problem; the message lists all of them.
        """
        inner = [f"{name}.{text}" for name, section in self.nested().items() for text in section.problems()]
        if problems := [*self.problems(), *inner]:
            raise all_problems(problems)


@dataclass(kw_only=True)
class StandardisedConfig(ImageFilesConfig):
    """Images whose channels are brought to mean 0 and deviation 1, as trunks expect them."""

    mean: tuple[float, ...] = ()
    """Mean of every channel on the scale from 0 to 1, taken off; ImageNet's if empty, as most weights expect."""
    std: tuple[float, ...] = ()
    """Deviation of every channel, divided by; ImageNet's if empty."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds with each other."""
        yield from super().problems()
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.channels:
                yield f"{name}={list(values)} has {len(values)} values for channels={self.channels}"
        # written so that NaN is out of range too
        if any(not 0 <= value <= 1 for value in self.mean):
            yield f"mean={list(self.mean)} must be from 0 to 1, as pixels are here; divide values of 0 to 255 by 255"
        if any(not 0 < value <= 1 for value in self.std):
            yield (
                f"std={list(self.std)} must be above 0 and up to 1, for pixels from 0 to 1; divide values of 0 to 255 "
                "by 255"
            )

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean of every channel, ImageNet's where none is set."""
        return tuple(self.mean) or self._imagenet(IMAGENET_MEAN)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Deviation of every channel, ImageNet's where none is set."""
        return tuple(self.std) or self._imagenet(IMAGENET_STD)

    def _imagenet(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return values if self.channels == 3 else (round(sum(values) / len(values), 3),)
