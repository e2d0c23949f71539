"""Names a user may misspell, and the nearest ones that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from graftwork.errors import ConfigError


def nearest(name: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """The candidates most like ``name``, best first; empty if none is close."""
    known = list(candidates)
    close = difflib.get_close_matches(name.lower(), [known_name.lower() for known_name in known], n=most, cutoff=0.5)
    by_lower = {known_name.lower(): known_name for known_name in known}
    return [by_lower[match] for match in close]


def unknown_text(kind: str, name: str, candidates: Iterable[str]) -> str:
    """Sentence for an unknown name: the nearest names, or all of them where none is close."""
    known = sorted(candidates)
    close = nearest(name, known)
    if close:
        return f"unknown {kind} '{name}'; did you mean {' or '.join(close)}?"
    return f"unknown {kind} '{name}'; known: {', '.join(known) or 'none'}"


def unknown(kind: str, name: str, candidates: Iterable[str], where: str = "") -> ConfigError:
    """The error for an unknown name, see :func:`unknown_text`."""
    return ConfigError(unknown_text(kind, name, candidates), where=where)
