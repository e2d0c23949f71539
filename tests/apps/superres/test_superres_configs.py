"""The configurations that ship: short, valid, and help that answers at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apps.core.cli.layers import read_yaml
from apps.core.cli.resolve import resolve
from apps.superres.config import TASK, SuperresConfig
from apps.superres.models.config import MODELS
from datamodules.superres.config import DATASETS
from datamodules.superres.degradations.config import DEGRADATIONS
from tests.light_start import check_shipped, start

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "apps/superres/README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs/superres").glob("*.yaml"))
RESTORATIONS = {"denoise", "deblock", "deblur", "demosaic", "dereflect", "derain"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_short_and_resolves_to_itself(path):
    check_shipped(path, SuperresConfig)


def test_every_purpose_has_a_config():
    names = {path.stem for path in CONFIGS}
    assert {"tiny", "demo", "folder", *RESTORATIONS, *(f"cfsr_x{scale}_set5" for scale in (2, 3, 4))} <= names


@pytest.mark.parametrize("name", sorted(RESTORATIONS))
def test_restorations_are_of_scale_one_and_swap_their_network(name):
    for model in ("cfsr", "hat_s"):
        found = resolve(SuperresConfig, [read_yaml(ROOT / f"configs/superres/{name}.yaml")], {"model.name": model})
        assert found.data.degradation.scale == 1 and MODELS.name_of(found.model) == model


def test_demosaicing_weighs_large_errors_up():
    assert resolve(SuperresConfig, [read_yaml(ROOT / "configs/superres/demosaic.yaml")], {}).loss.kind.startswith(
        "focus"
    )


@pytest.mark.parametrize(("scale", "steps", "lr", "halved_at"), [(2, 500, 2e-4, 250), (4, 250, 1e-4, 125)])
def test_hat_is_trained_as_published(scale, steps, lr, halved_at):
    found = resolve(SuperresConfig, [read_yaml(ROOT / f"configs/superres/hat_x{scale}_df2k.yaml")], {})
    data, trainer = found.data, found.trainer
    assert MODELS.name_of(found.model) == "hat" and data.degradation.scale == scale and data.variant == "DF2K"
    assert (data.sub_images, data.patch, data.batch_size) == (True, 64, 32)
    assert trainer.max_epochs * trainer.limit_train_batches == 1000 * steps and trainer.ema_decay == 0.999
    assert (found.optim.name, found.optim.lr, tuple(found.optim.betas)) == ("adam", lr, (0.9, 0.99))
    assert found.schedule.milestones[0] == halved_at and found.schedule.gamma == 0.5 and found.loss.kind == "l1"


def test_the_readme_names_what_there_is():
    for file in re.findall(r"configs/\w+/\w+\.yaml", README):
        assert (ROOT / file).is_file(), file
    for name in re.findall(r"`(\w+\.yaml)`", README):
        assert (ROOT / "configs/superres" / name).is_file(), name
    for registry in (MODELS, DATASETS, DEGRADATIONS):
        for name in registry.names():
            assert f"`{name}`" in README, name


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 0),
        (("fit", "--help"), 0),
        (("fit", "--print_config"), 0),
        (("fit", "--model.name", "cfrs"), 2),
        (("fit", "--data.patch", "0"), 2),
    ],
)
def test_answers_without_heavy_imports(words, code):
    out, err = start("apps.superres", *words)
    assert out.splitlines()[-1] == f"CODE {code} HEAVY []", out + err
    assert "Traceback" not in err


def test_help_and_the_listing_name_it():
    out, _ = start("apps.superres", "--help")
    for word in ("fit", "doctor", *MODELS.names(), *DATASETS.names()):
        assert word in out, word
    out, _ = start("apps")
    assert TASK.title in out
