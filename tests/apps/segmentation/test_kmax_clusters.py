"""The update of k-means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.segmentation.models.kmax_clusters import cluster_sizes, cluster_sums, update_benchmark
from backbones.attention import dispatch
from graftwork.errors import ShapeError


@settings(max_examples=15)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 9),
    pixels=st.integers(0, 30),
    clusters=st.integers(1, 7),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_forms_agree_with_gradients(
    batch: int, channels: int, pixels: int, clusters: int, last: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, channels, pixels, generator=generator, dtype=torch.float64)
    values = values.mT.contiguous().mT if last else values
    assignment = torch.randint(0, clusters, (batch, pixels), generator=generator)
    above = torch.randn(batch, channels, clusters, generator=generator, dtype=torch.float64)
    found = []
    for form in ("auto", "math"):
        leaf = values.clone(memory_format=torch.preserve_format).requires_grad_()
        sums = cluster_sums(leaf, assignment, clusters, form=form)
        found.append((sums, *torch.autograd.grad(sums, leaf, above)))
    for fast, literal in zip(*found, strict=True):
        torch.testing.assert_close(fast, literal)


def test_a_cluster_without_pixels_is_zero_and_sums_are_no_means() -> None:
    values = torch.tensor([[[1.0, 2.0, 4.0]]])
    assignment = torch.tensor([[2, 2, 0]])
    assert cluster_sums(values, assignment, 4).tolist() == [[[4.0, 0.0, 3.0, 0.0]]]
    assert cluster_sizes(assignment, 4).tolist() == [[1, 0, 2, 0]]


def test_half_types_are_summed_in_float32() -> None:
    values = torch.ones(1, 1, 5000, dtype=torch.bfloat16)
    sums = cluster_sums(values, torch.zeros(1, 5000, dtype=torch.long), 2)
    assert sums.dtype == torch.float32 and sums[0, 0, 0] == 5000


def test_the_pair_to_be_timed_agrees_within_1e_5() -> None:
    pair = update_benchmark(channels=32, side=40)
    fast, literal = pair.fast(), pair.literal()
    assert float((fast - literal).abs().max() / literal.abs().max()) < 1e-5


def test_the_record_tells_which_form_served() -> None:
    dispatch.reset_used()
    update_benchmark(channels=1, side=2).literal()
    assert dispatch.used()["cluster_sums"][0]["backend"] == "math"


def test_assignments_of_other_pixels_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3, 4\] and \[2, 5\]"):
        cluster_sums(torch.ones(2, 3, 4), torch.zeros(2, 5, dtype=torch.long), 2)
