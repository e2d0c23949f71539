"""Files that lie in two splits of a dataset."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


def copies(one: Sequence[Path], other: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with the same bytes, one of each list; what is no file is a copy of nothing."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in one:
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    found = []
    for path in other:
        same_size = by_size.get(path.stat().st_size, []) if path.is_file() else []
        alike = [first for first in same_size if _digest(first) == _digest(path)]
        found += [(alike[0], path)] if alike else []
    return found


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()
