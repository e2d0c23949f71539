"""The configurations that ship: short, valid, and help that answers at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apps.segmentation.config import TASK, SegmentationConfig
from apps.segmentation.models.config import HEADS
from datamodules.segmentation.config import DATASETS
from tests.light_start import check_shipped, start

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "apps/segmentation/README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs/segmentation").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_short_and_resolves_to_itself(path):
    check_shipped(path, SegmentationConfig)


def test_every_purpose_has_a_config():
    names = {path.stem for path in CONFIGS}
    assert {"tiny", "demo", "demo_panoptic", "folder", "camvid", "ade20k_upernet", "coco_kmax"} <= names


def test_the_readme_names_what_there_is():
    for file in re.findall(r"configs/\w+/\w+\.yaml", README):
        assert (ROOT / file).is_file(), file
    for name in [*HEADS.names(), *DATASETS.names()]:
        assert f"`{name}`" in README, name


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
