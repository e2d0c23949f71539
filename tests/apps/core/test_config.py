"""Values that no run could use are refused before anything is read."""

from __future__ import annotations

import pytest

from apps.core.cli.resolve import resolve
from apps.forecasting.config import ForecastingConfig
from graftwork.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", ["-1", "4294967296"]),
        ("optim.lr", ["0", "nan", "inf"]),
        ("optim.betas", ["0.9,1", "-0.1,0.9"]),
        ("optim.momentum", ["1", "-0.5"]),
        ("trainer.max_epochs", ["0", "-2"]),
        ("trainer.max_steps", ["0", "-3"]),
        ("trainer.threads", ["-1"]),
        ("trainer.patience", ["-1"]),
        ("trainer.check_val_every_n_epoch", ["0"]),
        ("trainer.log_every_n_steps", ["0"]),
        ("trainer.num_nodes", ["0"]),
        ("trainer.limit_train_batches", ["0", "0.0", "-1", "1.5"]),
        ("trainer.limit_val_batches", ["-1", "1.5", "-0.1"]),
        ("trainer.limit_test_batches", ["-1", "nan"]),
        ("checkpoint.every_n_steps", ["-1"]),
        ("checkpoint.every_minutes", ["-1", "nan"]),
        ("run.pictures", ["-1"]),
        ("run.name", ["a/b", "..", "/tmp", "a\\b"]),
    ],
)
def test_values_out_of_range_are_named(key, values):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            resolve(ForecastingConfig, [], {key: value})
        assert str(caught.value).startswith(f"{key}=")


def test_values_at_the_ends_of_their_range_are_taken():
    overrides = {
        "seed": "4294967295", "optim.betas": "0,0.5", "trainer.max_steps": "1", "trainer.max_epochs": "-1",
        "trainer.limit_train_batches": "1", "trainer.limit_val_batches": "0", "trainer.limit_test_batches": "0.5",
        "checkpoint.every_n_steps": "0", "run.pictures": "0", "run.name": "etth1-96..b",
    }  # fmt: skip
    config = resolve(ForecastingConfig, [], overrides)
    assert config.trainer.limit_train_batches == 1 and config.run.name == "etth1-96..b"
