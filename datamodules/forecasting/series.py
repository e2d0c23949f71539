"""A multivariate series on a regular time grid, and its standardisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.forecasting.config import Features
from graftwork.errors import DataError, ShapeError
from graftwork.names import unknown_text

# T rows in time, N variates (columns); the target is always the last column


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers on a regular time grid.

    Args:
        values: [T, N], in the units of the data, no missing values.
        index: [T] timestamps, increasing by ``frequency``; with a zone where the data names one.
        names: [N] column names; the target is the last.
        frequency: pandas alias of the step, such as ``"h"``.
        columns: [N] the same names as the file orders them, before the target moved last; empty for that of ``names``.
    """

    values: NDArray[np.float64]
    index: pd.DatetimeIndex
    names: tuple[str, ...]
    frequency: str
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = (len(self.index), len(self.names))
        if self.values.shape != expected:
            raise ShapeError(f"values: expected {expected} (timestamps, names), got {self.values.shape}")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def target(self) -> str:
        """Name of the last column, which S and MS forecast."""
        return self.names[-1]

    def select(self, names: Iterable[str]) -> Series:
        """The same rows with these columns in this order.

        Raises:
            DataError: A name is not a column; the message has the nearest.
        """
        chosen = tuple(names)
        for name in chosen:
            if name not in self.names:
                raise DataError(unknown_text("column", name, self.names))
        places = [self.names.index(name) for name in chosen]
        order = tuple(name for name in self.columns or self.names if name in chosen)
        return Series(np.ascontiguousarray(self.values[:, places]), self.index, chosen, self.frequency, order)

    def with_features(self, features: Features, target: str | None = None) -> Series:
        """The columns that a choice of features reads, target last.

        Args:
            features: ``"S"`` keeps the target alone; ``"M"`` and ``"MS"`` keep all columns.
            target: Column to move last; ``"OT"`` if there is one and this is None, else the last.

        Raises:
            DataError: The target is not a column.
        """
        chosen = target_name(self.names, target)
        others = [] if features == "S" else [name for name in self.names if name != chosen]
        return self.select([*others, chosen])


_TOO_LARGE = "Mend these values, give the column a larger unit, or choose other columns with --data.columns"


def target_name(names: Sequence[str], target: str | None = None) -> str:
    """The column to forecast: the one asked for, else ``"OT"`` if there is one, else the last."""
    return target or ("OT" if "OT" in names else names[-1])


def output_count(features: Features, variates: int) -> int:
    """How many trailing columns are forecast: all for ``"M"``, one for ``"S"`` and ``"MS"``."""
    return variates if features == "M" else 1


@dataclass(frozen=True)
class Standardiser:
    """Per-column shift and scale: ``(value - mean) / scale``.

    Args:
        names: [N] column names.
        mean: [N] means of the training rows.
        scale: [N] population standard deviations of the training rows; 1 for a constant column.

    Source: the benchmarks' data protocol (mean and ddof 0 deviation of the training rows alone, in float64).
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, values: NDArray[np.float64], names: tuple[str, ...]) -> Standardiser:
        """Statistics of the training rows.

        Args:
            values: [T, N] training rows.
            names: [N] column names.

        Raises:
            DataError: A column has no finite mean and deviation: its numbers are too large for their squares.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = values.mean(axis=0), values.std(axis=0)
            scale = np.where(constant_columns(values), 1.0, deviation)
        for name, good, column in zip(names, np.isfinite(mean) & np.isfinite(scale), values.T, strict=True):
            if not good:
                what = f"column '{name}' has no finite mean and deviation over the training rows: its values run from "
                raise DataError(f"{what}{column.min():.6g} to {column.max():.6g}", mend=_TOO_LARGE)
        return cls(names, tuple(mean.tolist()), tuple(scale.tolist()))

    @classmethod
    def identity(cls, names: tuple[str, ...]) -> Standardiser:
        """Leaves values as they are."""
        return cls(names, (0.0,) * len(names), (1.0,) * len(names))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Standardiser:
        """The inverse of :meth:`plain`."""
        return cls(
            tuple(str(name) for name in plain["names"]),
            tuple(float(value) for value in plain["mean"]),
            tuple(float(value) for value in plain["scale"]),
        )

    def plain(self) -> dict[str, list[Any]]:
        """Lists of plain numbers and names, as a checkpoint keeps them."""
        return {"names": list(self.names), "mean": list(self.mean), "scale": list(self.scale)}

    def apply(self, values: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
        """Standardise.

        Args:
            values: Any shape with n columns along ``axis``; n < N means the last n columns.
            axis: Axis of the columns.

        Raises:
            ShapeError: More columns than were fitted.
        """
        mean, scale = self._aligned(values, axis)
        return (np.asarray(values, dtype=np.float64) - mean) / scale

    def invert(self, values: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
        """Back to the units of the data.

        Args:
            values: Any shape with n columns along ``axis``; n < N means the last n columns, as S and MS forecast them.
            axis: Axis of the columns: -1 for values [..., S, n], -2 for quantiles [..., S, n, Q].

        Raises:
            ShapeError: More columns than were fitted.
        """
        mean, scale = self._aligned(values, axis)
        return np.asarray(values, dtype=np.float64) * scale + mean

    def _aligned(self, values: NDArray[Any], axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        columns = np.shape(values)[axis]
        if not 1 <= columns <= len(self.names):
            raise ShapeError(
                f"values: expected 1 to {len(self.names)} columns ({', '.join(self.names)}), got {columns}"
            )
        shape = [1] * np.ndim(values)
        shape[axis] = columns
        mean, scale = np.array(self.mean[-columns:]), np.array(self.scale[-columns:])
        return mean.reshape(shape), scale.reshape(shape)


def constant_columns(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which columns of [T, N] have one value throughout, up to the rounding of float64."""
    with np.errstate(over="ignore", invalid="ignore"):  # a deviation beyond float64 is not that of a constant
        rounding = 4 * np.finfo(np.float64).eps * np.abs(values.mean(axis=0))
        deviation = np.nan_to_num(values.std(axis=0), nan=np.inf)
        return (np.ptp(values, axis=0) == 0) | ((deviation <= rounding) & np.isfinite(deviation))
