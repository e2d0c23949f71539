"""Programs started as a user starts them: what they answer and what they import; and configurations that ship."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from apps.core.cli.layers import read_yaml
from apps.core.cli.resolve import config_from_plain, resolve, to_yaml

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "pytorch_lightning", "pandas", "numpy", "matplotlib", "wandb", "scipy", "torchvision", "timm", "PIL")
"""Packages that take seconds to import."""
PROBE = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
else:
    code = 0
print("CODE", code or 0, "HEAVY", sorted(set(sys.modules) & set({heavy!r})))
"""


def start(module: str, *words: str) -> tuple[str, str]:
    """Run ``python -m module words``: what it printed, then a line ``CODE c HEAVY [imported]``; and its errors."""
    probe = PROBE.format(argv=[module, *words], module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.stdout, done.stderr


def check_shipped(path: Path, kind: type) -> None:
    """A configuration that ships is short, speaks of no code, and resolves to itself."""
    assert len(path.read_text().splitlines()) <= 40
    assert "apps." not in re.sub(r"#.*|python -m \S+", "", path.read_text())
    found = resolve(kind, [read_yaml(path)], {})
    assert config_from_plain(kind, yaml.safe_load(to_yaml(found))) == found
