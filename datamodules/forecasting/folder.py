"""Where datasets that are made on this machine keep their CSV file."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

from graftwork.errors import DataError


def cache_folder(root: str | None) -> Path:
    """The folder to write to: ``root``, or one of the user's own below the temporary folder.

    Raises:
        DataError: It cannot be made.
    """
    folder = Path(root).expanduser() if root else Path(tempfile.gettempdir()) / f"graftwork-{_user()}" / "forecasting"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the folder: {error}", str(folder), "Set --data.root to a folder you can write"
        ) from error
    return folder


def write_if_changed(path: Path, text: str) -> Path:
    """Write a file in one step, so that a process beside this one never reads half of it.

    Raises:
        DataError: The file cannot be written.
    """
    data = text.encode()
    try:
        if path.is_file() and path.read_bytes() == data:
            return path
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot be written: {error}", str(path), "Set --data.root to a folder you can write"
        ) from error
    return path


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return str(os.getuid()) if hasattr(os, "getuid") else "user"
