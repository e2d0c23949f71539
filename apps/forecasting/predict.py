"""Forecasts of new data: arrays, data frames and CSV files, in the data's own units, with continued timestamps."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from apps.core.run.atomic import replace_file
from apps.forecasting.models.forecast import Forecast
from apps.forecasting.visualise import draw_forecast
from datamodules.forecasting.calendar import calendar_marks, frequency_offset, future_marks
from datamodules.forecasting.config import CsvConfig
from datamodules.forecasting.csv import FIRST_LINE, find_file, read_frame
from datamodules.forecasting.frame import complete, frame_to_read, series_from_array, to_table
from datamodules.forecasting.grid import fits_grid
from datamodules.forecasting.series import Series
from graftwork.errors import DataError, UserError
from graftwork.names import nearest

if TYPE_CHECKING:
    import pandas as pd

    from apps.forecasting.module import ForecastingModule


@dataclass(frozen=True, eq=False)
class SeriesForecast:
    """A forecast in units.

    Args:
        names: Forecast columns.
        times: [S] timestamps; those of a made-up calendar where an array came without any.
        values: [S, outputs].
        quantiles: Level to [S, outputs]; empty for point models.
        history: The rows that the model saw.
    """

    names: tuple[str, ...]
    times: pd.DatetimeIndex
    values: NDArray[np.float64]
    quantiles: dict[float, NDArray[np.float64]]
    history: Series

    def frame(self) -> pd.DataFrame:
        """One row per step, one column per variate, and ``<name>_q<level>`` for quantiles."""
        import pandas as pd

        frame = pd.DataFrame(self.values, index=self.times, columns=list(self.names)).rename_axis("date")
        for level, values in self.quantiles.items():
            for i, name in enumerate(self.names):
                frame[f"{name}_q{level:g}"] = values[:, i]
        return frame

    def figure(self) -> Any:
        """History, forecast and quantile band as a matplotlib figure."""
        shown = self.history.values[-3 * len(self.times) :]
        times = [*self.history.index[-len(shown) :], *self.times]
        levels = sorted(self.quantiles)
        band = (self.quantiles[levels[0]], self.quantiles[levels[-1]]) if len(levels) > 1 else None
        return draw_forecast(shown, self.values, self.names, band=band, times=times)


class SeriesPredictor:
    """Trained weights, ready for new data.

    Args:
        module: A trained ``ForecastingModule``.
    """

    def __init__(self, module: ForecastingModule) -> None:
        self.module = module.eval()
        self.info = module.series

    def __call__(
        self, data: ArrayLike | pd.DataFrame, *, start: str | None = None, frequency: str | None = None
    ) -> SeriesForecast:
        """Forecast the steps after ``data``.

        Args:
            data: A data frame with a date column or a DatetimeIndex, or an array [T, variates] in units; [T] will do
                for one variate. An array has the columns in the order of the training file (of ``data.columns`` where
                that is set): ``info.array_columns``. The last ``look_back`` rows are used.
            start: Timestamp of an array's first row; without it the calendar features are those of 2000-01-01 on.
            frequency: Step of an array's rows; the training data's if omitted.

        Raises:
            DataError: Columns are missing, rows are too few or of another step than the training data's, or values are
                not finite.
            ShapeError: An array of other columns than those of training.
        """
        import pandas as pd

        if isinstance(data, pd.DataFrame):
            return self.forecast(self._series(data, "data frame"), "data frame")
        series = series_from_array(data, frequency or self.info.frequency, start, self.info.array_columns, "data")
        return self.forecast(series, "data")

    def predict_file(self, source: str | Path, output: str | Path | None = None) -> list[Path]:
        """Forecast the steps after a CSV file.

        Args:
            source: CSV file with the columns of training.
            output: CSV file to write, or a folder for ``<source>_forecast.csv``; beside the source if omitted. A
                picture with the same stem is written next to it.

        Returns:
            The files written.

        Raises:
            DataError: The file is missing or unsuitable.
            UserError: The output would overwrite the source or be overwritten by the picture, or cannot be written.
        """
        path = find_file(str(source))
        try:
            target, picture = _targets(path, output)
        except OSError as error:
            raise _unwritable(error, f"--output {output}") from error
        forecast = self.forecast(self._series(read_frame(path, self._reading()), str(path), FIRST_LINE), str(path))
        drawn = io.BytesIO()
        forecast.figure().savefig(drawn, dpi=120, format="png")
        replace_file(target, forecast.frame().to_csv(float_format="%.10g"), "--output")
        replace_file(picture, drawn.getvalue(), "--output")
        return [target, picture]

    def forecast(self, series: Series, where: str = "data") -> SeriesForecast:
        """Forecast the steps after a checked series."""
        series = self._columns(series, where)
        self._check_step(series, where)
        if len(series) < self.info.look_back:
            raise DataError(
                f"{len(series)} rows, but the model looks back over {self.info.look_back}", where, "Give more history"
            )
        prediction, times = self._run(series, where)
        quantiles = {} if prediction.quantiles is None else self._quantiles(prediction.quantiles)
        values = self._units(prediction.values)
        if not all(np.isfinite(numbers).all() for numbers in (values, *quantiles.values())):
            raise self._not_finite(series, where)
        return SeriesForecast(self.info.output_names, times, values, quantiles, self._outputs(series))

    def _reading(self) -> CsvConfig:
        """How to read new data: as the training data was read, but only the columns that the model knows."""
        data, names = self.module.config.data, tuple(self.info.names)
        if not isinstance(data, CsvConfig):
            return CsvConfig(features=data.features, target=names[-1], columns=names, marks=data.marks)
        policy = "error" if data.on_missing == "drop_columns" else data.on_missing  # no column can be spared
        return replace(data, target=names[-1], columns=names, on_missing=policy)

    def _series(self, frame: pd.DataFrame, where: str, first_line: int | None = None) -> Series:
        rules = self._reading()
        frame = frame_to_read(frame, rules.date_column)
        self._check_names([name for name in frame.columns if name != rules.date_column], where)
        table = to_table(frame, rules, where, first_line)
        if rules.frequency is None or rules.on_irregular == "error":
            step = self.info.frequency if fits_grid(table.index, self.info.frequency) else None
            rules = replace(rules, frequency=step)  # None infers the step of these rows, to name it if it is another
        return complete(table, rules, where)

    def _columns(self, series: Series, where: str) -> Series:
        self._check_names(series.names, where)
        return series.select(self.info.names)

    def _check_names(self, found: Sequence[str], where: str) -> None:
        missing = [name for name in self.info.names if name not in found]
        if not missing:
            return
        spare = [name for name in found if name not in self.info.names]
        close = nearest(missing[0], spare)
        others = f"Columns that are not of the training data: {', '.join(spare)}" if spare else "Add it"
        hint = f"Did you mean {close[0]}?" if close else others
        raise DataError(f"column '{missing[0]}' of the training data is missing", where, hint)

    def _check_step(self, series: Series, where: str) -> None:
        trained, found = self.info.frequency, series.frequency
        if frequency_offset(found) != frequency_offset(trained):
            raise DataError(
                f"the step of the rows is {found}, that of the training data is {trained}",
                where,
                f"Give rows of step {trained}, or train a model on step {found}",
            )

    def _scaled(self, series: Series) -> NDArray[np.float64]:
        """Standardised last rows, [L, N]; infinite where a value is beyond float64."""
        with np.errstate(over="ignore"):
            return (series.values[-self.info.look_back :] - np.array(self.info.mean)) / np.array(self.info.scale)

    def _not_finite(self, series: Series, where: str) -> DataError:
        """The error for rows that the model cannot compute with; names the value furthest from its training mean."""
        scaled = np.abs(self._scaled(series))
        row, column = divmod(int(np.argmax(scaled)), scaled.shape[1])
        when, value = series.index[-self.info.look_back :][row], series.values[-self.info.look_back :][row, column]
        what = (
            f"the forecast is not finite; furthest from its training data is column '{series.names[column]}' with "
            f"{value:.6g} at {when}, its training mean is {self.info.mean[column]:.6g}"
        )
        return DataError(what, where, "Check the units of the column, or mend the value")

    def _run(self, series: Series, where: str) -> tuple[Forecast, pd.DatetimeIndex]:
        info = self.info
        rows = slice(len(series) - info.look_back, len(series))
        scaled = self._scaled(series)
        if np.abs(scaled).max() > np.finfo(np.float32).max:
            raise self._not_finite(series, where)
        past = calendar_marks(series.index[rows], info.frequency, info.marks)
        times, ahead = future_marks(series.index[-1], info.frequency, info.horizon, info.marks)
        batch = {"history": scaled, "history_marks": past, "future_marks": ahead}
        with torch.inference_mode():
            return self.module.forecast({key: self._tensor(value) for key, value in batch.items()}), times

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).float()[None].to(self.module.device)

    def _units(self, values: Tensor) -> NDArray[np.float64]:
        """Scaled [1, S, outputs] to units, [S, outputs]."""
        scale, mean = np.array(self.info.output_scale), np.array(self.info.output_mean)
        return np.asarray(values[0].double().cpu().numpy() * scale + mean)

    def _quantiles(self, quantiles: Tensor) -> dict[float, NDArray[np.float64]]:
        return {level: self._units(quantiles[..., i]) for i, level in enumerate(self.module.levels)}

    def _outputs(self, series: Series) -> Series:
        return series.select(self.info.output_names)


def _targets(source: Path, output: str | Path | None) -> tuple[Path, Path]:
    """The CSV file and the picture to write, neither of them the source or the other."""
    name = f"{source.stem.removesuffix('.csv')}_forecast.csv"  # of data.csv.gz too
    target = Path(output).expanduser() if output else source.with_name(name)
    if output and (str(output).endswith(("/", os.sep)) or target.is_dir()):
        target = target / name
    if target.suffix.lower() == ".png":
        what = "a forecast is a CSV file, which its picture of the same name would overwrite"
        raise UserError(
            what, f"--output {output}", f"Write {target.with_suffix('.csv')}; the picture is written beside it"
        )
    picture = target.with_suffix(".png")
    for path in (target, picture):
        if path.exists() and path.samefile(source):
            raise UserError(f"would overwrite the input {source}", f"--output {output}", "Choose another name")
        if path.is_dir():
            raise UserError("a folder is in the way", str(path), "Choose another name with --output")
    blocked = next((parent for parent in target.parents if parent.exists()), None)
    if blocked is not None and not blocked.is_dir():
        raise UserError(f"cannot be written: {blocked} is no folder", f"--output {output}", "Choose another folder")
    return target, picture


def _unwritable(error: OSError, where: str) -> UserError:
    return UserError(f"cannot be written: {error.strerror}", where, "Choose another place with --output")
