"""The forecasting datamodule: facts about the data, and a baseline that is what it is called."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from datamodules.forecasting.config import GeneratedConfig
from datamodules.forecasting.datamodule import naive_error
from datamodules.forecasting.info import ForecastingInfo


def test_info_survives_a_checkpoint():
    info = GeneratedConfig().build(seed=0).info
    assert ForecastingInfo.from_plain(info.plain()) == info
    assert (info.variates, info.outputs, info.season) == (3, 3, 24)


def test_naive_error_by_hand():
    values = np.array([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0], [9.0, 5.0]])
    assert naive_error(values, 1) == pytest.approx((3.0, 0.0))
    assert naive_error(values, 2) == pytest.approx((6.0, 0.0))
    assert naive_error(values[:1], 1) == (0.0, 0.0)


def test_a_season_beyond_the_look_back_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        GeneratedConfig(look_back=12, season=24).build(seed=0).setup()
    assert "season=24 is longer than look_back=12" in caplog.text


def test_batches_follow_the_sample_spec():
    data = GeneratedConfig(batch_size=4).build(seed=0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == set(data.sample_spec)
    assert batch["history"].shape == (4, 48, 3)
    assert data.plot({key: value[0] for key, value in batch.items()}).axes
