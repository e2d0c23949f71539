"""Files that lie in two splits of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


def copies(one: Sequence[Path], other: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with the same bytes, one of each list; what is no file is a copy of nothing.

    Of several alike in ``one``, the first is taken. Files are read once, and only where both lists have their size.
    """
    sizes = {path: path.stat().st_size for path in {*one, *other} if path.is_file()}
    shared = {sizes.get(path) for path in one} & {sizes.get(path) for path in other} - {None}
    known: dict[bytes, Path] = {}
    for path in one:
        if sizes.get(path) in shared:
            known.setdefault(_digest(path), path)
    digests = [(path, _digest(path)) for path in other if sizes.get(path) in shared]
    return [(known[digest], path) for path, digest in digests if digest in known]


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()
