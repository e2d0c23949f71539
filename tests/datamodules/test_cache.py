"""Folders of datasets made here: whole or not at all, and made anew where files are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.cache import cache_folder, write_folder, write_if_changed
from graftwork.errors import DataError


def two_files(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "one.txt").write_text("1")
    (folder / "two.txt").write_text("2")


def test_a_folder_is_written_once_and_again_where_files_are_gone(tmp_path):
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        two_files(folder)

    folder = write_folder(tmp_path / "data", write, files=2)
    assert write_folder(tmp_path / "data", write, files=2) == folder and len(calls) == 1
    (folder / "two.txt").unlink()
    write_folder(tmp_path / "data", write, files=2)
    assert len(calls) == 2 and (folder / "two.txt").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write(folder: Path) -> None:
        two_files(folder)
        raise OSError("disk full")

    with pytest.raises(DataError, match="disk full"):
        write_folder(tmp_path / "data", write, files=2)
    assert not list(tmp_path.iterdir())


def test_the_faster_of_two_writers_wins(tmp_path):
    def write(folder: Path) -> None:
        two_files(folder)
        (tmp_path / "data").mkdir()
        two_files(tmp_path / "data")

    assert write_folder(tmp_path / "data", write, files=2) == tmp_path / "data"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_own_folder_by_task_unless_one_is_chosen(tmp_path):
    assert cache_folder(None, "classification").name == "classification"
    assert cache_folder(str(tmp_path / "mine"), "classification") == tmp_path / "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--data\.root"):
        cache_folder(str(tmp_path / "file" / "deeper"), "classification")


def test_a_file_is_left_alone_where_it_is_the_same(tmp_path):
    path = write_if_changed(tmp_path / "a.txt", "one")
    before = path.stat().st_mtime_ns
    write_if_changed(path, "one")
    assert path.stat().st_mtime_ns == before
    assert write_if_changed(path, "two").read_text() == "two"
