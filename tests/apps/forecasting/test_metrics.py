"""Forecast metrics against numbers worked out by hand, and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.forecasting.losses import pinball_loss, point_loss
from apps.forecasting.metrics import ForecastMetrics, seasonal_naive
from apps.forecasting.models.forecast import Forecast
from datamodules.forecasting.info import ForecastingInfo
from graftwork.errors import ShapeError


def info(horizon: int, outputs: int, season: int = 1, **changes: object) -> ForecastingInfo:
    names = tuple(f"v{i}" for i in range(outputs))
    values = {
        "look_back": 4,
        "horizon": horizon,
        "names": names,
        "outputs": outputs,
        "mark_features": 0,
        "marks": "none",
        "frequency": "h",
        "mean": (0.0,) * outputs,
        "scale": (1.0,) * outputs,
        "season": season,
        "naive_error": (1.0,) * outputs,
    }
    return ForecastingInfo(**{**values, **changes})


def window(history: list[float], future: list[float]) -> dict[str, torch.Tensor]:
    return {"history": torch.tensor(history)[None, :, None], "future": torch.tensor(future)[None, :, None]}


def test_headline_numbers_by_hand():
    suite = ForecastMetrics(info(2, 1, mean=(10.0,), scale=(2.0,), naive_error=(4.0,)))
    suite.update(window([0, 0, 0, 1.0], [2.0, 0.0]), Forecast(torch.tensor([[[1.0], [3.0]]])))
    got = suite.compute()
    # errors 1 and 3, scaled; in units the truth is 14, 10 and the forecast 12, 16
    assert got["mse"] == pytest.approx(5.0)
    assert got["mae"] == pytest.approx(2.0)
    assert got["mase"] == pytest.approx(2.0 * 2.0 / 4.0)
    assert got["smape"] == pytest.approx((200 * 2 / 26 + 200 * 6 / 26) / 2)
    baseline = suite.baseline()  # repeats the last value 1: errors 1 and 1
    assert (baseline["mse"], baseline["mae"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert suite.count() == 1


def test_tables_are_in_units_per_variate_and_by_step():
    suite = ForecastMetrics(info(2, 1, scale=(2.0,)))
    suite.update(window([0, 0, 0, 0.0], [1.0, 3.0]), Forecast(torch.zeros(1, 2, 1)))
    row = suite.tables()["error by variate"][0]
    assert row["MAE"] == pytest.approx(4.0)
    assert row["RMSE"] == pytest.approx(2 * math.sqrt(5))
    assert row["MAE of seasonal naive"] == pytest.approx(4.0)
    steps = suite.tables()["error by step"]
    assert [row["step"] for row in steps] == [1, 2]
    assert [row["MSE, scaled"] for row in steps] == [pytest.approx(1.0), pytest.approx(9.0)]


def test_table_by_step_and_variate_is_in_units():
    suite = ForecastMetrics(info(2, 1, mean=(10.0,), scale=(2.0,), naive_error=(4.0,)))
    suite.update(window([0, 0, 0, 0.0], [1.0, 3.0]), Forecast(torch.zeros(1, 2, 1)))
    first, second = suite.tables()["error by step and variate"]
    assert (first["step"], first["variate"], second["step"]) == (1, "v0", 2)
    assert (first["MAE"], second["RMSE"]) == (pytest.approx(2.0), pytest.approx(6.0))
    assert second["MASE"] == pytest.approx(1.5)
    assert first["sMAPE %"] == pytest.approx(200 * 2 / 22)


def test_long_tables_are_thinned():
    suite = ForecastMetrics(info(300, 4))
    suite.update({"history": torch.zeros(1, 4, 4), "future": torch.ones(1, 300, 4)}, Forecast(torch.zeros(1, 300, 4)))
    rows = suite.tables()["error by step and variate"]
    assert len(rows) <= 700
    assert {row["step"] for row in rows} >= {1, 3}


def test_mase_leaves_out_constant_variates():
    suite = ForecastMetrics(info(1, 2, naive_error=(0.0, 2.0)))
    batch = {"history": torch.zeros(1, 4, 2), "future": torch.tensor([[[1.0, 1.0]]])}
    suite.update(batch, Forecast(torch.zeros(1, 1, 2)))
    assert suite.compute()["mase"] == pytest.approx(0.5)
    assert math.isnan(suite.tables()["error by variate"][0]["MASE"])


def test_coverage_and_pinball_by_hand():
    suite = ForecastMetrics(info(2, 1), levels=(0.1, 0.9))
    quantiles = torch.tensor([[[[-1.0, 1.0]], [[-1.0, 1.0]]]])
    suite.update(window([0.0] * 4, [0.0, 3.0]), Forecast(torch.zeros(1, 2, 1), quantiles))
    got = suite.compute()
    assert got["coverage_80"] == pytest.approx(0.5)
    # step 1: errors 1 and -1 -> 0.1 and 0.1; step 2: errors 4 and 2 -> 0.4 and 1.8
    assert got["pinball"] == pytest.approx((0.1 + 0.1 + 0.4 + 1.8) / 4)


@settings(max_examples=25, deadline=None)
@given(windows=st.integers(1, 12), batch=st.integers(1, 12), seed=st.integers(0, 99))
def test_scores_do_not_depend_on_the_batch_size(windows, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    history = torch.randn(windows, 5, 2, generator=generator)
    future = torch.randn(windows, 3, 2, generator=generator)
    values = torch.randn(windows, 3, 2, generator=generator)
    whole, parts = ForecastMetrics(info(3, 2, season=2)), ForecastMetrics(info(3, 2, season=2))
    whole.update({"history": history, "future": future}, Forecast(values))
    for start in range(0, windows, batch):
        rows = slice(start, start + batch)
        parts.update({"history": history[rows], "future": future[rows]}, Forecast(values[rows]))
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)
    assert parts.baseline() == pytest.approx(whole.baseline(), rel=1e-12)
    assert parts.count() == windows
    assert whole.compute()["mse"] == pytest.approx(float((values - future).double().square().mean()))


def test_reset_forgets():
    suite = ForecastMetrics(info(1, 1))
    suite.update(window([0.0] * 4, [5.0]), Forecast(torch.zeros(1, 1, 1)))
    suite.reset()
    suite.update(window([0.0] * 4, [1.0]), Forecast(torch.zeros(1, 1, 1)))
    assert (suite.compute()["mse"], suite.count()) == (pytest.approx(1.0), 1)


def test_seasonal_naive_repeats_the_last_season_of_the_outputs():
    history = torch.arange(10.0).reshape(1, 5, 2)
    assert seasonal_naive(history, 5, 2, 1)[0, :, 0].tolist() == [7.0, 9.0, 7.0, 9.0, 7.0]
    assert seasonal_naive(history, 3, 99, 2)[0].tolist() == [[8.0, 9.0]] * 3  # no season in the look-back


def test_losses_by_hand():
    target = torch.tensor([[[0.0], [2.0]]])
    assert float(point_loss(torch.zeros(1, 2, 1), target)) == pytest.approx(2.0)
    assert float(point_loss(torch.zeros(1, 2, 1), target, "mae")) == pytest.approx(1.0)
    assert float(point_loss(torch.zeros(1, 2, 1), target, "huber")) == pytest.approx(0.75)
    assert float(pinball_loss(torch.tensor([[[[1.0]], [[1.0]]]]), target, (0.9,))) == pytest.approx((0.1 + 0.9) / 2)


def test_median_pinball_is_half_the_absolute_error():
    torch.manual_seed(0)
    values, target = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    assert pinball_loss(values.unsqueeze(-1), target, (0.5,)) == pytest.approx(point_loss(values, target, "mae") / 2)


def test_losses_refuse_other_shapes():
    with pytest.raises(ShapeError, match=r"\(1, 2, 1\).*\(1, 1, 1\)"):
        point_loss(torch.zeros(1, 2, 1), torch.zeros(1, 1, 1))
    with pytest.raises(ShapeError, match="levels"):
        pinball_loss(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1), (0.5,))


@pytest.mark.parametrize("unit", [1.0, 1e-15, 1e-200])
def test_smape_does_not_depend_on_the_unit(unit):
    suite = ForecastMetrics(info(1, 1, scale=(unit,)))
    suite.update(window([0.0] * 4, [1.0]), Forecast(torch.full((1, 1, 1), 3.0)))
    assert suite.compute()["smape"] == pytest.approx(200 * 2 / 4)
    suite.reset()
    suite.update(window([0.0] * 4, [0.0]), Forecast(torch.zeros(1, 1, 1)))
    assert suite.compute()["smape"] == 0


def test_one_quantile_has_no_coverage():
    suite = ForecastMetrics(info(1, 1), levels=(0.5,))
    suite.update(window([0.0] * 4, [3.0]), Forecast(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1)))
    got = suite.compute()
    assert got["pinball"] == pytest.approx(1.5)
    assert not [name for name in got if name.startswith("coverage")]
