"""The forecasting datamodule: windows of a series behind resumable loaders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.base import TaskDataModule
from datamodules.findings import Finding
from datamodules.forecasting.config import SeriesConfig
from datamodules.forecasting.info import ForecastingInfo
from datamodules.forecasting.source import SeriesSource, load
from datamodules.forecasting.windows import collate_windows
from graftwork.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.forecasting.windows import WindowDataset


logger = logging.getLogger(__name__)


class ForecastingData(TaskDataModule):
    """Windows of one series, split in order of time.

    Args:
        config: Which data, windows and loaders.
        seed: Seed of the order of the training windows.
    """

    def __init__(self, config: SeriesConfig, seed: int = 0) -> None:
        super().__init__(
            seed=seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            num_workers=config.num_workers,
        )
        self.config = config
        self._source: SeriesSource | None = None

    @property
    def source(self) -> SeriesSource:
        """The series and its splits, read on first use."""
        if self._source is None:
            self._source = load(self.config)
        return self._source

    def datasets(self) -> Mapping[str, WindowDataset]:
        """The windows of each split.

        Raises:
            DataError: The data is missing or unsuitable.
        """
        if self.source.season > self.config.look_back:
            logger.warning(
                "the seasonal-naive baseline repeats the last value: season=%d is longer than look_back=%d",
                self.source.season,
                self.config.look_back,
            )
        splits: Sequence[Any] = ("train", "val", "test")
        return {split: self.source.windows(split) for split in splits}

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Batch of samples as a dict of tensors."""
        return collate_windows(samples)

    @property
    def info(self) -> ForecastingInfo:
        """What models, metrics and predictors need to know."""
        source, scale = self.source, self.source.standardiser
        train = source.series.values[source.borders.train.slice]
        return ForecastingInfo(
            look_back=self.config.look_back,
            horizon=self.config.horizon,
            names=tuple(source.series.names),
            outputs=source.outputs,
            mark_features=source.mark_features,
            marks=self.config.marks,
            frequency=source.series.frequency,
            mean=scale.mean,
            scale=scale.scale,
            season=source.season,
            naive_error=naive_error(train[:, -source.outputs :], source.season),
            dataset=getattr(self.config, "variant", source.where),
            columns=source.series.columns,
        )

    @property
    def sample_spec(self) -> dict[str, str]:
        """Shape, dtype, unit and range of each key of a sample."""
        info = self.info
        marks = f"[{{}}, {info.mark_features}] float32, calendar features ({info.marks})"
        return {
            "history": f"[{info.look_back}, {info.variates}] float32, standardised by the training rows",
            "history_marks": marks.format(info.look_back),
            "future": f"[{info.horizon}, {info.outputs}] float32, standardised, the last columns of the history",
            "future_marks": marks.format(info.horizon),
            "window": "[] int64, first row of the window in its split",
        }

    def plot(self, sample: Mapping[str, Any]) -> Any:
        """The last columns of one window, in units, as a matplotlib figure."""
        from matplotlib.figure import Figure

        info = self.info
        figure = Figure(figsize=(8, 3), layout="constrained")
        axis = figure.subplots()
        mean, scale = np.array(info.output_mean), np.array(info.output_scale)
        history = np.asarray(sample["history"])[:, -info.outputs :] * scale + mean
        future = np.asarray(sample["future"]) * scale + mean
        for i, name in enumerate(info.output_names[-4:]):
            column = max(0, info.outputs - 4) + i
            (line,) = axis.plot(range(-len(history), 0), history[:, column], lw=1, label=name)
            axis.plot(range(len(future)), future[:, column], lw=1, ls=":", color=line.get_color())
        axis.set_xlabel("steps from now")
        axis.legend(fontsize=7, frameon=False)
        return figure

    def inspect(self) -> list[Finding]:
        """What ``doctor`` says about the data; a broken file becomes a finding, not an error."""
        from datamodules.forecasting.inspect import inspect_series

        try:
            return inspect_series(self.config)
        except DataError as error:
            return [Finding(level="error", what=str(error), mend=error.mend)]


def naive_error(values: NDArray[np.float64], season: int) -> tuple[float, ...]:
    """In-sample mean absolute error of repeating the last season, the scale of MASE.

    Args:
        values: [T, outputs] training rows, in units.
        season: Rows per season; 1 is used where there are no more rows than one season.

    Returns:
        One error per output; 0 for a constant column or a single row.

    Source: Hyndman and Koehler 2006, equation 3, with the seasonal difference.
    """
    lag = season if len(values) > season else 1
    if len(values) <= lag:
        return (0.0,) * values.shape[1]
    return tuple(np.abs(values[lag:] - values[:-lag]).mean(axis=0).tolist())
