"""Windows of a series: what the model sees and what it has to forecast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from graftwork.errors import ShapeError

# B windows, T rows of the split, L look-back, S horizon, N variates, O outputs, M calendar features
Sample = dict[str, Tensor]
Index = int | tuple[int, int]


class WindowDataset(Dataset[Sample]):
    """All windows of a split at stride 1; window i begins at row i.

    Samples are views of one tensor, so that a split costs the memory of its rows. A sample is a dict of ``history``
    [L, N], ``history_marks`` [L, M], ``future`` [S, O], ``future_marks`` [S, M] (all float32) and ``window`` [] int64,
    the index.

    Args:
        values: [T, N] standardised rows of the split, look-back included.
        marks: [T, M] calendar features; M may be 0.
        look_back: L.
        horizon: S.
        outputs: O, the trailing columns to forecast; all if omitted.

    Raises:
        ShapeError: Marks for another number of rows, more outputs than columns, or fewer rows than one window.
    """

    def __init__(self, values: Tensor, marks: Tensor, look_back: int, horizon: int, outputs: int | None = None) -> None:
        rows, columns = values.shape
        self.outputs = columns if outputs is None else outputs
        if len(marks) != rows:
            raise ShapeError(f"marks: expected {rows} rows as in values, got {len(marks)}")
        if not 1 <= self.outputs <= columns:
            raise ShapeError(f"outputs: expected 1 to {columns} (the columns of values), got {self.outputs}")
        if rows < look_back + horizon:
            raise ShapeError(f"values: expected at least {look_back + horizon} rows (look_back + horizon), got {rows}")
        self.values, self.marks = values.float().contiguous(), marks.float().contiguous()
        self.look_back, self.horizon = look_back, horizon

    def __len__(self) -> int:
        return len(self.values) - self.look_back - self.horizon + 1

    def __getitem__(self, index: Index) -> Sample:
        """One window; of a pair ``(epoch, index)`` the epoch is ignored, since windows are not augmented."""
        window = _window_of(index)
        if not -len(self) <= window < len(self):
            raise IndexError(f"window {window} of {len(self)}")
        border = window % len(self) + self.look_back
        history, future = slice(border - self.look_back, border), slice(border, border + self.horizon)
        return {
            "history": self.values[history],
            "history_marks": self.marks[history],
            "future": self.values[future, -self.outputs :],
            "future_marks": self.marks[future],
            "window": torch.tensor(border - self.look_back),
        }

    def __getitems__(self, indices: Sequence[Index]) -> WindowBatch:
        """Many windows in five gathers instead of five per window; the loader calls this by itself.

        Returns:
            A sequence of samples, for any collation; :func:`collate_windows` takes its tensors as they are.
        """
        starts = torch.tensor([_window_of(index) for index in indices])
        border = starts + self.look_back
        return WindowBatch(
            {
                "history": _gather(self.values, starts, self.look_back),
                "history_marks": _gather(self.marks, starts, self.look_back),
                "future": _gather(self.values[:, -self.outputs :], border, self.horizon),
                "future_marks": _gather(self.marks, border, self.horizon),
                "window": starts,
            }
        )


class WindowBatch(Sequence[Sample]):
    """Samples of a batch that is already stacked.

    Args:
        tensors: Sample keys to tensors with a leading batch axis.
    """

    def __init__(self, tensors: Sample) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["window"])

    def __getitem__(self, index: Any) -> Any:
        """One sample as views, or part of the batch for a slice."""
        picked = {key: tensor[index] for key, tensor in self.tensors.items()}
        return WindowBatch(picked) if isinstance(index, slice) else picked

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))


def collate_windows(samples: Sequence[Sample]) -> Sample:
    """``collate_fn`` of window loaders: a stacked batch as it is, anything else by torch's rule.

    Args:
        samples: What :class:`WindowDataset` gave for a batch.

    Returns:
        Sample keys to tensors with a leading batch axis.
    """
    return samples.tensors if isinstance(samples, WindowBatch) else default_collate(list(samples))


def _gather(rows: Tensor, starts: Tensor, length: int) -> Tensor:
    """Rows [T, C] at each start [B] and the ``length - 1`` after it -> [B, length, C]."""
    windows = rows.unfold(0, length, 1).transpose(1, 2)  # view [T - length + 1, length, C]
    return windows.index_select(0, starts)  # copies whole rows: several times faster than windows[starts]


def _window_of(index: Index) -> int:
    return int(index[1]) if isinstance(index, tuple) else int(index)
