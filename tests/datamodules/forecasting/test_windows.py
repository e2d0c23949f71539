"""Windows: hand-computable ones, batches, and that every row is used as it should be."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate

from datamodules.forecasting.windows import WindowDataset, collate_windows
from graftwork.errors import ShapeError


def counting(rows: int = 8, look_back: int = 3, horizon: int = 2, outputs: int | None = None) -> WindowDataset:
    """Row r holds r and 100 + r; its mark is -r."""
    steps = torch.arange(float(rows))
    return WindowDataset(torch.stack([steps, 100 + steps], 1), -steps[:, None], look_back, horizon, outputs)


def test_window_by_hand() -> None:
    windows = counting()
    assert len(windows) == 4
    sample = windows[1]
    assert sample["history"].tolist() == [[1, 101], [2, 102], [3, 103]]
    assert sample["future"].tolist() == [[4, 104], [5, 105]]
    assert sample["history_marks"].tolist() == [[-1], [-2], [-3]]
    assert sample["future_marks"].tolist() == [[-4], [-5]]
    assert (sample["window"].item(), sample["window"].dtype) == (1, torch.int64)


def test_single_output_is_the_last_column() -> None:
    windows = counting(outputs=1)
    assert windows[0]["history"].shape == (3, 2)
    assert windows[0]["future"].tolist() == [[103], [104]]


def test_epoch_of_a_key_changes_nothing() -> None:
    windows = counting()
    for key, value in windows[(7, 2)].items():
        assert torch.equal(value, windows[2][key])


def test_iteration_ends_and_negative_indices_count_from_the_end() -> None:
    windows = counting()
    assert len(list(windows)) == 4  # type: ignore[call-overload]
    assert windows[-1]["window"].item() == 3
    with pytest.raises(IndexError, match="window 4 of 4"):
        windows[4]


def test_samples_share_the_memory_of_the_split() -> None:
    windows = counting()
    assert windows[2]["history"].untyped_storage().data_ptr() == windows.values.untyped_storage().data_ptr()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 30), st.integers(1, 3), st.integers(0, 4), st.data())
def test_batches_equal_single_windows(
    look_back: int, horizon: int, more: int, columns: int, marks: int, data: st.DataObject
) -> None:
    rows = look_back + horizon + more
    outputs = data.draw(st.integers(1, columns))
    windows = WindowDataset(torch.randn(rows, columns), torch.randn(rows, marks), look_back, horizon, outputs)
    picked = data.draw(st.lists(st.integers(0, more), min_size=1, max_size=8))
    fast = collate_windows(windows.__getitems__([(3, index) for index in picked]))
    slow = default_collate([windows[index] for index in picked])
    assert list(fast) == list(slow)
    for key in slow:
        assert torch.equal(fast[key], slow[key])
        assert fast[key].is_contiguous()


def test_any_collation_understands_a_batch() -> None:
    batch = counting().__getitems__([0, 2])
    assert torch.equal(default_collate(cast(Any, batch))["future"], collate_windows(batch)["future"])
    assert len(batch) == 2
    assert [sample["window"].item() for sample in batch[1:]] == [2]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_serves_every_window_once(workers: int) -> None:
    loader = DataLoader(counting(40), batch_size=7, shuffle=True, collate_fn=collate_windows, num_workers=workers)
    starts = np.concatenate([batch["window"].numpy() for batch in loader])
    assert sorted(starts.tolist()) == list(range(36))


def test_batch_does_not_change_the_series_when_written_to() -> None:
    windows = counting()
    collate_windows(windows.__getitems__([0]))["history"].zero_()
    assert windows[0]["history"][2, 0].item() == 2


@pytest.mark.parametrize(
    ("values", "marks", "options", "message"),
    [
        ((8, 2), (7, 1), {}, "marks: expected 8 rows"),
        ((4, 2), (4, 1), {}, "at least 5 rows"),
        ((8, 2), (8, 1), {"outputs": 3}, "outputs: expected 1 to 2"),
    ],
)
def test_sizes_that_cannot_be(
    values: tuple[int, int], marks: tuple[int, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        WindowDataset(torch.zeros(values), torch.zeros(marks), 3, 2, **options)
