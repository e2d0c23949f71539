"""A dataset ready for training: its series, its splits and the statistics of its training rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.forecasting.borders import SplitBorders, SplitName, require_windows
from datamodules.forecasting.calendar import calendar_marks, default_season, mark_count
from datamodules.forecasting.config import SeriesConfig
from datamodules.forecasting.missing import describe_cells
from datamodules.forecasting.series import Series, Standardiser, constant_columns, output_count
from graftwork.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.forecasting.windows import WindowDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SeriesSource:
    """Arrays of a dataset, and the windows that loaders serve.

    Args:
        config: Look-back, horizon, features, marks and scaling.
        series: All rows; the columns that ``config.features`` reads, target last.
        borders: Rows of each split.
        where: File or name of the data, for messages and reports.
        needed_rows: Fewest rows that would give every split a window, where known.

    Raises:
        DataError: A split has no window.
    """

    config: SeriesConfig
    series: Series
    borders: SplitBorders
    where: str
    needed_rows: int = 0

    def __post_init__(self) -> None:
        config = self.config
        require_windows(self.borders, len(self.series), config.look_back, config.horizon, self.where, self.needed_rows)

    @property
    def variates(self) -> int:
        """Columns the model sees."""
        return len(self.series.names)

    @property
    def outputs(self) -> int:
        """Columns the model forecasts, the last ones."""
        return output_count(self.config.features, self.variates)

    @property
    def mark_features(self) -> int:
        """Calendar features of a row."""
        return mark_count(self.series.frequency, self.config.marks)

    @property
    def season(self) -> int:
        """Rows per season of the seasonal-naive baseline."""
        return self.config.season or default_season(self.series.frequency)

    @cached_property
    def standardiser(self) -> Standardiser:
        """Mean and deviation of the training rows; the identity where scaling is off."""
        if not self.config.scale:
            return Standardiser.identity(self.series.names)
        training = self.series.values[self.borders.train.slice]
        for name, constant in zip(self.series.names, constant_columns(training), strict=True):
            if constant:
                logger.warning("%s: column '%s' is constant over the training rows; its scale is 1", self.where, name)
        try:
            return Standardiser.fit(training, self.series.names)
        except DataError as error:
            raise DataError(error.what, self.where, error.mend) from error

    @cached_property
    def scaled(self) -> NDArray[np.float64]:
        """Standardised values of all rows, [T, N].

        Raises:
            DataError: A value is beyond what models compute with (float32).
        """
        values = self.standardiser.apply(self.series.values)
        beyond = np.abs(values) > np.finfo(np.float32).max
        if beyond.any():
            cells = describe_cells(beyond, self.series.index, self.series.names)
            raise DataError(f"standardised values beyond the range of float32: {cells}", self.where, "Mend these cells")
        return values

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Standardised values [T, N] and marks [T, M] of all rows, float32, shared by all splits."""
        import torch

        values = self.scaled
        marks = calendar_marks(self.series.index, self.series.frequency, self.config.marks)
        return torch.from_numpy(values).float(), torch.from_numpy(marks).float()

    def window_count(self, split: SplitName) -> int:
        """Windows of a split."""
        return self.borders.windows(split, self.config.look_back, self.config.horizon)

    def windows(self, split: SplitName) -> WindowDataset:
        """The windows of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
        """
        from datamodules.forecasting.windows import WindowDataset

        values, marks = self.tensors
        rows = self.borders.rows(split, self.config.look_back).slice
        return WindowDataset(values[rows], marks[rows], self.config.look_back, self.config.horizon, self.outputs)

    def plain(self) -> dict[str, Any]:
        """What a checkpoint must keep to forecast new data: plain types only."""
        return {
            "names": list(self.series.names),
            "frequency": self.series.frequency,
            "season": self.season,
            "features": self.config.features,
            "marks": self.config.marks,
            "look_back": self.config.look_back,
            "horizon": self.config.horizon,
            "standardiser": self.standardiser.plain(),
        }


def load(config: SeriesConfig) -> SeriesSource:
    """Check a configuration and read its data.

    Raises:
        ConfigError: Values out of range; all of them are listed.
        DataError: Missing or unsuitable data.
    """
    config.check()
    return config.load()
