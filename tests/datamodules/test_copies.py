"""Files that lie in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import copies as copying
from datamodules.copies import copies


def written(folder: Path, name: str, content: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def test_pairs_with_the_same_bytes(tmp_path):
    one = [written(tmp_path / "one", name, text) for name, text in (("a", "xx"), ("b", "yy"), ("c", "xx"), ("d", "z"))]
    other = [written(tmp_path / "other", name, text) for name, text in (("k", "yy"), ("l", "xx"), ("m", "ab"))]
    missing = tmp_path / "none"
    assert copies([*one, missing], [*other, missing]) == [(one[1], other[0]), (one[0], other[1])]
    assert copies([], other) == copies(one, []) == []


def test_files_are_read_once_and_only_where_sizes_meet(tmp_path, monkeypatch):
    read: list[Path] = []
    digest = copying._digest
    monkeypatch.setattr(copying, "_digest", lambda path: read.append(path) or digest(path))
    one = [written(tmp_path / "one", str(number), f"{number:04}") for number in range(20)]
    other = [written(tmp_path / "other", str(number), f"{number:04}") for number in range(10, 30)]
    alone = [written(tmp_path / "one", "long", "longer than others"), written(tmp_path / "other", "short", "s")]
    found = copies([*one, alone[0]], [*other, alone[1]])
    assert [(a.name, b.name) for a, b in found] == [(str(number), str(number)) for number in range(10, 20)]
    assert sorted(read) == sorted([*one, *other])


@pytest.mark.parametrize("content", ["", "x"])
def test_empty_files_are_alike_too(tmp_path, content):
    one, other = written(tmp_path / "one", "a", content), written(tmp_path / "other", "b", content)
    assert copies([one], [other]) == [(one, other)]
