"""Images of each split, found below a root: what the layouts of all datasets have in common."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from datamodules.image_files import is_hidden
from datamodules.superres.pairs import Pair
from graftwork.errors import DataError

_PIECE = re.compile(r"_s\d+$")
"""End of the name of a sub-image: 0001_s003 is the third of 0001."""


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


def cut(pairs: Sequence[Pair], shares: Mapping[str, float], sub_images: bool = False) -> dict[str, tuple[Pair, ...]]:
    """Set aside a share of the images for splits that have no folder, by the hash of their names.

    Args:
        pairs: Training images.
        shares: Share of each split to cut out, above 0.
        sub_images: They are pieces of images, which overlap: all of an image go into one split, and shares are those
            of whole images.

    Returns:
        The cut splits, and what is left to train on; the same on every machine, whatever else the folder holds. At
        least one image stays for training, and each split gets at least one where there are enough.
    """
    wholes = {pair: _whole(pair, sub_images) for pair in pairs}
    ranked = sorted(dict.fromkeys(wholes.values()), key=lambda whole: _rank(whole[1]))
    left = len(ranked) - 1
    result: dict[str, Sequence[tuple[Path, str]]] = {}
    for split, share in shares.items():
        taken = max(0, min(left, max(1, round(share * len(ranked)))))
        left -= taken
        # validation takes the lowest ranks, testing the highest: changing one share leaves the other split as it is
        chosen = ranked[:taken] if split == "val" else ranked[len(ranked) - taken :]
        result[split] = chosen
    place = {whole: split for split, chosen in result.items() for whole in chosen}
    splits: dict[str, list[Pair]] = {split: [] for split in ("train", *shares)}
    for pair, whole in wholes.items():
        splits[place.get(whole, "train")].append(pair)
    return {split: tuple(members) for split, members in splits.items() if members}


def folder_names(root: Path) -> str:
    """Names of the folders below a root, for messages."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(f"'{name}'" for name in names[:6]) + rest if names else "no folders"


def _whole(pair: Pair, sub_images: bool) -> tuple[Path, str]:
    """Folder and name of the image that a file holds all of, or a piece."""
    name = PurePosixPath(pair.name).name
    return pair.original.parent, _PIECE.sub("", name) if sub_images else name


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
