"""What a head must know of its backbone and its data. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HeadInfo:
    """Sizes that a head is built for.

    Args:
        channels: Channels of the backbone's levels, fine to coarse.
        strides: Pixels per position of each level.
        classes: Number of classes.
        things: Labels of the classes whose objects are told apart.
        weights: Factor of each class in the loss; empty for 1 each.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classes: int
    things: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
