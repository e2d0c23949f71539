"""Images of each split with their labels, found below a root: what the layouts of all datasets have in common."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.image_files import is_hidden
from datamodules.segmentation.classes import ClassTable
from graftwork.errors import DataError


@dataclass(frozen=True)
class Item:
    """An image and where its labels are.

    Args:
        name: Name for tables, unique in its split.
        image: File of the image.
        label: File of the labels.
        instances: File that tells objects apart, where that is another one.
    """

    name: str
    image: Path
    label: Path
    instances: Path | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Images of a split.

    Args:
        items: Images in the order of their numbers.
        labels: What reads the labels of an item: a :class:`~datamodules.segmentation.labels.LabelReader`.
    """

    items: tuple[Item, ...]
    labels: Any

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class Layout:
    """What was found below a root.

    Args:
        root: The folder.
        classes: Names, colours and things.
        splits: Images by split name.
        cut: Splits that were cut from the training images because they have no folder.
        unused: Masks without an image.
        unlisted: Images that a file of annotations does not list.
    """

    root: Path
    classes: ClassTable
    splits: Mapping[str, Split]
    cut: tuple[str, ...] = ()
    unused: tuple[Path, ...] = ()
    unlisted: tuple[Path, ...] = ()


def find_root(root: str | None, tree: str, source: str = "") -> Path:
    """The folder of the data.

    Args:
        root: What the user gave.
        tree: What is expected in it.
        source: Where the data comes from and under which licence.

    Raises:
        DataError: None is given, or there is no such folder.
    """
    mend = f"Expected {tree}. {source}{' ' if source else ''}To try without data: --data.name sample"
    if root is None:
        raise DataError("no folder of images given", "data.root", mend)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError("is a file, expected a folder" if path.exists() else "no such folder", str(path), mend)
    return path


def needed_folder(path: Path, tree: str, source: str = "") -> Path:
    """A folder below the root, if it is there.

    Raises:
        DataError: It is not; the message has the expected tree, the source and the licence.
    """
    if not path.is_dir():
        found = f"; {path.parent} has {folder_names(path.parent)}" if path.parent.is_dir() else ""
        raise DataError(f"no such folder{found}", str(path), f"Expected {tree}. {source}".rstrip())
    return path


def by_stem(folder: Path, files: Sequence[str], endings: Sequence[str] = ()) -> dict[str, str]:
    """Name without ending to file.

    Args:
        folder: What the files are relative to, for messages.
        files: Relative paths.
        endings: Ends of the name that are left out, too, such as ``_mask``.

    Raises:
        DataError: Two files differ in their ending alone.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        stem = file.rpartition(".")[0]
        ending = next((ending for ending in endings if stem.endswith(ending)), "")
        found[stem.removesuffix(ending)].append(file)
    for stem, same in found.items():
        if len(same) > 1:
            text = f"{same[0]} and {same[1]} are both named '{stem}'"
            raise DataError(text, str(folder), "Pairs are found by name: rename or remove one of them")
    return {stem: same[0] for stem, same in found.items()}


def matched(
    images: Path, files: Mapping[str, str], masks: Path, mask_files: Mapping[str, str], ending: str = ".png"
) -> tuple[Item, ...]:
    """Images with their masks.

    Args:
        images: Folder of the images.
        files: Stem to file, of images.
        masks: Folder of the masks.
        mask_files: Stem to file, of masks.
        ending: Of masks, for messages.

    Raises:
        DataError: An image has no mask.
    """
    missing = [file for stem, file in files.items() if stem not in mask_files]
    if missing:
        stem = PurePosixPath(missing[0]).stem
        text = f"{len(missing):,} of {len(files):,} images have no mask here, first {images / missing[0]}"
        raise DataError(text, str(masks), f"Expected {stem}{ending}, named as the image; add it, or remove the image")
    return tuple(Item(stem, images / file, masks / mask_files[stem]) for stem, file in files.items())


def cut(split: Split, shares: Mapping[str, float]) -> dict[str, Split]:
    """Set aside a share of the images for splits that have no folder, by the hash of their names.

    Args:
        split: Training images.
        shares: Share of each split to cut out, above 0.

    Returns:
        The cut splits, and what is left to train on; the same on every machine, whatever else the folder holds. At
        least one image stays for training, and each split gets at least one where there are enough.
    """
    ranked = sorted(split.items, key=lambda item: _rank(item.name))
    left = len(ranked) - 1
    place: dict[Item, str] = {}
    for name, share in shares.items():
        taken = max(0, min(left, max(1, round(share * len(ranked)))))
        left -= taken
        # validation takes the lowest ranks, testing the highest: changing one share leaves the other split as it is
        place |= dict.fromkeys(ranked[:taken] if name == "val" else ranked[len(ranked) - taken :], name)
    splits = {
        name: Split(tuple(item for item in split.items if place.get(item, "train") == name), split.labels)
        for name in ("train", *shares)
    }
    return {name: chosen for name, chosen in splits.items() if len(chosen)}


def folder_names(root: Path) -> str:
    """Names of the folders below a root, for messages."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(f"'{name}'" for name in names[:6]) + rest if names else "no folders"


def _rank(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(PurePosixPath(name).name), digest_size=8).digest()
