"""Whether a configuration asks of trained weights what they were trained for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from graftwork.errors import ConfigError

CHOSEN = ("features", "target", "columns")
"""Choices of the data that decide what a model reads and gives, beside the sizes that its ``info`` holds."""

IDENTITY = ("names", "outputs", "frequency")
"""Facts by which a reader tells one dataset from another."""


def refuse_other_data(stored: Mapping[str, Any], info: Any, data: Mapping[str, Any], where: str) -> None:
    """Stop where options of the data differ from those that weights were trained with, and would be ignored.

    Args:
        stored: Configuration of the run that wrote the weights.
        info: Its plain facts about the data; they win over the configuration where there are weights.
        data: The section ``data`` of the configuration now.
        where: File of the weights.

    Raises:
        ConfigError: There is such a difference; all are named.
    """
    before = stored.get("data")
    if not isinstance(before, Mapping) or not isinstance(info, Mapping):
        return
    changed = changes(before, data, [*info, *(key for key in CHOSEN[:2] if key not in info)])
    if changed:
        text = ", ".join(f"data.{key}={old}, not {now}" for key, (old, now) in changed.items())
        options = " and ".join(f"--data.{key} {now}" for key, (_, now) in changed.items())
        raise ConfigError(f"was trained with {text}", where, f"Drop {options}, or train with it")


def changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each of ``keys`` that both mappings have and that differs."""
    return {key: (before[key], now[key]) for key in keys if key in before and key in now and before[key] != now[key]}


def other_dataset(trained: Any, scored: Any) -> str:
    """A phrase that names how the data scored differs from the data trained on; empty where it is alike.

    Args:
        trained: Plain facts about the data that the weights were trained on.
        scored: The same of the data that they are scored on.
    """
    if not isinstance(trained, Mapping) or not isinstance(scored, Mapping):
        return ""
    found = changes(trained, scored, IDENTITY)
    return "; ".join(f"{key} {_short(old)}, now {_short(new)}" for key, (old, new) in found.items())


def _short(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    names = [str(item) for item in value]
    return f"{', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
