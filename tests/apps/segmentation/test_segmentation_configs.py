"""The configurations that ship: short, valid, and help that answers at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apps.core.cli.layers import read_yaml
from apps.core.cli.resolve import config_from_plain, resolve, to_yaml
from apps.segmentation.config import TASK, SegmentationConfig
from apps.segmentation.models.config import HEADS
from datamodules.segmentation.config import DATASETS

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "apps/segmentation/README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs/segmentation").glob("*.yaml"))
HEAVY = ("torch", "pytorch_lightning", "pandas", "numpy", "matplotlib", "wandb", "scipy", "torchvision", "timm", "PIL")
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_short_and_resolves_to_itself(path):
    assert len(path.read_text().splitlines()) <= 40
    assert "apps." not in re.sub(r"#.*|python -m \S+", "", path.read_text())
    found = resolve(SegmentationConfig, [read_yaml(path)], {})
    assert config_from_plain(SegmentationConfig, yaml.safe_load(to_yaml(found))) == found


def test_every_purpose_has_a_config():
    names = {path.stem for path in CONFIGS}
    assert {"tiny", "demo", "demo_panoptic", "folder", "camvid", "ade20k_upernet", "coco_kmax"} <= names


def test_the_readme_names_what_there_is():
    for file in re.findall(r"configs/\w+/\w+\.yaml", README):
        assert (ROOT / file).is_file(), file
    for name in [*HEADS.names(), *DATASETS.names()]:
        assert f"`{name}`" in README, name


def start(module: str, *words: str) -> tuple[str, str]:
    probe = PROBE.format(argv=[module, *words], module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 0),
        (("fit", "--help"), 0),
        (("fit", "--model.head", "mask2former", "--print_config"), 0),
        (("fit", "--model.head", "kmaxx"), 2),
        (("fit", "--data.crop", "[8,8]"), 2),
    ],
)
def test_answers_without_heavy_imports(words, code):
    out, err = start("apps.segmentation", *words)
    assert out.splitlines()[-1] == f"CODE {code} HEAVY []", out + err
    assert "Traceback" not in err


def test_help_and_the_listing_name_it():
    out, _ = start("apps.segmentation", "--help")
    for word in ("fit", "doctor", "segmenter", "upernet", "kmax", "mask2former", *DATASETS.names()):
        assert word in out, word
    out, _ = start("apps")
    assert TASK.title in out


def test_a_head_brings_its_own_options():
    out, _ = start("apps.segmentation", "fit", "--model.head", "kmax", "--help")
    for word in ("--model.head.queries", "--model.class_weights", "--inference.scales", "--distill.kind"):
        assert word in out, word
