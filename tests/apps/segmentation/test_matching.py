"""The assignment of queries to segments."""

from __future__ import annotations

import itertools

import pytest
import torch

from apps.segmentation.matching import assign
from graftwork.errors import ShapeError
from tests.apps.segmentation.without_float64 import moved


@pytest.mark.parametrize("maximise", [True, False])
def test_sum_is_the_best_of_all_assignments(maximise: bool) -> None:
    scores = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(0))
    for table, (rows, columns) in zip(scores, assign(scores, maximise), strict=True):
        sums = [table[list(rows), range(3)].sum() for rows in itertools.permutations(range(5), 3)]
        best = max(sums) if maximise else min(sums)
        torch.testing.assert_close(table[rows, columns].sum(), best)
        assert sorted(columns.tolist()) == [0, 1, 2]


def test_devices_without_float64_give_the_same() -> None:
    tables = [torch.rand(4, count, generator=torch.Generator().manual_seed(0)) for count in (2, 3)]
    for here, there in zip(assign(tables, True), assign([moved(table) for table in tables], True), strict=True):
        assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])


def test_images_may_have_different_numbers_of_segments() -> None:
    generator = torch.Generator().manual_seed(1)
    tables = [torch.rand(4, count, generator=generator) for count in (2, 0, 6)]
    together = assign(tables, True)
    assert [len(rows) for rows, _ in together] == [2, 0, 4]
    for table, (rows, columns) in zip(tables, together, strict=True):
        [(alone_rows, alone_columns)] = assign([table], True)
        assert torch.equal(rows, alone_rows) and torch.equal(columns, alone_columns)


def test_pairs_carry_no_gradient_and_come_as_indices() -> None:
    [(rows, columns)] = assign([torch.rand(4, 2, requires_grad=True)], True)
    assert rows.dtype == columns.dtype == torch.int64
    assert torch.equal(rows, rows.sort().values)


@pytest.mark.parametrize("maximise", [True, False])
def test_scores_that_are_not_finite_are_chosen_last(maximise: bool) -> None:
    table = torch.tensor([[float("nan"), 1.0], [2.0, float("inf")], [-3.0, 0.5]])
    [(rows, columns)] = assign([table], maximise)
    assert torch.isfinite(table[rows, columns]).all()


def test_nothing_but_nan_is_still_paired() -> None:
    [(rows, _)] = assign([torch.full((3, 2), float("nan"))], True)
    assert len(rows) == 2


def test_an_empty_batch_has_no_pairs() -> None:
    assert assign([], True) == []


def test_a_table_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[queries, segments\], got \[3\]"):
        assign([torch.rand(3)], True)
