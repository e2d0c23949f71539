"""Which degraded file belongs to which original, by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graftwork.errors import DataError

_ORIGINAL_ENDINGS = re.compile(r"[_-](HR|GT|gt|hr|clean|sharp)$")
_DEGRADED_ENDINGS = ("LR", "LQ", "lr", "lq", "noisy", "blur")
_TRACKS = ("", "m", "d", "w", "w1", "w2", "w3", "w4")
"""Of DIV2K: mild, difficult and wild files end in x4m, x4d and x4w1 to x4w4."""


@dataclass(frozen=True)
class Pair:
    """An original and the file of its degraded image.

    Args:
        name: Name for tables, unique in its split.
        original: File of the original.
        degraded: File of the degraded image; None where it is computed.
    """

    name: str
    original: Path
    degraded: Path | None = None


def originals_alone(folder: Path, files: Sequence[str]) -> tuple[Pair, ...]:
    """Originals whose degraded images are computed.

    Args:
        folder: What the paths are relative to.
        files: Relative paths.
    """
    stems = [_stem(file) for file in files]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    return tuple(Pair(file if stem in twice else stem, folder / file) for file, stem in zip(files, stems, strict=True))


def matched(
    originals: Path, files: Sequence[str], degraded: Path, degraded_files: Sequence[str], scale: int, mend: str = ""
) -> tuple[Pair, ...]:
    """Pairs of originals and degraded files.

    ``0001.png`` goes with ``0001.png``, ``0001x4.png``, ``0001_x4.png``, ``0001x4m.png`` or ``0001_LR.png``; an ending
    such as ``_HR`` of the original is left out of the comparison.

    Args:
        originals: Folder of the originals.
        files: Their paths, relative to it.
        degraded: Folder of the degraded files.
        degraded_files: Their paths, relative to it.
        scale: Pixels of the original per degraded pixel and side.
        mend: What to do about missing files, beside naming them right.

    Raises:
        DataError: An original has no degraded file, or two files have one name.
    """
    by_stem = _unique(originals, files)
    candidates = _unique(degraded, degraded_files)
    pairs, missing = [], []
    for stem, file in by_stem.items():
        match = next((candidates[name] for name in degraded_names(stem, scale) if name in candidates), None)
        if match is None:
            missing.append(file)
        else:
            pairs.append(Pair(stem, originals / file, degraded / match))
    if missing:
        stem = PurePosixPath(missing[0]).stem
        expected = ", ".join(f"{stem}{ending}.png" for ending in ("", f"x{scale}", f"_x{scale}"))
        text = f"{len(missing):,} of {len(files):,} images have no degraded file here, first {originals / missing[0]}"
        raise DataError(text, str(degraded), f"Expected one of {expected}" + (f"; {mend}" if mend else ""))
    return tuple(pairs)


def degraded_names(stem: str, scale: int) -> Iterator[str]:
    """Names, without ending, that the degraded file of an original may have; the likeliest first."""
    folder, _, name = stem.rpartition("/")
    bases = dict.fromkeys((name, _ORIGINAL_ENDINGS.sub("", name)))
    for base in bases:
        path = f"{folder}/{base}" if folder else base
        yield path
        yield from (f"{path}{joint}x{scale}{track}" for track in _TRACKS for joint in ("", "_", "-"))
        yield from (f"{path}{joint}{ending}" for ending in _DEGRADED_ENDINGS for joint in ("_", "-"))


def _unique(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """Stem to file.

    Raises:
        DataError: Two files differ in their ending alone.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_stem[_stem(file)].append(file)
    for stem, same in by_stem.items():
        if len(same) > 1:
            text = f"{same[0]} and {same[1]} are both named '{stem}'"
            raise DataError(text, str(folder), "Pairs are found by name: rename or remove one of them")
    return {stem: same[0] for stem, same in by_stem.items()}


def _stem(file: str) -> str:
    return file.rpartition(".")[0]
