"""Cells without a number: how many, where, and the policies for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from graftwork.errors import DataError

logger = logging.getLogger(__name__)

_MEND = (
    "Fill them in, or set --data.on_missing to forward_fill, interpolate or drop_columns, or choose other columns with "
    "--data.columns"
)


def fill_missing(table: pd.DataFrame, policy: str, target: str, where: str) -> pd.DataFrame:
    """Apply the policy for missing cells.

    Args:
        table: Numeric columns over sorted timestamps.
        policy: ``"error"``; ``"forward_fill"`` repeats the last known value; ``"interpolate"`` draws a line between
            neighbours, so that a value next to a split border knows the other side; ``"drop_columns"``. At the start of
            the series, where no value is known yet, both fills take the first known one.
        target: Column that cannot be dropped.
        where: File, for messages.

    Returns:
        The table without missing cells.

    Raises:
        DataError: Missing cells under ``"error"``, an empty column, or a target that would be dropped.
    """
    missing = np.isnan(table.to_numpy(dtype=np.float64))
    if not missing.any():
        return table
    empty = [str(name) for name, count in zip(table.columns, missing.sum(axis=0), strict=True) if count == len(table)]
    cells = describe_cells(missing, pd.DatetimeIndex(table.index), list(table.columns))
    if policy == "error":
        raise DataError(f"empty cells: {int(missing.sum())}, in {cells}", where, _MEND)
    logger.warning("%s: on_missing=%s applied to empty cells: %d, in %s", where, policy, int(missing.sum()), cells)
    if policy == "drop_columns":
        return _drop(table, missing.sum(axis=0) > 0, target, where)
    if empty:
        raise DataError(f"no number in column {_quoted(empty)}", where, "Choose other columns with --data.columns")
    filled = table.ffill() if policy == "forward_fill" else table.interpolate(method="linear")
    return filled.bfill()


def _drop(table: pd.DataFrame, incomplete: NDArray[np.bool_], target: str, where: str) -> pd.DataFrame:
    dropped = [str(name) for name, drop in zip(table.columns, incomplete, strict=True) if drop]
    if target in dropped:
        raise DataError(
            f"on_missing=drop_columns would drop the target column '{target}'",
            where,
            "Set --data.on_missing forward_fill or interpolate, or choose another --data.target",
        )
    return table.loc[:, ~incomplete]


def describe_cells(mask: NDArray[np.bool_], index: pd.DatetimeIndex, names: Sequence[str], most: int = 3) -> str:
    """Columns with the count and first timestamp of the cells at fault, most affected column first.

    Args:
        mask: [T, N] True where a cell is at fault.
        index: [T] timestamps.
        names: [N] column names.
        most: Columns to name.
    """
    counts = mask.sum(axis=0)
    affected = [int(place) for place in np.argsort(-counts, kind="stable") if counts[place]]
    parts = [f"'{names[i]}' {int(counts[i])} (first {index[int(np.argmax(mask[:, i]))]})" for i in affected[:most]]
    return ", ".join(parts) + (f" and {len(affected) - most} more columns" if len(affected) > most else "")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
