"""Configuration: precedence, reset on swap, conditions, and every problem at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from apps.core.cli.layers import unflatten
from apps.core.cli.resolve import config_from_plain, resolve, to_yaml, typed
from apps.core.cli.schema import Leaf, to_plain
from graftwork.components import Registry, component
from graftwork.errors import ConfigError


@dataclass(kw_only=True)
class Flow:
    """Flow."""

    clamp: float | None = None
    """Bound."""

    def build(self) -> str:
        return "flow"


@dataclass(kw_only=True)
class Softmax:
    """Softmax."""

    heads: int = 8
    """Heads."""

    def build(self) -> str:
        return "softmax"


MIXERS = Registry("mixer", {"softmax": Softmax, "flow": Flow})


@dataclass(kw_only=True)
class Big:
    """Big model."""

    width: int = 256
    """Width."""
    rates: tuple[float, ...] = ()
    """Rates."""
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares."""
    bound: int | None = None
    """Bound."""
    mixer: Any = component(MIXERS)

    def problems(self) -> Iterator[str]:
        if self.width % 2:
            yield f"width={self.width} must be even; try {self.width + 1}"

    def build(self) -> str:
        return "big"


@dataclass(kw_only=True)
class Small:
    """Small model."""

    width: int = 16
    """Width."""

    def build(self) -> str:
        return "small"


MODELS = Registry("model", {"big": Big, "small": Small})


@dataclass(kw_only=True)
class Optim:
    """Optimiser."""

    name: Literal["adam", "sgd"] = "adam"
    """Name."""
    lr: float = 0.1
    """Rate."""


@dataclass(kw_only=True)
class App:
    """App."""

    horizon: int = 96
    """Horizon."""
    note: str = ""
    """Note."""
    flag: bool = False
    """Flag."""
    optim: Optim = field(default_factory=Optim)
    """Optimiser."""
    model: Any = component(MODELS)
    published: dict[str, float] = field(default_factory=dict)
    """Published."""


def test_overrides_win_over_files_and_later_files_over_earlier():
    config = resolve(App, [{"horizon": 1, "note": "a"}, {"horizon": 2}], {"horizon": "3"})
    assert (config.horizon, config.note) == (3, "a")


def test_changing_a_name_resets_its_siblings_to_the_new_defaults():
    config = resolve(App, [{"model": {"name": "big", "width": 512}}], {"model.name": "small"})
    assert config.model == Small(width=16)


def test_same_name_keeps_siblings():
    config = resolve(App, [{"model": {"name": "big", "width": 512}}], {"model.name": "big"})
    assert config.model.width == 512


def test_siblings_given_with_the_new_name_are_kept():
    config = resolve(App, [{"model": {"name": "big", "width": 512}}], {"model.width": "64", "model.name": "small"})
    assert config.model == Small(width=64)


def test_plain_name_sections_are_not_components():
    config = resolve(App, [{"optim": {"lr": 0.5}}], {"optim.name": "sgd"})
    assert (config.optim.name, config.optim.lr) == ("sgd", 0.5)


def test_short_form_picks_a_nested_component():
    config = resolve(App, [{"model": {"mixer": {"name": "softmax", "heads": 4}}}], {"model.mixer": "flow"})
    assert config.model.mixer == Flow()
    config = resolve(App, [], {"model.mixer": "flow", "model.mixer.clamp": "1"})
    assert config.model.mixer == Flow(clamp=1.0)


def test_when_sets_the_recipe_but_the_user_wins():
    layer = {"when": [{"if": {"horizon": [336, 720]}, "set": {"model.width": 512, "published": {"mse": 0.4}}}]}
    assert resolve(App, [layer], {}).model.width == 256
    chosen = resolve(App, [layer], {"horizon": "336"})
    assert chosen.model.width == 512
    assert chosen.published == {"mse": 0.4}
    assert resolve(App, [layer], {"horizon": "336", "model.width": "64"}).model.width == 64


def test_when_sets_options_of_the_component_that_the_user_chose():
    clause = {"if": {"model.mixer.name": "flow"}, "set": {"model.mixer.clamp": 2}}
    layer = {"model": {"mixer": "softmax"}, "when": [clause]}
    assert resolve(App, [layer], {"model.mixer": "flow"}).model.mixer == Flow(clamp=2.0)
    assert resolve(App, [layer], {"model.mixer": "flow", "model.mixer.clamp": 3}).model.mixer == Flow(clamp=3.0)
    assert resolve(App, [layer], {}).model.mixer == Softmax()


