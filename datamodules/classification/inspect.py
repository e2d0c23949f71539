"""What ``doctor`` says about images: classes, corrupt and tiny files, copies across splits, what lies around."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.classification.classes import CLASSES_FILE
from datamodules.classification.config import FolderConfig, ImagesConfig
from datamodules.classification.layout import Layout, SplitFiles
from datamodules.findings import Finding, Level
from datamodules.guard import CorruptSample
from datamodules.image_files import images_below, is_hidden, is_image
from datamodules.image_reading import read_image
from graftwork.errors import DataError, UserError

TINY_PX = 32
"""A shorter side than this is called tiny: no backbone takes less, so such files are enlarged."""

MOST_DECODED = 20_000
MOST_NAMED, MOST_CLASSES = 5, 40
DOCUMENTS = ("README", "LICEN")
_HEAD = 4096
_RARE = 10


def inspect_images(config: ImagesConfig) -> list[Finding]:
    """Check a dataset as far as it can be read; never raises for what the user can mend.

    Args:
        config: The dataset.

    Returns:
        Findings about splits, classes, files, copies across splits, and what belongs to no class.
    """
    try:
        config.check()
        layout = config.find()
    except UserError as error:
        return [Finding("error", f"{error.where}: {error.what}" if error.where else error.what, error.mend)]
    found = [*split_findings(layout), *class_findings(layout), *file_findings(layout, config)]
    found += copy_findings(layout)
    return found + (list(stray_findings(layout)) if isinstance(config, FolderConfig) else [])


def split_findings(layout: Layout) -> Iterator[Finding]:
    """Sizes of the splits."""
    for split, files in layout.splits.items():
        origin = ", cut from the training images" if split in layout.cut else f" in {files.folder}"
        yield Finding("ok", f"{split}: {len(files):,} images{origin}")
    for split in ("val", "test"):
        if split not in layout.splits:
            mend = f"Add a folder {split}" + (", or set --data.val_share" if split == "val" else "")
            yield Finding("warning", f"there is no {split} split", mend)


def class_findings(layout: Layout) -> Iterator[Finding]:
    """Images per class, rare classes, and classes that a split lacks."""
    names, counts = layout.classes, layout.splits["train"].counts(len(layout.classes))
    order = np.argsort(counts, kind="stable")
    listed = _listed([f"{name} {count}" for name, count in zip(names, counts, strict=True)], MOST_CLASSES)
    yield Finding("ok", f"{len(names)} classes with training images: {listed}")
    fewest, most = counts[order[0]], counts[order[-1]]
    if fewest < _RARE:
        text = f"class '{names[order[0]]}' has {fewest} training image{'s' if fewest != 1 else ''}"
        yield Finding("warning", text, "Add images, or expect little of it")
    elif most > 10 * fewest:
        text = f"class '{names[order[-1]]}' has {most / fewest:.0f} times the images of '{names[order[0]]}'"
        yield Finding("warning", text, "Read mean_class_accuracy beside top1")
    for split, files in layout.splits.items():
        missing = [name for name, count in zip(names, files.counts(len(names)), strict=True) if not count]
        if missing:
            yield Finding("warning", f"{split} has no image of {_listed(missing)}", "Scores say nothing about them")


def file_findings(layout: Layout, config: ImagesConfig) -> Iterator[Finding]:
    """Files that cannot be decoded or are tiny, by decoding them."""
    corrupt: list[str] = []
    tiny: list[str] = []
    checked, total = 0, sum(len(files) for files in layout.splits.values())
    every = -(-total // MOST_DECODED)
    smallest, largest = (1 << 30, 1 << 30), (0, 0)
    for path in (files.path(index) for files in layout.splits.values() for index in range(0, len(files), every)):
        checked += 1
        try:
            size = read_image(path, config.channels).size
        except CorruptSample as error:
            corrupt.append(str(error))
            continue
        except DataError as error:  # too large to be decoded, which on_corrupt does not skip
            yield Finding("error", str(error))
            continue
        smallest, largest = min(smallest, size, key=min), max(largest, size, key=max)
        tiny += [str(path)] if min(size) < TINY_PX else []
    if largest != (0, 0):
        sizes = f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels"
        share = "" if every == 1 else f", one of every {every} of {total:,}"
        yield Finding("ok", f"{checked:,} images decoded{share}: {sizes}; the model sees {config.image_size}")
    yield from _corrupt_findings(corrupt, config)
    if tiny:
        text = f"{len(tiny):,} images have a side below {TINY_PX} pixels and are enlarged: {_listed(tiny)}"
        yield Finding("ok" if len(tiny) == checked else "warning", text)


def _corrupt_findings(corrupt: Sequence[str], config: ImagesConfig) -> Iterator[Finding]:
    level: Level = "warning" if config.on_corrupt == "skip" else "error"
    for text in corrupt[:MOST_NAMED]:
        yield Finding(level, text)
    if len(corrupt) > MOST_NAMED:
        yield Finding(level, f"and {len(corrupt) - MOST_NAMED} more files that cannot be decoded")


def copy_findings(layout: Layout) -> Iterator[Finding]:
    """Images that two splits share, by content."""
    separate = {split: files for split, files in layout.splits.items() if not _same_folder(split, layout)}
    for first, second in combinations(separate, 2):
        shared = copies(separate[first], separate[second])
        if shared:
            pairs = _listed([f"{a} = {b}" for a, b in shared])
            text = f"{len(shared):,} images of {second} are also in {first}, byte for byte: {pairs}"
            yield Finding("warning", text, "Scores on copies say nothing; remove them from one of the splits")


def copies(one: SplitFiles, other: SplitFiles) -> list[tuple[Path, Path]]:
    """Pairs of files with the same bytes, one of each split."""
    sizes, other_sizes = _sizes(one), _sizes(other)
    common = np.intersect1d(sizes, other_sizes)
    known = defaultdict(list)
    for index in np.flatnonzero(np.isin(sizes, common) & (sizes > 0)).tolist():
        known[_digest(one.path(index), whole=False)].append(one.path(index))
    found = []
    for index in np.flatnonzero(np.isin(other_sizes, common) & (other_sizes > 0)).tolist():
        path = other.path(index)
        alike = known.get(_digest(path, whole=False), [])
        match = next((first for first in alike if _digest(first) == _digest(path)), None)
        found += [(match, path)] if match is not None else []
    return found


def stray_findings(layout: Layout) -> Iterator[Finding]:
    """Folders without images or without use, files that are no images, and images outside of class folders."""
    splits = {files.folder for files in layout.splits.values()}
    empty, unused, others, loose = [], [], [], []
    for folder in sorted({layout.root, *splits}):
        for path in sorted(path for path in folder.iterdir() if not is_hidden(path.name)):
            if path.is_dir() and path not in splits:
                if folder not in splits:
                    unused.append(str(path))
                    continue
                empty += [] if images_below(path) else [str(path)]
                others += [str(file) for file in sorted(path.rglob("*")) if _is_stray(file)]
            elif path.is_file() and is_image(path.name):
                loose.append(str(path))
            elif path.is_file() and path.name != CLASSES_FILE and not path.name.upper().startswith(DOCUMENTS):
                others.append(str(path))
    if empty:
        yield Finding("warning", f"folders without images: {_listed(empty)}", "Remove them")
    if unused:
        yield Finding("warning", f"folders that belong to no split: {_listed(unused)}")
    if loose and len(layout.classes) > 1:
        text = f"{len(loose)} images lie outside of class folders and are not used: {_listed(loose)}"
        yield Finding("warning", text, "Move them into the folder of their class")
    if others:
        yield Finding("warning", f"{len(others)} files are no images and are not used: {_listed(others)}")


def _is_stray(file: Path) -> bool:
    return file.is_file() and not is_hidden(file.name) and not is_image(file.name)


def _same_folder(split: str, layout: Layout) -> bool:
    """Whether test reads the folder of val on purpose, as ImageNet's protocol does."""
    return split == "test" and "val" in layout.splits and layout.splits["val"] is layout.splits["test"]


def _sizes(files: SplitFiles) -> NDArray[np.int64]:
    return np.array([_size(files.path(index)) for index in range(len(files))], dtype=np.int64)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, whole: bool = True) -> bytes:
    with path.open("rb") as stream:
        return hashlib.blake2b(stream.read() if whole else stream.read(_HEAD)).digest()


def _listed(texts: Sequence[str], most: int = MOST_NAMED) -> str:
    rest = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest
