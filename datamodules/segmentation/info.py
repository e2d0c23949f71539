"""What a dataset of labelled images tells models, metrics and predictors about itself. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

IGNORED = 255
"""Label of pixels that are neither trained on nor scored; files with another one are mapped to it."""


@dataclasses.dataclass(frozen=True)
class SegmentationInfo:
    """Classes and scale of a dataset; plain values, so that a checkpoint can keep it.

    Args:
        classes: Name of each class, in the order of the labels 0, 1, ...
        palette: Colour of each class, (red, green, blue) from 0 to 255.
        things: Labels of the classes whose objects are told apart; empty for semantic data.
        panoptic: Whether samples have segments.
        crop: Height and width of training images, in pixels.
        channels: 3 for colour, 1 for grey.
        mean: Mean of every channel on the scale from 0 to 1; images are given less the mean, by the deviation.
        std: Deviation of every channel.
        pixels: Training pixels of each class; empty where they were not counted.
        present: Pixels of the training images in which a class occurs, for median-frequency weights.
        dataset: Name for titles.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    things: tuple[int, ...] = ()
    panoptic: bool = False
    crop: tuple[int, int] = (512, 512)
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    pixels: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    dataset: str = ""

    @property
    def majority(self) -> int | None:
        """The most frequent class of training; None where pixels were not counted."""
        return max(range(len(self.pixels)), key=self.pixels.__getitem__, default=None)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SegmentationInfo:
        """The inverse of :meth:`plain`."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {key: _frozen(value) for key, value in plain.items() if key in known}
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """Lists, numbers and strings only."""
        return {key: _thawed(value) for key, value in dataclasses.asdict(self).items()}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value
