"""What ``doctor`` says about images to restore: sizes, bit depths, corrupt files, pairs that do not fit, copies."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from datamodules.cache import cache_folder
from datamodules.copies import copies
from datamodules.findings import Finding, Level, listed, sentences, several
from datamodules.guard import CorruptSample
from datamodules.superres.config import ImagesConfig
from datamodules.superres.datamodule import find_images
from datamodules.superres.dataset import fitting_sides
from datamodules.superres.image_decoding import decode
from datamodules.superres.layout import Layout
from datamodules.superres.pairs import Pair
from datamodules.superres.store import decoded_bytes
from graftwork.errors import DataError, UserError

MOST_DECODED = 1000
"""Images of a split up to which every file is decoded; of more, evenly spread ones are."""


@dataclass
class Seen:
    """What decoding the images of a split has shown.

    Args:
        decoded: Originals that could be decoded.
        smallest: Height and width of the smallest.
        largest: Height and width of the largest.
        kinds: Originals by bits and colour.
        corrupt: Sentences on files that cannot be decoded.
        misfits: Sentences on pairs whose sizes do not fit.
        cropped: Names of originals that are cropped to fit the scale.
        small: Names of originals that are smaller than a training patch.
        transparent: Names of originals with opacity.
    """

    decoded: int = 0
    smallest: tuple[int, int] = (1 << 30, 1 << 30)
    largest: tuple[int, int] = (0, 0)
    kinds: Counter[str] = field(default_factory=Counter)
    corrupt: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    cropped: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    transparent: list[str] = field(default_factory=list)


def inspect_images(config: ImagesConfig) -> list[Finding]:
    """Check a dataset as far as it can be read; never raises for what the user can mend.

    Args:
        config: The dataset.

    Returns:
        Findings about splits, files, pairs, copies across splits, and the room for decoded images.
    """
    try:
        layout = find_images(config)
    except UserError as error:
        return [Finding("error", f"{error.where}: {error.what}" if error.where else error.what, error.mend)]
    found = list(split_findings(layout, config))
    for split, pairs in layout.splits.items():
        found += file_findings(split, pairs, config)
    return found + [*copy_findings(layout), *cache_findings(layout, config)]


def split_findings(layout: Layout, config: ImagesConfig) -> Iterator[Finding]:
    """Sizes of the splits, and where their degraded images come from."""
    for split, pairs in layout.splits.items():
        stored = sum(pair.degraded is not None for pair in pairs)
        origin = {0: "degraded here", len(pairs): "with degraded files"}.get(stored, f"{stored:,} with degraded files")
        cut = ", cut from the training images" if split in layout.cut else ""
        yield Finding("ok", f"{split}: {several(len(pairs), 'image')}{cut}, {origin}")
    for split in ("val", "test"):
        if split not in layout.splits and "train" in layout.splits:
            yield Finding(
                "warning", f"there is no {split} split", f"Set --data.{split}_root to a benchmark such as Set5"
            )
    if layout.unused:
        names = listed([str(path) for path in layout.unused])
        files = several(len(layout.unused), "degraded file", "belongs", "belong")
        yield Finding("warning", f"{files} to no original: {names}")
    if config.reads_pairs and config.degradation.computes and config.degradation.scale > 1:
        used = [split for split, pairs in layout.splits.items() if any(pair.degraded is None for pair in pairs)]
        if used and len(used) < len(layout.splits):
            text = f"{' and '.join(used)} have low-resolution images that are computed, the other splits have files"
            yield Finding("ok", text)


def file_findings(split: str, pairs: Sequence[Pair], config: ImagesConfig) -> Iterator[Finding]:
    """What decoding the files of a split shows."""
    every = -(-len(pairs) // MOST_DECODED) or 1
    seen = Seen()
    for pair in pairs[::every]:
        _look(pair, config, seen, split)
    if seen.decoded:
        share = "" if every == 1 else f", one of every {every} of {len(pairs):,}"
        sizes = f"{_size(seen.smallest)} to {_size(seen.largest)} pixels (height x width)"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in seen.kinds.most_common())
        yield Finding("ok", f"{split}: {several(seen.decoded, 'image')} decoded{share}: {sizes}; {kinds}")
    level: Level = "warning" if config.on_corrupt == "skip" else "error"
    yield from sentences(level, seen.corrupt, "files that cannot be decoded")
    yield from sentences("error", seen.misfits, "pairs whose sizes do not fit")
    if seen.cropped:
        text = f"{split}: {several(len(seen.cropped), 'image', 'is', 'are')} cropped at bottom and right to fit the "
        yield Finding("ok", f"{text}scale or pattern: {listed(seen.cropped)}")
    if seen.small:
        text = (
            f"{split}: {several(len(seen.small), 'image', 'is', 'are')} smaller than a patch, continued as in a mirror"
        )
        yield Finding("warning", f"{text}: {listed(seen.small)}", "Try a smaller --data.patch")
    if seen.transparent:
        text = f"{split}: transparent parts of {several(len(seen.transparent), 'image')} are taken as white"
        yield Finding("warning", f"{text}: {listed(seen.transparent)}")


def _look(pair: Pair, config: ImagesConfig, seen: Seen, split: str) -> None:
    try:
        image = decode(pair.original)
        degraded = None if pair.degraded is None else decode(pair.degraded)
    except CorruptSample as error:
        seen.corrupt.append(str(error))
        return
    height, width = image.values.shape[:2]
    scale, period = config.degradation.scale, config.degradation.period
    seen.decoded += 1
    seen.smallest = min(seen.smallest, (height, width), key=min)
    seen.largest = max(seen.largest, (height, width), key=max)
    seen.kinds[f"{'grey' if image.values.shape[2] == 1 else 'colour'} of {8 * image.values.itemsize} bits"] += 1
    seen.transparent += [pair.name] if image.alpha is not None else []
    if split == "train" and min(height, width) < config.patch * scale:
        seen.small.append(pair.name)
    if degraded is not None:
        try:
            fitting_sides(pair, (height, width), degraded.values.shape[:2], scale)
        except DataError as error:
            seen.misfits.append(str(error))
    elif min(height, width) < period:
        seen.misfits.append(f"{pair.original}: {_size((height, width))} pixels are less than the scale, {period}")
    if height % period or width % period:
        seen.cropped.append(pair.name)


def copy_findings(layout: Layout) -> Iterator[Finding]:
    """Originals that two splits share, by content; a test set that is the validation set on purpose is not one."""
    for first, second in combinations(layout.splits, 2):
        one, other = layout.splits[first], layout.splits[second]
        if one == other:
            continue
        shared = copies([pair.original for pair in one], [pair.original for pair in other])
        if shared:
            names = listed([f"{a} = {b}" for a, b in shared])
            verb = "is" if len(shared) == 1 else "are"
            text = f"{several(len(shared), 'image')} of {second} {verb} also in {first}, byte for byte: {names}"
            yield Finding("warning", text, "Scores on copies say nothing; remove them from one of the splits")


def cache_findings(layout: Layout, config: ImagesConfig) -> Iterator[Finding]:
    """Whether decoded training images have room."""
    pairs = layout.splits.get("train", ())
    if not pairs or config.cache == "off":
        return
    folder = cache_folder(None, "superres") if config.cache == "auto" else Path(config.cache).expanduser()
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    needed, free = decoded_bytes(pairs, config.channels), shutil.disk_usage(place).free
    text = f"decoded training images take about {needed / 1e9:.2f} GB in {folder}, {free / 1e9:.1f} GB are free"
    if needed > (free / 2 if config.cache == "auto" else free):
        yield Finding(
            "warning", text, "Set --data.cache to a folder with more room; without, each patch decodes its file"
        )
    else:
        yield Finding("ok", text)


def _size(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"
