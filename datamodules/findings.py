"""What ``doctor`` finds in a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
