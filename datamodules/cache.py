"""Where datasets that are made on this machine keep their files, each written whole or not at all."""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from graftwork.errors import DataError


def cache_folder(root: str | None, task: str) -> Path:
    """The folder to write to: ``root``, or one of the user's own below the temporary folder.

    Args:
        root: What the user chose; None for no choice.
        task: Name of the app, which the folder of the user's own ends in.

    Raises:
        DataError: It cannot be made.
    """
    folder = Path(root).expanduser() if root else Path(tempfile.gettempdir()) / f"graftwork-{_user()}" / task
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


def write_folder(folder: Path, write: Callable[[Path], None], files: int) -> Path:
    """Make a folder with all its files in one step; one that is complete already is taken as it is.

    Args:
        folder: The folder; its name must tell its content, for instance by the numbers it was made from.
        write: Fills the empty folder it is given.
        files: Files that it writes, so that a folder from which some were removed is made anew.

    Raises:
        DataError: The folder cannot be written.
    """
    if _is_complete(folder, files):
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        if folder.is_dir() and not _is_complete(folder, files):
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        if _is_complete(folder, files):  # a process beside this one was faster
            return folder
        raise DataError(
            f"cannot be written: {error}", str(folder), "Set --data.root to a folder you can write"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_complete(folder: Path, files: int) -> bool:
    return folder.is_dir() and sum(1 for path in folder.rglob("*") if path.is_file()) == files


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return str(os.getuid()) if hasattr(os, "getuid") else "user"
