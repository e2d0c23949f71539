"""What a dataset of images tells models, metrics and predictors about itself. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ClassificationInfo:
    """Size, scale and classes of a dataset; plain values, so that a checkpoint can keep it.

    Args:
        image_size: Height and width of the images, in pixels.
        channels: 3 for colour, 1 for grey.
        classes: Name of each class.
        counts: Training images of each class.
        mean: Mean of every channel on the scale from 0 to 1; images are given less the mean, by the deviation.
        std: Deviation of every channel.
        crop_pct: Share of the shorter side that evaluation keeps.
        interpolation: How images are resized.
        dataset: Name for titles.
    """

    image_size: int
    channels: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    dataset: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ClassificationInfo:
        """The inverse of :meth:`plain`."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items() if key in known
        }
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """Lists, numbers and strings only."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
