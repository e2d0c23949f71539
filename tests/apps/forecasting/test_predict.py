"""Forecasts of new data: what is read, what is written, and what is refused. The models are untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from apps.forecasting.config import ForecastingConfig
from apps.forecasting.models.config import LastValueConfig
from apps.forecasting.models.forecast import Forecast
from apps.forecasting.module import ForecastingModule
from apps.forecasting.predict import SeriesPredictor
from datamodules.forecasting.config import CsvConfig
from datamodules.forecasting.info import ForecastingInfo
from graftwork.errors import DataError, ShapeError, UserError

NAMES = ("b", "c", "a")  # of the file: a, b, c


def predictor(names: tuple[str, ...] = NAMES, **changes: object) -> SeriesPredictor:
    """A last-value forecaster of hourly data: 8 rows back, 4 ahead."""
    count = len(names)
    values = {
        "look_back": 8,
        "horizon": 4,
        "names": names,
        "outputs": count,
        "mark_features": 0,
        "marks": "none",
        "frequency": "h",
        "mean": tuple(10.0 * place for place in range(count)),
        "scale": (2.0,) * count,
        "season": 24,
        "naive_error": (1.0,) * count,
        "columns": tuple(sorted(names)),
    }
    data = CsvConfig(marks="none", look_back=8, horizon=4, **changes.pop("data", {}))  # type: ignore[arg-type]
    config = ForecastingConfig(data=data, model=LastValueConfig())
    return SeriesPredictor(ForecastingModule(config, ForecastingInfo(**{**values, **changes})))  # type: ignore[arg-type]


def frame(rows: int = 12, frequency: str = "h", **columns: object) -> pd.DataFrame:
    """Columns a = 0, b = 10, c = 20 in the first row, growing by one."""
    steps = np.arange(float(rows))
    index = pd.date_range("2024-01-01", periods=rows, freq=frequency)
    return pd.DataFrame({"date": index, "a": steps, "b": 10 + steps, "c": 20 + steps, **columns})


def write(folder: Path, table: pd.DataFrame, name: str = "new.csv") -> Path:
    """A frame as a CSV file."""
    table.to_csv(folder / name, index=False)
    return folder / name


def test_arrays_have_the_order_of_the_file() -> None:
    ours = predictor()
    by_frame = ours(frame()).frame()
    by_array = ours(frame()[["a", "b", "c"]].to_numpy(), start="2024-01-01").frame()
    pd.testing.assert_frame_equal(by_frame, by_array)
    assert by_array["a"].tolist() == pytest.approx([11.0] * 4)
    assert predictor(columns=())(np.array([[1.0, 2.0, 3.0]] * 8)).frame()["a"].iloc[0] == pytest.approx(3.0)


@pytest.mark.parametrize("data", [{}, {"frequency": "h"}, {"frequency": "60min"}])
def test_another_step_is_refused(data: dict[str, str], tmp_path: Path) -> None:
    ours = predictor(data=data)
    for frequency, found in (("D", "D"), ("15min", "15min"), ("2h", "2h"), ("YS", "YS")):
        message = f"step of the rows is {found}.*that of the training data is h"
        with pytest.raises(DataError, match=message):
            ours(frame(frequency=frequency))
        with pytest.raises(DataError, match=message):
            ours.predict_file(write(tmp_path, frame(frequency=frequency)))
    with pytest.raises(DataError, match=r"step of the rows is D.*is h"):
        ours(np.zeros((9, 3)), frequency="D")


@pytest.mark.parametrize(("trained", "given"), [("h", "60min"), ("QS-OCT", "QS-JAN"), ("B", "B"), ("W-SUN", "W")])
def test_a_step_by_another_name_is_the_same(trained: str, given: str) -> None:
    assert len(predictor(frequency=trained)(frame(frequency=given)).times) == 4


def test_weekdays_alone_are_business_days_to_a_model_of_them() -> None:
    ours = predictor(frequency="B", look_back=5)
    assert str(ours(frame(5, "D")).times[0].date()) == "2024-01-08"  # Monday after Friday the 5th


def test_other_columns_do_not_matter(tmp_path: Path) -> None:
    plain = predictor()(frame())
    noted = frame(note="text", gaps=[None] * 12)
    np.testing.assert_array_equal(predictor()(noted).values, plain.values)
    predictor().predict_file(write(tmp_path, noted), tmp_path / "out.csv")
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")[list(NAMES)], plain.values)


def test_a_missing_column_is_compared_with_the_spare_ones() -> None:
    ours = predictor(("c0", "c1", "c2"))
    renamed = frame().set_axis(["date", "c0", "C 1", "c2"], axis=1)
    with pytest.raises(DataError, match=r"column 'c1' .* is missing. Did you mean C 1\?"):
        ours(renamed)
    with pytest.raises(DataError, match=r"column 'c1' .* is missing. Add it"):
        ours(renamed.drop(columns="C 1"))


SHAPES = [((3, 400), r"\[3, 400\]"), ((20,), r"\[20\]"), ((2, 8, 3), r"\[2, 8, 3\]")]


@pytest.mark.parametrize(("shape", "shown"), SHAPES)
def test_arrays_of_another_shape(shape: tuple[int, ...], shown: str) -> None:
    with pytest.raises(ShapeError, match=rf"array {shown}; expected \[T, 3\] with columns a, b, c"):
        predictor()(np.zeros(shape))
    assert predictor(("a",))(np.zeros(20)).values.shape == (4, 1)


HARMFUL = ["new.csv", "sub/../new.csv", "link.csv", "x.png", "x.PNG", "file/x.csv", "file/a/b.csv"]


@pytest.mark.parametrize("output", HARMFUL)
def test_outputs_that_would_harm_are_refused(output: str, tmp_path: Path) -> None:
    source = write(tmp_path, frame())
    before = source.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.csv").symlink_to(source)
    with pytest.raises(UserError, match="--output"):
        predictor().predict_file(source, f"{tmp_path}/{output}")
    assert source.read_bytes() == before
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_picture_never_overwrites_the_input(tmp_path: Path) -> None:
    source = write(tmp_path, frame(), "new.png")
    with pytest.raises(UserError, match="would overwrite the input"):
        predictor().predict_file(source, tmp_path / "new.csv")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("here", "here/new_forecast.csv"),
        ("new/", "new/new_forecast.csv"),
        ("a/b.csv", "a/b.csv"),
        (None, "new_forecast.csv"),
    ],
)
def test_outputs_may_be_folders(output: str | None, expected: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    written = predictor().predict_file(write(tmp_path, frame()), output and f"{tmp_path}/{output}")
    assert written == [tmp_path / expected, (tmp_path / expected).with_suffix(".png")]
    assert all(path.stat().st_size for path in written)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        predictor().predict_file(write(tmp_path, frame()), tmp_path / f"{'x' * 300}.csv")


@pytest.mark.parametrize("value", [1e39, 1e300, -1.7e308])
def test_values_beyond_the_model_are_named(value: float) -> None:
    far = frame()
    far.loc[9, "b"] = value
    with pytest.raises(DataError, match="not finite") as caught:
        predictor()(far)
    assert f"column 'b' with {value:.6g} at 2024-01-01 09:00:00, its training mean is 0" in str(caught.value)


def test_a_forecast_that_is_not_finite_is_refused() -> None:
    ours = predictor()
    ours.module.forecast = lambda batch: Forecast(batch["history"][:, :4] * torch.inf)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"data frame: the forecast is not finite.*column 'b' with 21"):
        ours(frame())


@pytest.mark.parametrize("data", ["new.csv", {"a": [1.0]}, np.zeros((9, 3), complex), [[1, 2], [3]], None, ["x", "y"]])
def test_what_is_no_array_is_refused(data: object) -> None:
    with pytest.raises(DataError, match=r"^data: .* is no array of (real )?numbers"):
        predictor()(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["garbage", "", 5, 1.5, ["2024-01-01"], pd.NaT, "NaT"])
def test_a_start_that_is_no_timestamp_is_refused(start: object) -> None:
    with pytest.raises(DataError, match=r"start=.* is no timestamp"):
        predictor()(np.zeros((9, 3)), start=start)  # type: ignore[arg-type]
