"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork.errors import UserError

TMP_SUFFIX = ".tmp"


_OPTIONS = "--run.dir or --run.root"


def check_place(path: Path, option: str, folder: bool = False) -> None:
    """Stop before the work where its outcome could not be written.

    Args:
        path: Where it will be written.
        option: The option that names the place.
        folder: Whether a folder would do, too.

    Raises:
        UserError: The place is a folder, lies below a file, or is closed to this user.
    """
    mend = f"Choose another place by {option}"
    if path.is_dir() and not folder:
        raise UserError("is a folder, expected the name of a file", str(path), mend)
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if nearest != path and not nearest.is_dir():
        raise UserError(f"cannot be written: {nearest} is a file", str(path), mend)
    place = nearest if nearest.is_dir() else nearest.absolute().parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError("cannot be written: Permission denied", str(path), mend)


def replace_file(path: Path, content: str | bytes | memoryview, option: str = _OPTIONS) -> None:
    """Put ``content`` at ``path``: written beside it, flushed to the disk, then renamed.

    A reader, and the next run after a crash, sees the old file or the new one, never a part of it.

    Args:
        path: Where; its folder is made if it is missing.
        content: Text (UTF-8) or bytes.
        option: The option that names the place, for the error.

    Raises:
        UserError: The disk is full, or the place cannot be written to; an older file at ``path`` is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{TMP_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error, option) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """JSON that every reader takes: numbers that are not finite become null, unknown objects their text."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def clean_unfinished(folder: Path) -> list[Path]:
    """Remove what writers that were killed left behind in ``folder``; files of other kinds are not touched."""
    found = [path for path in folder.glob(f".*{TMP_SUFFIX}") if path.is_file()] if folder.is_dir() else []
    for path in found:
        with contextlib.suppress(OSError):
            path.unlink()
    return found


def cannot_write(path: Path, error: OSError, option: str = _OPTIONS) -> UserError:
    """The sentence for a file that cannot be written."""
    what = f"cannot be written: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        again = ", and a fit goes on with --resume last" if option == _OPTIONS else ""
        mend = f"Free some space; what was written before is intact{again}"
    else:
        mend = f"Choose a folder that you can write to, with {option}"
    return UserError(what, where=str(path), mend=mend)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