def test_when_may_ask_for_a_component_name():
    layer = {"when": [{"if": {"model.name": "big", "horizon": 96}, "set": {"published": {"mse": 1.0}}}]}
    assert resolve(App, [layer], {}).published == {"mse": 1.0}
    assert resolve(App, [layer], {"model.name": "small"}).published == {}


@pytest.mark.parametrize(
    ("raw", "value"), [("32", 32), (32, 32), ("32,48", (32, 48)), ("[32,48]", (32, 48)), ([32, 48], (32, 48))]
)
def test_a_number_or_two_are_taken_in_every_spelling(raw, value):
    leaf = Leaf("side", int | tuple[int, int], 0, "", "")
    assert typed({"side": raw}, {"side": leaf}) == ({"side": value}, [])


def test_yaml_resolves_to_itself():
    config = resolve(App, [], {"model.rates": "0.1,0.9", "model.mixer": "flow", "note": "12", "flag": "true"})
    assert config.note == "12"
    assert config.model.rates == (0.1, 0.9)
    assert config_from_plain(App, yaml.safe_load(to_yaml(config))) == config
    assert to_plain(config)["model"]["name"] == "big"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"horizom": "1"}, ["unknown option 'horizom'", "horizon"]),
        ({"model.widht": "1"}, ["model.widht", "model.width"]),
        ({"width": "1"}, ["'width'", "model.width"]),
        ({"model.name": "bgi"}, ["model.name: unknown model 'bgi'", "big"]),
        ({"model.mixer": "flwo"}, ["model.mixer.name: unknown mixer 'flwo'", "flow"]),
        ({"horizon": "many"}, ["horizon='many'", "whole number"]),
        ({"optim.name": "adm"}, ["optim.name='adm'", "adam"]),
        ({"flag": "7"}, ["flag='7'", "true or false"]),
        ({"model.width": "3"}, ["model.width=3 must be even; try 4"]),
        ({"model.rates": "a,b"}, ["model.rates='a,b' must be a list of numbers"]),
        ({"model.shares": "1"}, ["model.shares='1' must be three numbers, for example --model.shares 0.7,0.1,0.2"]),
        ({"model.bound": "x"}, ["model.bound='x' must be a whole number or null"]),
        ({"published": "5"}, ["published='5' must be 'key: value' pairs"]),
        ({"optim": "5"}, ["optim='5': optim must be a section of 'key: value' pairs"]),
        ({"model.name": "custom:nowhere.Config"}, ["nowhere"]),
        ({"model.name": "custom:yaml.YAMLError"}, ["build()"]),
    ],
)
def test_each_problem_names_key_value_and_mend(overrides, words):
    with pytest.raises(ConfigError) as caught:
        resolve(App, [], overrides)
    for word in words:
        assert word in str(caught.value)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        resolve(App, [{"horizom": 1}], {"model.name": "bgi", "optim.lr": "fast", "flag": "maybe"})
    text = str(caught.value)
    assert text.startswith("4 problems:")
    for word in ("horizom", "bgi", "optim.lr='fast'", "flag='maybe'"):
        assert word in text


def test_custom_component_from_outside(tmp_path, monkeypatch):
    (tmp_path / "my_pkg.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Mine:\n"
        "    depth: int = 2\n    def build(self): return 'mine'\n"
    )
    monkeypatch.chdir(tmp_path)
    config = resolve(App, [], {"model.name": "custom:my_pkg.Mine", "model.depth": "5"})
    assert config.model.build() == "mine"
    assert config.model.depth == 5
    assert to_plain(config)["model"]["name"] == "custom:my_pkg.Mine"


@pytest.mark.parametrize("text", ["model:\noptim:\n", "model: {name: }\n", "optim:\noptim.lr: 0.1\n", "model.mixer:\n"])
def test_an_empty_section_is_none(text):
    assert resolve(App, [unflatten(yaml.safe_load(text))], {}) == App()
    assert resolve(App, [unflatten(yaml.safe_load(text))], {"model.width": "64"}).model.width == 64


def test_an_empty_section_keeps_what_lies_below():
    assert resolve(App, [{"model": {"name": "small", "width": 5}}, {"model": None}], {}).model == Small(width=5)
