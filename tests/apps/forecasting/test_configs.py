"""The configurations that ship: short, valid, and honest about what was published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from apps.core.cli.layers import read_yaml
from apps.core.cli.resolve import config_from_plain, resolve, to_yaml
from apps.forecasting.config import ForecastingConfig
from apps.forecasting.models.config import MODELS

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs/forecasting").glob("*.yaml"))
PUBLISHED = ("itransformer", "smamba", "patchtst", "dlinear", "autoformer", "informer")


def config(name: str, **overrides: object):
    return resolve(ForecastingConfig, [read_yaml(ROOT / f"configs/forecasting/{name}.yaml")], overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_short_and_resolves_to_itself(path):
    assert len(path.read_text().splitlines()) <= 40
    assert "apps." not in re.sub(r"#.*|python -m \S+", "", path.read_text())
    found = resolve(ForecastingConfig, [read_yaml(path)], {})
    assert config_from_plain(ForecastingConfig, yaml.safe_load(to_yaml(found))) == found


def test_every_model_has_a_recipe():
    assert {f"etth1_{name}" for name in MODELS.names()} <= {path.stem for path in CONFIGS}
    assert {"tiny", "demo", "csv"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("horizon", [96, 192, 336, 720])
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_values_follow_the_horizon(model, horizon):
    published = config(f"etth1_{model}", **{"data.horizon": horizon}).published
    assert set(published) == {"mse", "mae"}
    others = [config(f"etth1_{model}", **{"data.horizon": h}).published for h in (96, 192, 336, 720) if h != horizon]
    assert published not in others


@pytest.mark.parametrize(
    "override",
    [
        {"data.variant": "ETTm1"},
        {"data.look_back": 336},
        {"data.features": "S"},
        {"data.horizon": 100},
        {"data.name": "sample"},
        {"model.name": "aaren"},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", PUBLISHED)
def test_no_published_value_beside_another_recipe(model, override):
    assert config(f"etth1_{model}", **override).published == {}


def test_another_mixer_is_another_model():
    assert config("etth1_itransformer", **{"model.mixer": "flow"}).published == {}


def test_longer_horizons_bring_their_recipe_unless_the_user_says_otherwise():
    assert config("etth1_itransformer").model.width == 256
    assert config("etth1_itransformer", **{"data.horizon": 720}).model.width == 512
    assert config("etth1_itransformer", **{"data.horizon": 720, "model.width": 64}).model.width == 64
    assert config("etth1_smamba", **{"data.horizon": 336}).optim.lr == pytest.approx(5e-5)
