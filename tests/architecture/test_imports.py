"""Who may import whom, read from the source of every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("graftwork", "backbones", "datamodules", "checkpoints", "apps")
ALLOWED = {
    "graftwork": {"graftwork"},
    "backbones": {"graftwork", "checkpoints", "backbones"},
    "datamodules": {"graftwork", "datamodules"},
    "checkpoints": {"graftwork", "checkpoints"},
    "apps": {"graftwork", "backbones", "datamodules", "checkpoints", "apps"},
}
LIGHTNING = ("pytorch_lightning", "lightning")
TORCH_LEVEL = {"torch", "torchvision", "timm", "huggingface_hub", "xformers", "natten", "numpy", "rich"}
STANDARD_LIBRARY_ONLY = {"graftwork"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def owner(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).parts


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path):
    layer = owner(path)[0]
    for name in imported(path):
        top = name.split(".")[0]
        if top in PACKAGES:
            assert top in ALLOWED[layer], f"{path} must not import {name}"
        assert top != "tests", f"{path} must not import tests"


@pytest.mark.parametrize("path", sorted((ROOT / "apps").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_app_imports_another_and_core_imports_none(path):
    mine = owner(path)[1] if len(owner(path)) > 2 else ""
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "apps" and len(parts) > 1 and mine:
            is_package = (ROOT / "apps" / parts[1]).is_dir()
            assert not is_package or parts[1] in {"core", mine}, f"{path} must not import {name}"


def test_backbones_import_torch_level_libraries_only():
    import sys

    for path in (ROOT / "backbones").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            fine = top in TORCH_LEVEL | {"graftwork", "backbones", "checkpoints", ""} or top in sys.stdlib_module_names
            assert fine, f"{path} must not import {name}"


def test_models_know_no_lightning():
    paths = [*ROOT.glob("apps/*/models/*.py"), *ROOT.glob("apps/*/model.py"), *ROOT.glob("backbones/**/*.py")]
    assert paths
    for path in paths:
        assert not any(name.startswith(LIGHTNING) for name in imported(path)), path


def test_configs_import_no_torch():
    paths = [
        *ROOT.glob("apps/**/config.py"),
        *ROOT.glob("datamodules/**/config.py"),
        *ROOT.glob("backbones/**/config.py"),
    ]
    assert len(paths) >= 5
    heavy = {"torch", "pandas", "numpy", "pytorch_lightning", "matplotlib", "scipy"}
    for path in paths:
        assert not {name.split(".")[0] for name in imported(path, top_level_only=True)} & heavy, path


def test_the_ground_is_standard_library_only():
    import sys

    for path in (ROOT / "graftwork").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top == "graftwork" or top in sys.stdlib_module_names, f"{path} must not import {name}"


def test_no_drawer_for_odds_and_ends():
    for path in sources():
        assert not {part.removesuffix(".py") for part in owner(path)} & {"utils", "helpers", "common", "misc"}, path


def test_no_asserts_on_user_input():
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], path
