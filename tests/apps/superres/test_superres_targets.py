"""Names of what is written: none of an input, and one for each image."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.superres.targets import jobs
from graftwork.errors import DataError, UserError


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(source: Path, output: Path | None) -> dict[str, str]:
    found = jobs(source, output, "_x2")
    target = output or source.with_name(f"{source.name}_x2")
    return {str(job.file.relative_to(source)): str(job.target.relative_to(target)) for job in found}


def test_formats_that_lose_become_png(tmp_path):
    source = folder(tmp_path / "in", "a.JPG", "b.gif", "c.tif", "more/d.webp", "more/a.jpg", "e.x.jpeg")
    expected = {"a.JPG": "a.png", "b.gif": "b.png", "c.tif": "c.tif", "e.x.jpeg": "e.x.png"}
    expected |= {"more/a.jpg": "more/a.png", "more/d.webp": "more/d.webp"}
    assert names(source, None) == names(source, tmp_path / "out") == expected


def test_every_image_has_a_name_of_its_own(tmp_path):
    source = folder(tmp_path / "in", "a.jpg", "a.png", "b.gif", "b.jpg", "c.jpg", "more/a.jpg")
    assert names(source, tmp_path / "out") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "b.gif": "b.gif.png",
        "b.jpg": "b.jpg.png",
        "c.jpg": "c.png",
        "more/a.jpg": "more/a.png",
    }


def test_names_that_still_collide_are_both_named(tmp_path):
    source = folder(tmp_path / "in", "a.jpg", "a.jpg.png", "a.png")
    with pytest.raises(UserError, match=r"a\.jpg\.png: would hold the results of .*in/a\.jpg and of .*in/a\.jpg\.png"):
        jobs(source, tmp_path / "out", "_x2")


def test_no_result_overwrites_an_image(tmp_path):
    source = folder(tmp_path / "in", "a.jpg", "b.jpg")
    assert names(source, source) == {"a.jpg": "a.png", "b.jpg": "b.png"}  # beside the images
    folder(source, "more/a.png")
    with pytest.raises(UserError, match=r"more/a\.png: would overwrite its input\. Choose another --output"):
        jobs(source, source, "_x2")
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(UserError, match="would overwrite its input"):
        jobs(source, link, "_x2")
    other = folder(tmp_path / "nested", "a.jpg", "out/a.png")
    with pytest.raises(UserError, match=r"out/a\.png: the result of .*nested/a\.jpg would overwrite this input"):
        jobs(other, other / "out", "_x2")


def test_single_files(tmp_path):
    file = folder(tmp_path, "a.jpg", "b.tif") / "a.jpg"
    assert jobs(file, None, "_x2") == [(file, tmp_path / "a_x2.png")]
    assert jobs(tmp_path / "b.tif", tmp_path / "new", "_x2") == [(tmp_path / "b.tif", tmp_path / "new/b_x2.tif")]
    assert jobs(file, tmp_path / "c.jpg", "_x2") == [(file, tmp_path / "c.jpg")]
    with pytest.raises(UserError, match="would overwrite its input"):
        jobs(file, file, "_x2")
    with pytest.raises(DataError, match=r"has no images; expected \.jpg"):
        jobs(folder(tmp_path / "text", "a.txt"), None, "_x2")


def test_places_are_checked_before_the_work(tmp_path):
    source = folder(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "out/b.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out/b\.png: is a folder"):
        jobs(source, tmp_path / "out", "_x2")
