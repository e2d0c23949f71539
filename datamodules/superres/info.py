"""What a dataset of images to restore tells models, metrics and predictors about itself. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class RestorationInfo:
    """Sizes and protocol of a dataset; plain values, so that a checkpoint can keep it.

    Args:
        scale: Pixels of the original per degraded pixel and side; 1 restores at the same size.
        channels: Channels of the originals: 3 for colour, 1 for grey.
        peak: Largest value of the originals.
        degradation: Name of what was done to them.
        input_channels: Channels of the degraded images where they differ, as those of a packed mosaic; 0 for the same.
        pattern: Colour filters of a mosaic; empty for none.
        period: Sides of degraded images are multiples of this, in pixels of the original.
        colour: Whether published scores are those of luma or of all channels.
        border: Pixels on each side that published scores leave out.
        patch: Side of the degraded training patches, in pixels.
        dataset: Name for titles.
    """

    scale: int
    channels: int
    peak: float = 1.0
    degradation: str = "bicubic"
    input_channels: int = 0
    pattern: str = ""
    period: int = 1
    colour: Literal["y", "rgb"] = "rgb"
    border: int = 0
    patch: int = 64
    dataset: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RestorationInfo:
        """The inverse of :meth:`plain`."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in plain.items() if key in known})

    def plain(self) -> dict[str, Any]:
        """Numbers and strings only."""
        return dataclasses.asdict(self)

    @property
    def degraded_channels(self) -> int:
        """Channels of the degraded images."""
        return self.input_channels or self.channels
