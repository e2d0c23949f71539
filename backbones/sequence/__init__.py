"""Mixers for tokens in time, all with one interface, picked by name."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from backbones.sequence.config import MIXERS
from graftwork.errors import all_problems
from graftwork.names import unknown

if TYPE_CHECKING:
    from backbones.sequence.base import Mixer

__all__ = ["MIXERS", "create_mixer"]


def create_mixer(name: str, width: int, *, causal: bool = False, **options: Any) -> Mixer:
    """Build a mixer by name.

    Args:
        name: A name of :data:`MIXERS`, or ``custom:package.module.Class``.
        width: Channels of a token.
        causal: Output i must depend on inputs up to i only.
        options: Fields of the mixer's configuration, e.g. ``heads=4``.

    Raises:
        ConfigError: Unknown name or option, or a value that does not fit; the message names the nearest.
    """
    config_class = MIXERS.get(name)
    known = [field.name for field in fields(config_class)]
    for option in options:
        if option not in known:
            raise unknown(f"option of mixer {name}", option, known)
    config = config_class(**options)
    problems = list(config.problems()) if hasattr(config, "problems") else []
    if problems:
        raise all_problems(problems)
    mixer: Mixer = config.build(width, causal=causal)
    return mixer
