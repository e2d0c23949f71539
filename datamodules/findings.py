"""What ``doctor`` finds in a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_NAMED = 5
"""Files that a sentence, or a list of sentences, names."""

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One sentence about the data.

    Args:
        level: ``ok``, ``warning`` (training is possible) or ``error`` (training will fail).
        what: What was found, with the file or column it was found in.
        mend: What to do about it; empty if nothing needs to be done.
    """

    level: Level
    what: str
    mend: str = ""


def sentences(level: Level, texts: Sequence[str], what: str) -> Iterator[Finding]:
    """A finding for each of the first texts, and how many more there are of ``what``."""
    yield from (Finding(level, text) for text in texts[:MOST_NAMED])
    if len(texts) > MOST_NAMED:
        yield Finding(level, f"and {len(texts) - MOST_NAMED:,} more {what}")


def several(count: int, noun: str, singular: str = "", plural: str = "") -> str:
    """``1 image is`` or ``3 images are``."""
    verb = singular if count == 1 else plural
    return f"{count:,} {noun}{'' if count == 1 else 's'}{f' {verb}' if verb else ''}"


def listed(texts: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first texts with commas between, and how many more there are."""
    rest = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest
