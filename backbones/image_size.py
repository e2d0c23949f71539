"""Sizes of images as words of a command line. Standard library only."""

from __future__ import annotations

import re

from graftwork.errors import ConfigError


def image_size(text: str, option: str, least: int, example: str) -> tuple[int, int]:
    """Height and width from a side, ``224``, or both, ``512x1024``.

    Args:
        text: What the user gave.
        option: The option it was given to.
        least: Smallest side, in pixels.
        example: A size to propose.

    Raises:
        ConfigError: Something else, or a side that is too small.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(sides) < least:
        pixels = "1 pixel" if least == 1 else f"{least} pixels"
        raise ConfigError(
            f"{option} {text} must be a side or height x width of at least {pixels}", mend=f"Try {option} {example}"
        )
    return sides
