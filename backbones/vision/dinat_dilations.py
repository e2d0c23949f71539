"""Dilations of DiNAT: a setting of the task, not a part of the weights. No torch here.

The published lists for classification follow one rule: every second block is near-global, with as many steps between
neighbours as fit the kernel into the map. So the same weights take other lists for other image sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
            integers; the message names all of them.
    """
    problems = list(dilation_problems(option, depths))
    if problems:
        raise ConfigError("; ".join(problems), mend=MEND)
    if option == "auto":
        return [_repeated([1, None], depth) for depth in depths]
    if option == "published":
        sides = [-(-image_size // stride) for stride in strides]
        largest = [max(1, side // kernel_size) if dilated else 1 for side in sides]
        return [_repeated([1, most], depth) for most, depth in zip(largest, depths, strict=True)]
    levels = _per_level(json.loads(option) if isinstance(option, str) else option, depths)
    return [_repeated(entries, depth) for entries, depth in zip(levels, depths, strict=True)]


def dilation_problems(option: str | Sequence[Any], depths: Sequence[int]) -> Iterator[str]:
    """Everything that :func:`block_dilations` would refuse in an option.

    Args:
        option: As there.
        depths: Blocks of every level.
    """
    if option in ("published", "auto"):
        return
    lists: Any = option
    if isinstance(option, str):
        try:
            lists = json.loads(option)
        except ValueError as error:
            yield f"dilations={option!r} is neither published nor auto nor a list: {error}"
            return
    if not isinstance(lists, list | tuple):
        yield f"dilations={option!r} is no list"
        return
    levels = _per_level(lists, depths)
    if len(levels) != len(depths):
        yield f"dilations={levels} are {len(levels)} lists for {len(depths)} levels"
        return
    for number, (entries, depth) in enumerate(zip(levels, depths, strict=True)):
        yield from (f"dilations of level {number}: {problem}" for problem in _problems_of_level(entries, depth))


def _per_level(lists: Sequence[Any], depths: Sequence[int]) -> list[Any]:
    """A list per level; a model of one level takes its list bare, too."""
    flat = len(depths) == 1 and lists and all(isinstance(entry, int) for entry in lists)
    return [list(lists)] if flat else list(lists)


def _problems_of_level(entries: Any, depth: int) -> Iterator[str]:
    if not isinstance(entries, list | tuple) or not entries:
        yield f"expected a list of numbers, got {entries!r}"
        return
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 1:
            yield f"{entry!r} in {list(entries)} is no integer of at least 1"
    if len(entries) > depth:
        yield f"{list(entries)} are {len(entries)} for {depth} blocks"


def _repeated(entries: Sequence[int | None], depth: int) -> list[int | None]:
    return [entries[block % len(entries)] for block in range(depth)]
