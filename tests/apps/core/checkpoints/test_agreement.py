"""Weights are asked for what they were trained for, or the user hears of it."""

from __future__ import annotations

import pytest

from apps.core.checkpoints.agreement import other_dataset, refuse_other_data
from graftwork.errors import ConfigError

INFO = {"look_back": 96, "horizon": 24, "marks": "timeF", "names": ["a", "b"], "outputs": 2, "frequency": "h"}
DATA = {"name": "csv", "look_back": 96, "horizon": 24, "marks": "timeF", "features": "M", "target": None, "root": "x"}


@pytest.mark.parametrize(
    ("key", "value"), [("look_back", 48), ("horizon", 48), ("marks", "none"), ("features", "S"), ("target", "b")]
)
def test_other_sizes_and_columns_than_trained_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"best\.ckpt: was trained with data\.{key}={DATA[key]}, not {value}\. Drop"):
        refuse_other_data({"data": DATA}, INFO, {**DATA, key: value}, "best.ckpt")


def test_what_weights_do_not_decide_may_change():
    calls = [
        ({"data": DATA}, INFO, {**DATA, "root": "elsewhere", "batch_size": 1}, "best.ckpt"),
        ({}, INFO, {**DATA, "horizon": 1}, "plain.pt"),
        ({"data": DATA}, None, {**DATA, "horizon": 1}, "old.ckpt"),
    ]
    for call in calls:
        refuse_other_data(*call)  # raises where it refuses
    with pytest.raises(ConfigError):
        refuse_other_data({"data": DATA}, INFO, {**DATA, "horizon": 1}, "best.ckpt")


def test_other_columns_are_named():
    assert other_dataset(INFO, {**INFO, "horizon": 1}) == ""
    assert other_dataset(INFO, {**INFO, "names": ["c"], "outputs": 1}) == "names a, b, now c; outputs 2, now 1"
    assert other_dataset(None, INFO) == ""
