"""The zoo: trained weights by name, as files of this repository or as addresses that only ``fetch`` ever opens."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from graftwork.errors import ConfigError, WeightsError
from graftwork.names import unknown

ZOO = Path(__file__).with_name("zoo.yaml")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """Weights of the zoo.

    Args:
        name: What ``--weights zoo:NAME`` calls them.
        task: The app they belong to.
        sha256: Digest of the file.
        file: Name below ``demo/`` beside the list; empty where there is a ``url``.
        url: Address that ``fetch`` downloads from.
        about: One line for the listing.
    """

    name: str
    task: str
    sha256: str
    file: str = ""
    url: str = ""
    about: str = ""

    def path(self, zoo: Path = ZOO) -> Path:
        """Where the file is, or would be once it is fetched."""
        if self.file:
            return zoo.parent / "demo" / self.file
        return cache() / f"{self.name}{Path(self.url).suffix or '.safetensors'}"


def cache() -> Path:
    """Folder of fetched weights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graftwork" / "zoo"


def entries(zoo: Path = ZOO) -> list[Entry]:
    """All entries of a list.

    Raises:
        ConfigError: The list is unreadable, or an entry lacks a key or has an unknown one.
    """
    try:
        rows = yaml.safe_load(zoo.read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(zoo)) from error
    return [_entry(row, zoo) for row in rows]


def _entry(row: Mapping[str, Any], zoo: Path) -> Entry:
    known = {field.name for field in fields(Entry)}
    missing = [key for key in ("name", "task", "sha256") if not row.get(key)]
    if not row.get("file") and not row.get("url"):
        missing.append("file or url")
    wrong = [key for key in row if key not in known]
    if missing or wrong:
        problems = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(wrong)}"] * bool(wrong)
        raise ConfigError(f"entry '{row.get('name', '?')}' {' and '.join(problems)}", where=str(zoo))
    return Entry(**{key: str(value) for key, value in row.items()})


def find(name: str, zoo: Path = ZOO) -> Entry:
    """The entry of a name.

    Raises:
        ConfigError: There is none; the nearest names are given.
    """
    known = {entry.name: entry for entry in entries(zoo)}
    if name not in known:
        raise unknown("zoo weights", name, known)
    return known[name]


def local_file(name: str, zoo: Path = ZOO) -> Path:
    """The file of an entry, checked against its digest. Never downloads.

    Raises:
        WeightsError: The file is not here yet, or it is not the one that was entered.
    """
    entry = find(name, zoo)
    path = entry.path(zoo)
    if not path.is_file():
        raise WeightsError("is not here", where=f"zoo:{name}", mend=_how_to_get(entry))
    check(entry, path)
    return path


def _how_to_get(entry: Entry) -> str:
    return f"Run: python -m checkpoints fetch {entry.name}" if entry.url else "Restore checkpoints/demo from the source"


def check(entry: Entry, path: Path) -> None:
    """Compare a file with the digest of its entry.

    Raises:
        WeightsError: They differ.
    """
    found = sha256(path)
    if found != entry.sha256:
        raise WeightsError(
            f"sha256 is {found[:12]}..., expected {entry.sha256[:12]}...",
            where=str(path),
            mend="The file is damaged or another one; remove it and get it again",
        )


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def fetch(name: str, zoo: Path = ZOO) -> Path:
    """Download an entry into the cache, unless it is there already.

    Raises:
        WeightsError: It cannot be downloaded, or what came is not what was entered; nothing is kept then.
    """
    entry = find(name, zoo)
    path = entry.path(zoo)
    if path.is_file():
        check(entry, path)
        return path
    if not entry.url:
        raise WeightsError("has no address to fetch from", where=f"zoo:{name}", mend=_how_to_get(entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        _download(entry.url, unfinished)
        check(entry, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as source, path.open("wb") as target:
            while block := source.read(_CHUNK):
                target.write(block)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise WeightsError(f"cannot be downloaded: {error}", where=url, mend="Check the network, then try again") from (
            error
        )
