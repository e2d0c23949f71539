"""Documents: links lead somewhere, dependencies are told, the lock has names and versions only."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in ROOT.rglob("*.md") if not {".venv", ".uv", "runs"} & set(path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def requirements() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.split(r"[\[<>=; ]", line)[0] for lines in lists for line in lines}


def test_every_dependency_has_a_row_with_its_reason():
    table = (ROOT / "ARCHITECTURE.md").read_text().lower()
    stubs = {"pandas-stubs", "types-pyyaml"}
    for name in requirements() - stubs:
        assert name.lower() in table, name


def test_every_dependency_is_locked():
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert {name.lower() for name in requirements()} <= locked


def test_the_lock_has_names_and_versions_only():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[^\s@:]+( ; [^@:]+)?", line), line


def test_commands_in_the_readme_name_files_that_exist():
    for page in (ROOT / "README.md", ROOT / "apps/forecasting/README.md"):
        for config in re.findall(r"configs/\w+/\w+\.yaml", page.read_text()):
            assert (ROOT / config).is_file(), config
