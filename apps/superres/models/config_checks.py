"""What the configurations of restoration networks check alike. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from apps.superres.models.info import ImageInfo
from graftwork.errors import all_problems

Upsampler = Literal["auto", "classical", "light", "nearest", "residual"]
COUNTS = ("width", "kernel", "compress", "squeeze")


def resolved_upsampler(upsampler: str, own: str, info: ImageInfo) -> str:
    """The kind of the last layers that ``auto`` stands for.

    Args:
        upsampler: The configured kind.
        own: The kind that the network was published with.
        info: Its scale decides.

    Returns:
        ``residual`` for scale 1, where a network gives what to add to its input, else ``own``.
    """
    if upsampler != "auto":
        return upsampler
    return "residual" if info.scale == 1 else own


def refuse(problems: Iterator[str]) -> None:
    """Raise one error that lists all problems; do nothing if there are none.

    Raises:
        ConfigError: There is at least one.
    """
    found = list(problems)
    if found:
        raise all_problems(found)


def divisor(number: int, near: int) -> int:
    """The divisor of a number that is nearest to ``near``."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: abs(n - near), default=1)


def common_problems(config: Any) -> Iterator[str]:
    """Checks on the fields most networks share; a field the network lacks is skipped."""
    for name in COUNTS:
        value = getattr(config, name, 1)
        if value < 1:
            yield f"{name}={value} must be at least 1"
    if not config.depths or min(config.depths) < 1:
        yield f"depths={tuple(config.depths)} must be one or more numbers of at least 1"
    if not 0 <= getattr(config, "drop_path", 0) < 1:
        yield f"drop_path={config.drop_path} must be at least 0 and below 1"
    if config.mlp_ratio * config.width < 1:
        yield f"mlp_ratio={config.mlp_ratio} leaves no features of width={config.width}"
    if config.image_range <= 0:
        yield f"image_range={config.image_range} must be positive"


def group_heads(config: Any) -> tuple[int, ...]:
    """Heads of each group, where one number may stand for all."""
    heads = tuple(config.heads)
    return heads * len(config.depths) if len(heads) == 1 else heads


def head_problems(config: Any) -> Iterator[str]:
    """Heads that fit neither the groups nor the features."""
    if len(config.group_heads) != len(config.depths):
        yield f"heads={tuple(config.heads)} must be one number, or one for each of depths={tuple(config.depths)}"
    for heads in sorted(set(config.heads)):
        if heads < 1 or config.width % heads:
            yield f"width={config.width} must be a multiple of heads={heads}; try heads={divisor(config.width, heads)}"


def doubles(scale: int) -> bool:
    """Whether doubling, at least once, makes the scale."""
    return scale > 1 and scale & (scale - 1) == 0


def info_problems(upsampler: str, own: str, info: ImageInfo) -> Iterator[str]:
    """Sizes of images that the last layers cannot give."""
    scale, kind = info.scale, resolved_upsampler(upsampler, own, info)
    if info.channels < 1:
        yield f"channels={info.channels} must be at least 1"
    if scale < 1:
        yield f"scale={scale} must be at least 1"
    elif kind == "classical" and scale != 3 and scale & (scale - 1):
        yield f"upsampler=classical cannot give scale={scale}; use scale 1, 2, 3, 4, 8, ... or upsampler=light"
    elif kind == "nearest" and not doubles(scale):
        yield f"upsampler=nearest cannot give scale={scale}; use scale 2, 4, 8, ... or upsampler=light"
    elif kind == "residual" and scale != 1:
        yield f"upsampler=residual keeps the size and cannot give scale={scale}; use {own}"
