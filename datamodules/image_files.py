"""Which files below a folder are images: what every dataset of images asks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp")
"""Endings of image files, in either case."""


def images_below(folder: Path, without: Sequence[str] = ()) -> list[str]:
    """Relative paths of all images below a folder, sorted; hidden files and folders are left out, links followed.

    Args:
        folder: The folder.
        without: Names of folders that are not entered.
    """
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name) and name not in without]
        below = os.path.relpath(place, folder)
        found += [name if below == "." else f"{below}/{name}" for name in files if is_image(name)]
    return sorted(found)


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a name is one that systems leave behind: dot files and folders, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"
