"""A user's own images: originals that are degraded here, or pairs of files.

``train/HR/*.png`` with ``train/LR/X4/*.png`` beside, images alone below ``train``, or everything in the root itself.
The folders of originals and degraded files may lie deeper, once for every sequence, as in GoPro's
``train/<scene>/sharp`` and ``train/<scene>/blur``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from datamodules.image_files import images_below, is_hidden
from datamodules.superres.config import FolderConfig, ImagesConfig
from datamodules.superres.layout import Layout, cut, find_root, folder_names
from datamodules.superres.pairs import Pair, matched, originals_alone
from graftwork.errors import DataError

TREE = "root/train/HR/*.png (with root/train/LR/X4/*.png beside, where there are pairs), or root/*.png"
SPLITS = ("train", "val", "test")


def find_folder(config: FolderConfig) -> Layout:
    """Find the images of each split.

    Raises:
        DataError: There is no such folder, it has no images, or an original lacks its degraded file.
    """
    config.check()
    root = find_root(config.root, TREE)
    names = {split: getattr(config, f"{split}_folder") for split in SPLITS}
    folders = {split: root / name for split, name in names.items() if (root / name).is_dir()}
    for split, name in names.items():
        if split not in folders and name != split:
            text = f"no such folder: {root / name}"
            raise DataError(text, f"data.{split}_folder", f"{root} has {folder_names(root)}")
    flat = not folders
    found = {split: find_pairs(folder, config) for split, folder in (folders or {"train": root}).items()}
    splits = {split: pairs for split, (pairs, _) in found.items()}
    unused = tuple(path for _, left in found.values() for path in left)
    shares = {"val": 0.0 if config.val_root else config.val_share}
    shares["test"] = config.test_share if flat and not config.test_root else 0.0
    missing = {split: share for split, share in shares.items() if split not in splits and share > 0}
    if "train" not in splits:
        return Layout(root, splits, (), unused)
    splits |= cut(splits["train"], missing)
    return Layout(root, splits, tuple(split for split in missing if split in splits), unused)


def find_pairs(folder: Path, config: FolderConfig) -> tuple[tuple[Pair, ...], tuple[Path, ...]]:
    """Images of a split, and degraded files that belong to none of them.

    Raises:
        DataError: There are none, or an original lacks its degraded file.
    """
    places = _folders_named(folder, config.hr_folder) or [folder]
    pairs: list[Pair] = []
    unused: list[Path] = []
    for place in places:
        beside = place.parent if place != folder else folder
        below = os.path.relpath(beside, folder)
        prefix = "" if below == "." else f"{Path(below).as_posix()}/"
        files = images_below(place, without=(config.lr_folder,) if place == folder else ())
        degraded = degraded_folder(beside, (f"{config.lr_folder}/X{{}}", f"{config.lr_folder}/x{{}}"), config)
        degraded = degraded or degraded_folder(beside, (config.lr_folder,), config)
        found, left = paired(place, files, degraded, config)
        pairs += [Pair(prefix + pair.name, pair.original, pair.degraded) for pair in found]
        unused += left
    if not pairs:
        raise DataError("no images", str(places[0] if len(places) == 1 else folder), f"Expected {TREE}")
    return tuple(pairs), tuple(unused)


def degraded_folder(beside: Path, names: Sequence[str], config: ImagesConfig) -> Path | None:
    """The first folder that exists, where degraded files are wanted.

    Args:
        beside: What the names are relative to.
        names: Candidates; ``{}`` stands for the scale.
        config: The dataset.
    """
    if not config.reads_pairs:
        return None
    candidates = (beside / name.format(config.degradation.scale) for name in names)
    return next((path for path in candidates if path.is_dir() and degraded_files(path)), None)


def degraded_files(folder: Path) -> list[str]:
    """Images below a folder of degraded files, without those of folders for a certain scale."""
    scales = [path.name for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"[xX]\d+(_sub)?", path.name)]
    return images_below(folder, without=scales)


def paired(
    originals: Path,
    files: Sequence[str],
    degraded: Path | None,
    config: ImagesConfig,
    names: Sequence[str] | None = None,
) -> tuple[tuple[Pair, ...], list[Path]]:
    """Originals with their degraded files where there is a folder of these, else alone.

    Args:
        originals: Folder of the originals.
        files: Their paths, relative to it.
        degraded: Folder of the degraded files, or None.
        config: The dataset.
        names: Paths of the degraded files, relative to their folder; all images in it if omitted.

    Returns:
        Pairs, and degraded files that belong to none of them.

    Raises:
        DataError: An original lacks its degraded file, or all do where they cannot be computed.
    """
    scale = config.degradation.scale
    if degraded is None:
        if files and not config.degradation.computes:
            text = f"no degraded files for the originals in {originals}"
            option = ", --data.lr_folder NAME" if isinstance(config, FolderConfig) else ""
            mend = f"Expected a folder beside it{option}; {originals.parent} has {folder_names(originals.parent)}"
            raise DataError(text, "data.degradation.name=stored", mend)
        return originals_alone(originals, files), []
    mend = "or compute them: --data.degradation.stored false" if config.degradation.computes else ""
    names = degraded_files(degraded) if names is None else names
    pairs = matched(originals, files, degraded, names, scale, mend)
    used = {pair.degraded for pair in pairs}
    return pairs, [degraded / name for name in names if degraded / name not in used]


def _folders_named(folder: Path, name: str) -> list[Path]:
    """Folders of a name at any depth, sorted; what lies below them is not searched."""
    found = []
    for place, folders, _ in os.walk(folder, followlinks=True):
        if name in folders:
            found.append(Path(place) / name)
        folders[:] = sorted(entry for entry in folders if entry != name and not is_hidden(entry))
    return sorted(found)
