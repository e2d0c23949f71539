"""Names of classes: those of the folders, or those that a file ``classes.txt`` gives them, in its order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from graftwork.errors import DataError
from graftwork.names import nearest

CLASSES_FILE = "classes.txt"
"""In the root: a folder per line, with its name for people after it if that differs: ``n01440764 tench``."""


def class_names(root: Path, folders: Sequence[Path], where: str) -> dict[str, str]:
    """Folder name to class name, in the order of the class numbers.

    Args:
        root: Where ``classes.txt`` may lie.
        folders: Folders of the classes, sorted.
        where: What they lie in, for messages.

    Raises:
        DataError: ``classes.txt`` and the folders do not agree, or there are fewer than two classes.
    """
    found = [path.name for path in folders]
    file = root / CLASSES_FILE
    names = read_classes(file, found) if file.is_file() else {name: name for name in found}
    if len(names) < 2:
        only = next(iter(names), "none")
        mend = "Classification needs two and more, a folder each; to pretrain without classes: --data.labels false"
        raise DataError(f"one class alone, '{only}'", where, mend)
    return names


def read_classes(file: Path, folders: Sequence[str]) -> dict[str, str]:
    """Folder name to class name, in the order of the file.

    A line is the name of a folder, or the name of a folder, white space and the name for people. Empty lines are
    skipped.

    Raises:
        DataError: A line names no folder or one that was named before, or a folder has no line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", str(file), "Write it as text in UTF-8") from error
    names: dict[str, str] = {}
    known = set(folders)
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            continue
        folder, _, name = (text, "", text) if text in known else _split(text)
        if folder not in known:
            close = nearest(folder, folders)
            hint = f"Did you mean {' or '.join(close)}?" if close else "Remove the line, or add the folder"
            raise DataError(f"line {number}: there is no class folder '{folder}'", str(file), hint)
        if folder in names:
            raise DataError(f"line {number}: '{folder}' is named twice", str(file), "Remove one of the lines")
        names[folder] = name or folder
    return _complete(file, names, folders)


def refuse_unknown(folder: Path, found: Sequence[str], known: Sequence[str]) -> None:
    """Stop where a split has classes that training has not.

    Raises:
        DataError: It has; the nearest class of training is named.
    """
    strangers = sorted(set(found) - set(known))
    if strangers:
        close = nearest(strangers[0], known)
        hint = f"Did you mean '{close[0]}'?" if close else "Add it to the training images, or remove it here"
        raise DataError(f"class '{strangers[0]}' is not among the classes of training", str(folder), hint)


def _split(text: str) -> tuple[str, str, str]:
    parts = text.split(maxsplit=1)
    return parts[0], " ", parts[1] if len(parts) > 1 else ""


def _complete(file: Path, names: dict[str, str], folders: Sequence[str]) -> dict[str, str]:
    left = [name for name in folders if name not in names]
    if left:
        raise DataError(f"has no line for the class folder '{left[0]}'", str(file), "Add it, or remove the folder")
    name, count = Counter(names.values()).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise DataError(f"{count} folders have the class name '{name}'", str(file), "Give each a name of its own")
    return names
