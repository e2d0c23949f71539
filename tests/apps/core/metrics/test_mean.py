from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.core.metrics.mean import WeightedMean
from graftwork.errors import ShapeError


def test_weighs_every_value_alike_whatever_the_batches():
    mean = WeightedMean()
    mean.update(torch.tensor([1.0, 2.0, 3.0]))
    mean.update(torch.tensor([10.0]))
    assert mean.compute().item() == 4.0  # a mean of batch means would be 6
    mean.reset()
    assert math.isnan(mean.compute().item())


def test_weights_leave_out_padding_even_where_it_is_nan():
    mean = WeightedMean()
    mean.update(torch.tensor([[1.0, math.nan], [3.0, 5.0]]), torch.tensor([[1, 0], [1, 1]]))
    assert mean.compute().item() == 3.0


def test_one_mean_for_each_step():
    mean = WeightedMean(shape=(2,))
    mean.update(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    mean.update(torch.tensor([[[5.0, 50.0]]]), weights=2)
    assert mean.compute().tolist() == [3.5, 35.0]  # (1 + 3 + 2*5) / 4
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        mean.update(torch.zeros(4, 3))


def test_sums_stay_exact_where_float32_stalls():
    mean = WeightedMean()
    mean.update(torch.tensor([2.0**24]))
    for _ in range(10):
        mean.update(torch.ones(1))  # float32: 2**24 + 1 == 2**24
    assert mean.total.item() == 2**24 + 10
    assert mean.half().total.dtype == torch.float64


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.integers(1, 50))
def test_batch_size_does_not_change_the_mean(values: list[float], size: int):
    data = torch.tensor(values)
    mean = WeightedMean()
    for batch in data.split(size):
        mean.update(batch)
    torch.testing.assert_close(mean.compute(), data.double().mean(), rtol=1e-12, atol=1e-12)


def test_reduces_by_sum_over_processes():
    assert WeightedMean()._reductions["total"] is WeightedMean()._reductions["weight"]
    first, second, whole = WeightedMean(), WeightedMean(), WeightedMean()
    first.update(torch.ones(3))
    second.update(torch.zeros(1))
    whole.update(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    states = {"total": torch.stack([first.total, second.total]), "weight": torch.stack([first.weight, second.weight])}
    reduced = {name: first._reductions[name](values) for name, values in states.items()}  # type: ignore[misc]
    assert (reduced["total"] / reduced["weight"]).item() == whole.compute().item() == 0.75
