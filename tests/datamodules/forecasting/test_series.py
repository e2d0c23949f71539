"""Series and their standardisation."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datamodules.forecasting.series import Series, Standardiser, output_count
from graftwork.errors import DataError, ShapeError


def series(*names: str) -> Series:
    values = np.arange(4.0 * len(names)).reshape(4, len(names))
    return Series(values, pd.date_range("2024-01-01", periods=4, freq="h"), names, "h")


def test_target_moves_last_with_its_values() -> None:
    moved = series("a", "b", "c").with_features("MS", "a")
    assert moved.names == ("b", "c", "a")
    assert moved.values[0].tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(("names", "expected"), [(("OT", "b"), "OT"), (("a", "b"), "b")])
def test_target_left_out(names: tuple[str, ...], expected: str) -> None:
    assert series(*names).with_features("S").names == (expected,)


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(DataError, match="'tmp'; did you mean temp"):
        series("temp", "load").with_features("MS", "tmp")


def test_sizes_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"expected \(3, 2\).*got \(4, 2\)"):
        Series(np.zeros((4, 2)), pd.date_range("2024", periods=3, freq="h"), ("a", "b"), "h")


def test_outputs_of_each_choice_of_features() -> None:
    assert [output_count(features, 7) for features in ("M", "MS", "S")] == [7, 1, 1]


def test_statistics_by_hand() -> None:
    fitted = Standardiser.fit(np.array([[1.0, 5.0], [3.0, 5.0]]), ("a", "b"))
    assert fitted.mean == (2.0, 5.0)
    assert fitted.scale == (1.0, 1.0)  # population deviation; constant column
    assert fitted.apply(np.array([[4.0, 6.0]])).tolist() == [[2.0, 1.0]]


def test_constant_column_with_rounding_is_not_blown_up() -> None:
    fitted = Standardiser.fit(np.full((1000, 1), 0.1) + np.tile([[0.0], [1e-17]], (500, 1)), ("a",))
    assert fitted.scale == (1.0,)


@given(arrays(np.float64, (12, 3), elements=st.floats(-1e6, 1e6)))
def test_invert_undoes_apply(values: np.ndarray) -> None:
    fitted = Standardiser.fit(values, ("a", "b", "c"))
    np.testing.assert_allclose(fitted.invert(fitted.apply(values)), values, rtol=1e-9, atol=1e-6)


def test_last_columns_are_inverted_for_single_outputs_and_quantiles() -> None:
    fitted = Standardiser(("a", "b"), (1.0, 10.0), (2.0, 3.0))
    assert fitted.invert(np.ones((4, 5, 1))).ravel()[0] == 13.0
    assert fitted.invert(np.ones((4, 5, 2, 9)), axis=-2)[0, 0, :, 0].tolist() == [3.0, 13.0]
    with pytest.raises(ShapeError, match="expected 1 to 2 columns"):
        fitted.invert(np.ones((4, 3)))


def test_statistics_survive_json() -> None:
    fitted = Standardiser.fit(np.random.default_rng(0).normal(size=(9, 2)), ("a", "b"))
    assert Standardiser.from_plain(json.loads(json.dumps(fitted.plain()))) == fitted


@pytest.mark.parametrize("size", [1e300, 1.7e308])
def test_columns_too_large_for_statistics_are_named(size: float) -> None:
    values = np.stack([np.arange(8.0), size * np.tile([1.0, -1.0, 0.5, 1.0], 2)], axis=1)
    with pytest.raises(DataError, match=r"column 'b' has no finite mean and deviation.* run from -1"):
        Standardiser.fit(values, ("a", "b"))
