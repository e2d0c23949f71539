"""Classes and files of a folder of images.

Either ``train/<class>/*.png`` with ``val`` and ``test`` beside, or ``<class>/*.png`` alone: the layout of torchvision's
ImageFolder. A split that is missing is cut from the training images, class by class, by the hash of the file name: the
same files on every machine, whatever else the folder holds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from datamodules.classification.classes import class_names, refuse_unknown
from datamodules.classification.config import FolderConfig
from datamodules.image_files import SUFFIXES, images_below, is_hidden, is_image
from graftwork.errors import DataError

SPLITS = ("train", "val", "test")
ALIASES = {"val": ("val", "valid", "validation")}
UNLABELLED = "image"
TREE = "root/train/<class>/*.jpg with root/val and root/test beside, or root/<class>/*.jpg"


@dataclass(frozen=True, eq=False)
class SplitFiles:
    """Images of a split.

    Args:
        folder: Folder that the paths are relative to.
        paths: [N] bytes, as the file system has them; one array instead of N objects, which loader processes would
            copy.
        labels: [N] int64, number of the class.
    """

    folder: Path
    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(bytes(self.paths[index]))

    def counts(self, classes: int) -> list[int]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=classes).tolist()

    @classmethod
    def of(cls, folder: Path, found: Sequence[tuple[str, int]]) -> SplitFiles:
        """From pairs of relative path and label."""
        paths = np.array([os.fsencode(path) for path, _ in found], dtype=np.bytes_)
        return cls(folder, paths, np.array([label for _, label in found], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Layout:
    """What was found below a root.

    Args:
        root: The folder.
        classes: Names, in the order of their numbers.
        splits: Files by split name.
        cut: Splits that were cut from the training images because they have no folder.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, SplitFiles]
    cut: tuple[str, ...] = field(default=())


def find_layout(config: FolderConfig) -> Layout:
    """Find classes and files.

    Raises:
        DataError: There is no such folder, a class has no images to train on, or a split has a class that training has
            not; the message names the folder and what was expected.
    """
    config.check()
    root = find_root(config.root)
    folders = split_folders(root, config)
    flat = folders["train"] == root
    if not config.labels:
        return _unlabelled(root, folders, config)
    names = class_names(root, list(class_folders(folders["train"])), str(folders["train"]))
    shares = {"val": config.val_share, "test": config.test_share if flat else 0.0}
    splits = {"train": _files(folders["train"], list(names), refuse_empty=True)}
    for split in SPLITS[1:]:
        if split in folders and folders[split] == folders.get("val") and "val" in splits:
            splits[split] = splits["val"]  # the protocol of ImageNet: tested on what was validated on
        elif split in folders:
            refuse_unknown(folders[split], [path.name for path in class_folders(folders[split])], list(names))
            splits[split] = _files(folders[split], list(names))
    missing = {split: share for split, share in shares.items() if split not in splits and share > 0}
    splits |= cut(splits["train"], missing)
    return Layout(root, tuple(names.values()), splits, tuple(missing))


def find_root(root: str | None) -> Path:
    """The folder of the data.

    Raises:
        DataError: None is given, or there is no such folder.
    """
    mend = f"Set --data.root to a folder like {TREE}; or try --data.name sample"
    if root is None:
        raise DataError("no folder of images given", "data.root", mend)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError("is a file, expected a folder" if path.exists() else "no such folder", str(path), mend)
    return path


def split_folders(root: Path, config: FolderConfig) -> dict[str, Path]:
    """Folder of each split that has one; training has ``root`` itself where there is no folder for it.

    Raises:
        DataError: A folder that was asked for is missing, or there is one for evaluation and none for training.
    """
    found = {}
    for split in SPLITS:
        name = getattr(config, f"{split}_folder")
        candidates = ALIASES.get(split, (split,)) if name == split else (name,)
        path = next((root / candidate for candidate in candidates if (root / candidate).is_dir()), None)
        if path is not None:
            found[split] = path
        elif name != split:
            raise DataError(f"no such folder: {root / name}", f"data.{split}_folder", f"{root} has {_names(root)}")
    if "train" not in found and found:
        other = next(iter(found.values()))
        raise DataError(
            f"has a folder '{other.name}' but none named '{config.train_folder}'", str(root), f"Expected {TREE}"
        )
    return {"train": root, **found}


def class_folders(folder: Path) -> Iterator[Path]:
    """Folders of classes, sorted by name.

    Raises:
        DataError: There is none; images that lie in the folder itself are spoken of.
    """
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    if not found:
        loose = sum(1 for path in folder.iterdir() if is_image(path.name))
        what = f"{loose} images lie in the folder itself" if loose else "no images"
        mend = f"Expected {TREE}; or, without classes, --data.labels false with --model.name positions"
        raise DataError(f"no class folders, {what}", str(folder), mend)
    yield from found


def cut(train: SplitFiles, shares: dict[str, float]) -> dict[str, SplitFiles]:
    """Set aside a share of every class for splits that have no folder.

    Args:
        train: Training images.
        shares: Share of each split to cut out, above 0.

    Returns:
        The cut splits, and what is left to train on. Of every class at least one image stays, and each split gets at
        least one where there are enough. Validation takes the lowest hashes, testing the highest, so that changing one
        share leaves the other split as it is.
    """
    ranks = np.array([_rank(os.fsdecode(bytes(path))) for path in train.paths], dtype=np.uint64)
    place = np.full(len(train), "train", dtype="<U5")
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        members = members[np.argsort(ranks[members], kind="stable")]
        left = len(members) - 1
        for split, share in shares.items():
            taken = min(left, max(1, round(share * len(members))))
            left -= taken
            chosen = members[:taken] if split == "val" else members[len(members) - taken :]
            place[chosen] = split
    return {
        split: SplitFiles(train.folder, train.paths[place == split], train.labels[place == split])
        for split in ("train", *shares)
    }


def _rank(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(PurePosixPath(path).name), digest_size=8).digest(), "big")


def _files(folder: Path, classes: Sequence[str], refuse_empty: bool = False) -> SplitFiles:
    """Images of a split in the order of class and name."""
    found: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(classes):
        below = images_below(folder / name) if (folder / name).is_dir() else []
        found += [(f"{name}/{path}", label) for path in below]
        empty += [] if below else [name]
    if not found or (empty and refuse_empty):
        text = f"no images of class {_listed(empty)}" if found else "no images"
        mend = "Add some, or remove the folder" if found else f"Expected {folder}/<class>/*.jpg"
        raise DataError(text, str(folder), mend)
    return SplitFiles.of(folder, found)


def _unlabelled(root: Path, folders: dict[str, Path], config: FolderConfig) -> Layout:
    """Every image below the folder of a split, as one class."""
    splits = {}
    for split, folder in folders.items():
        found = images_below(folder)
        if not found:
            raise DataError("no images", str(folder), f"Expected files that end in {', '.join(SUFFIXES[:4])}, ...")
        splits[split] = SplitFiles.of(folder, [(path, 0) for path in found])
    shares = {"val": config.val_share, "test": config.test_share if folders["train"] == root else 0.0}
    missing = {split: share for split, share in shares.items() if split not in splits and share > 0}
    return Layout(root, (UNLABELLED,), splits | cut(splits["train"], missing), tuple(missing))


def _names(root: Path) -> str:
    return _listed(sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))) or "none"


def _listed(names: Sequence[str], most: int = 6) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + rest
