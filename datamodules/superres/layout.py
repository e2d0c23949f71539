"""Images of each split, found below a root: what the layouts of all datasets have in common."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from datamodules.image_files import is_hidden
from datamodules.superres.pairs import Pair
from graftwork.errors import DataError


@dataclass(frozen=True, eq=False)
class Layout:
    """What was found below a root.

    Args:
        root: The folder.
        splits: Images by split name.
        cut: Splits that were cut from the training images because they have no folder.
        unused: Degraded files without an original.
    """

    root: Path
    splits: Mapping[str, tuple[Pair, ...]]
    cut: tuple[str, ...] = ()
    unused: tuple[Path, ...] = ()


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


def named_uniquely(groups: Mapping[str, Sequence[Pair]]) -> tuple[Pair, ...]:
    """Images of several folders as one split; names that come twice get the name of their folder in front."""
    counts = Counter(pair.name for pairs in groups.values() for pair in pairs)
    return tuple(
        replace(pair, name=f"{group}/{pair.name}") if counts[pair.name] > 1 else pair
        for group, pairs in groups.items()
        for pair in pairs
    )


def cut(pairs: Sequence[Pair], shares: Mapping[str, float]) -> dict[str, tuple[Pair, ...]]:
    """Set aside a share of the images for splits that have no folder, by the hash of their names.

    Args:
        pairs: Training images.
        shares: Share of each split to cut out, above 0.

    Returns:
        The cut splits, and what is left to train on; the same on every machine, whatever else the folder holds. At
        least one image stays for training, and each split gets at least one where there are enough.
    """
    ranked = sorted(pairs, key=lambda pair: _rank(pair.name))
    left = len(ranked) - 1
    result: dict[str, Sequence[Pair]] = {}
    for split, share in shares.items():
        taken = max(0, min(left, max(1, round(share * len(ranked)))))
        left -= taken
        # validation takes the lowest ranks, testing the highest: changing one share leaves the other split as it is
        chosen = ranked[:taken] if split == "val" else ranked[len(ranked) - taken :]
        result[split] = chosen
    place = {pair: split for split, chosen in result.items() for pair in chosen}
    splits = {split: tuple(pair for pair in pairs if place.get(pair, "train") == split) for split in ("train", *shares)}
    return {split: chosen for split, chosen in splits.items() if chosen}


def folder_names(root: Path) -> str:
    """Names of the folders below a root, for messages."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(f"'{name}'" for name in names[:6]) + rest if names else "no folders"


def _rank(name: str) -> bytes:
    return hashlib.blake2b(PurePosixPath(name).name.encode(), digest_size=8).digest()
