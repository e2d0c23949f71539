"""The configurations that ship: short, valid, and help that answers at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apps.classification.config import TASK, ClassificationConfig
from apps.core.cli.layers import read_yaml
from apps.core.cli.resolve import resolve
from backbones.vision.config import BACKBONES
from backbones.vision.variants import VARIANTS
from tests.light_start import check_shipped, start

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "apps/classification/README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs/classification").glob("*.yaml"))


def config(name: str, **overrides: object) -> ClassificationConfig:
    found: ClassificationConfig = resolve(
        ClassificationConfig, [read_yaml(ROOT / f"configs/classification/{name}.yaml")], overrides
    )
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_short_and_resolves_to_itself(path):
    check_shipped(path, ClassificationConfig)


def test_every_purpose_has_a_config():
    names = {"tiny", "demo", "folder", "positions", "distill", "imagenet", "imagenet_published"}
    assert {path.stem for path in CONFIGS} == names


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.drop_path])
def test_imagenet_takes_the_stochastic_depth_of_the_table(name):
    if name.endswith(("large", "384", "11x11")):
        pytest.skip("published with ImageNet-22K")
    if VARIANTS[name].family in ("dinat_isotropic", "swinv2"):
        pytest.skip("has a recipe of its own")
    assert config("imagenet", **{"model.backbone": name}).model.backbone.drop_path == VARIANTS[name].drop_path


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.top1 is not None])
def test_published_values_follow_the_backbone_and_the_size(name):
    files = [read_yaml(ROOT / f"configs/classification/{file}.yaml") for file in ("imagenet", "imagenet_published")]
    found = resolve(ClassificationConfig, files, {"model.backbone": name})
    assert found.published == {"top1": VARIANTS[name].top1} and found.data.image_size == VARIANTS[name].image_size
    assert f"| {name} | {VARIANTS[name].top1} |" in README
    if VARIANTS[name].image_size == 224:
        other = resolve(ClassificationConfig, files, {"model.backbone": name, "data.image_size": 256})
        assert other.published == {}


def test_imagenet_is_tested_on_its_validation_images():
    found = config("imagenet")
    assert found.data.val_folder == found.data.test_folder == "val"
    steps = 1_281_167 // (found.data.batch_size * found.trainer.devices)
    assert steps == 1251 and found.schedule.warmup_steps == 20 * steps
    assert config("imagenet", **{"model.backbone": "dinat_tiny"}).data.crop_pct == 0.875
    assert found.data.crop_pct == 0.9


def test_the_students_of_distill_see_unmixed_images():
    assert not config("distill", **{"distill.store": "x"}).mix.active


def test_a_backbone_brings_its_own_options_and_is_told_by_name():
    found = config("tiny", **{"model.backbone": "dinat_mini", "model.backbone.drop_path": 0.2})
    assert BACKBONES.name_of(found.model.backbone) == "dinat_mini" and found.model.backbone.drop_path == 0.2
    assert config("demo", **{"model.backbone": "vig_tiny"}).model.backbone.drop_path == 0.0


def test_commands_in_the_readme_name_files_that_exist():
    for file in re.findall(r"configs/\w+/\w+\.yaml", README):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize(
    ("module", "words", "code"),
    [
        ("apps.classification", (), 0),
        ("apps.classification", ("fit", "--help"), 0),
        ("apps.classification", ("fit", "--print_config"), 0),
        ("apps.classification", ("fit", "--model.backbone", "swin_tinny"), 2),
        ("apps.classification", ("fit", "--data.image_size", "16"), 2),
        ("apps.classification.teach", ("--help",), 0),
        ("apps.classification.teach", ("--epochs", "2"), 2),
    ],
)
def test_answers_without_heavy_imports(module, words, code):
    out, err = start(module, *words)
    assert out.splitlines()[-1] == f"CODE {code} HEAVY []", out + err
    assert "Traceback" not in err


def test_help_names_models_backbones_and_datasets():
    out, _ = start("apps.classification", "--help")
    for word in (
        "fit",
        "doctor",
        "classifier",
        "positions",
        "majority",
        "dinat_tiny",
        "biformer_small",
        "sample",
        "folder",
    ):
        assert word in out
    out, _ = start("apps.classification", "fit", "--model.backbone", "dinat_tiny", "--help")
    for word in (
        "--model.backbone.dilations",
        "--data.augment.policy",
        "--mix.cutmix",
        "--distill.store",
        "--smoothing",
    ):
        assert word in out


def test_the_listing_of_tasks_knows_it():
    out, _ = start("apps")
    assert TASK.title in out
