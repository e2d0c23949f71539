"""Which file each restored image is written to: one of its own, and none that is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from apps.core.run.atomic import check_place
from datamodules.image_files import SUFFIXES, images_below
from graftwork.errors import DataError, UserError

LOSSLESS = (".png", ".tif", ".tiff", ".webp", ".bmp")


class Job(NamedTuple):
    """An image to restore.

    Args:
        file: What is read.
        target: What is written.
    """

    file: Path
    target: Path


def jobs(source: Path, output: Path | None, mark: str) -> list[Job]:
    """All images with the files to write, checked before the first one is restored.

    Names of formats that are read but not written, or that lose what was restored, become PNG: ``a.jpg`` is written to
    ``a.png``, or to ``a.jpg.png`` where another image of the folder is written to ``a.png``.

    Args:
        source: An image file or a folder.
        output: File or folder to write; beside the source, with ``mark`` in its name, if None.
        mark: Added to the names of what is written beside its source.

    Raises:
        DataError: There are no images.
        UserError: A result would overwrite an image or another result, or cannot be written.
    """
    if source.is_dir():
        folder = output or source.with_name(f"{source.name}{mark}")
        found = _lossless([Job(source / name, folder / name) for name in images_below(source)])
        if not found:
            raise DataError(f"has no images; expected {', '.join(SUFFIXES)}", where=str(source))
    elif output is None or output.is_dir() or not output.suffix:
        found = _lossless([Job(source, (output or source.parent) / f"{source.stem}{mark}{source.suffix}")])
    else:
        found = [Job(source, output)]
    _check(found)
    return found


def _lossless(found: list[Job]) -> list[Job]:
    names = Counter(_renamed(target) for _, target in found)
    return [
        Job(file, target.with_name(f"{target.name}.png") if names[renamed] > 1 and renamed != target else renamed)
        for file, target in found
        for renamed in [_renamed(target)]
    ]


def _renamed(path: Path) -> Path:
    return path if path.suffix.lower() in LOSSLESS else path.with_suffix(".png")


def _check(found: list[Job]) -> None:
    read = {file.resolve(): file for file, _ in found}
    written: dict[Path, Path] = {}
    for file, target in found:
        place = target.resolve()
        if place in read:
            own = read[place] == file
            what = "would overwrite its input" if own else f"the result of {file} would overwrite this input"
            raise UserError(what, str(target), "Choose another --output")
        if place in written:
            what = f"would hold the results of {written[place]} and of {file}"
            raise UserError(what, str(target), "Rename one of them")
        written[place] = file
        check_place(target, "--output")
