"""Dilations of DiNAT: a setting of the task, not a part of the weights. No torch here.

The published lists for classification follow one rule: every second block is near-global, with as many steps between
neighbours as fit the kernel into the map. So the same weights take other lists for other image sizes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from graftwork.errors import ConfigError

Levels = list[list[int | None]]
"""Dilation of every block of every level; None takes the largest that the map allows when the block runs."""

MEND = "Use published, auto, or a list per level such as [[1,8],[1,4],[1,2],[1]]"


def block_dilations(
    option: str | Sequence[Any],
    *,
    depths: Sequence[int],
    strides: Sequence[int],
    kernel_size: int,
    image_size: int,
    dilated: bool = True,
) -> Levels:
    """Dilation of every block.

    Args:
        option: ``published``: those of the paper for images of ``image_size`` (all 1 where not ``dilated``); ``auto``:
            every second block takes the largest that the map allows when it runs; or a list for every level, also as
            text, which is repeated to the depth of the level.
        depths: Blocks of every level.
        strides: Pixels per position of every level.
        kernel_size: Side of the window.
        image_size: Side of the images of ``published``, in pixels.
        dilated: The variant is one with dilations.

    Returns:
        A list per level, as long as the level is deep.

    Raises:
        ConfigError: An unknown word, text that is no list, a wrong number of lists, or entries that are no positive
            integers; the message names them.
    """
    if option == "auto":
        return [_repeated([1, None], depth) for depth in depths]
    if option == "published":
        sides = [-(-image_size // stride) for stride in strides]
        largest = [max(1, side // kernel_size) if dilated else 1 for side in sides]
        return [_repeated([1, most], depth) for most, depth in zip(largest, depths, strict=True)]
    levels = _parsed(option) if isinstance(option, str) else list(option)
    if len(depths) == 1 and levels and all(isinstance(entry, int) for entry in levels):
        levels = [levels]
    if len(levels) != len(depths):
        raise ConfigError(f"dilations={levels} are {len(levels)} lists for {len(depths)} levels", mend=MEND)
    return [_level(number, entries, depth) for number, (entries, depth) in enumerate(zip(levels, depths, strict=True))]


def _parsed(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"dilations={text!r} is neither published nor auto nor a list: {error}", mend=MEND) from None
    if not isinstance(found, list):
        raise ConfigError(f"dilations={text!r} is no list", mend=MEND)
    return found


def _level(number: int, entries: Any, depth: int) -> list[int | None]:
    where = f"dilations of level {number}"
    if not isinstance(entries, list | tuple) or not entries:
        raise ConfigError(f"{where}: expected a list of numbers, got {entries!r}", mend=MEND)
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 1:
            raise ConfigError(f"{where}: {entry!r} in {list(entries)} is no integer of at least 1", mend=MEND)
    if len(entries) > depth:
        raise ConfigError(f"{where}: {list(entries)} are {len(entries)} for {depth} blocks", mend=MEND)
    return _repeated(entries, depth)


def _repeated(entries: Sequence[int | None], depth: int) -> list[int | None]:
    return [entries[block % len(entries)] for block in range(depth)]
