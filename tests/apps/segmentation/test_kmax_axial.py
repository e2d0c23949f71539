"""Axial attention with relative positions."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.segmentation.models.kmax_axial import LONGEST, AxialAttention, AxisAttention, relative_rows
from apps.segmentation.models.kmax_layers import BatchNorm
from backbones.attention import dispatch

Part = TypeVar("Part", bound=torch.nn.Module)


def randomised(module: Part, seed: int = 0) -> Part:
    """Evaluated, in float64, with norms that change something."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for part in module.modules():
        if isinstance(part, BatchNorm):
            for tensor, low, high in (
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
                (part.weight.data, -1.5, 1.5),
                (part.bias.data, -0.5, 0.5),
            ):
                shape = tensor.shape  # type: ignore[union-attr]
                tensor.copy_(low + (high - low) * torch.rand(shape, generator=generator))  # type: ignore[union-attr]
    return module


def literal(attention: AxisAttention, row: Tensor) -> Tensor:
    """The published formula for one row, [C, L] to [2 * width, L], a query at a time."""
    length, heads = row.shape[1], attention.heads
    qkv = attention.qkv_norm(attention.qkv(row[None]))[0]
    q, k, v = (part.unflatten(0, (heads, -1)) for part in qkv.split(attention.widths))  # h, d, L
    tables = (attention.query_table, attention.key_table, attention.value_table)
    similarity = torch.empty(1, 3 * heads, length, length, dtype=row.dtype)
    for i in range(length):
        for j in range(length):
            query_row, key_row = tables[0][j - i + LONGEST - 1], tables[1][j - i + LONGEST - 1]
            similarity[0, :heads, i, j] = (q[:, :, i] * k[:, :, j]).sum(1)
            similarity[0, heads : 2 * heads, i, j] = q[:, :, i] @ query_row
            similarity[0, 2 * heads :, i, j] = k[:, :, j] @ key_row
    weights = attention.similarity_norm(similarity)[0].unflatten(0, (3, heads)).sum(0).softmax(-1)
    positional = torch.stack(
        [weights[:, i] @ tables[2][LONGEST - 1 - i : LONGEST - 1 - i + length] for i in range(length)], dim=2
    )
    content = (weights @ v.mT).mT  # h, d, L
    both = torch.cat([content.flatten(0, 1), positional.flatten(0, 1)])
    return attention.output_norm(both[None])[0].unflatten(0, (2, -1)).sum(0)


@settings(max_examples=6)
@given(rows=st.integers(1, 3), length=st.integers(1, 6), heads=st.sampled_from([1, 2]), seed=st.integers(0, 9))
def test_rows_follow_the_published_formula(rows: int, length: int, heads: int, seed: int) -> None:
    attention = randomised(AxisAttention(5, 6, heads), seed)
    maps = torch.randn(1, 5, rows, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = torch.stack([literal(attention, maps[0, :, row]) for row in range(rows)], dim=1)
        torch.testing.assert_close(attention(maps)[0], expected)


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (3, 2)])
def test_merged_norms_change_neither_values_nor_gradients(size: tuple[int, int]) -> None:
    attention = randomised(AxialAttention(6, 8, 4))
    maps = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    found = []
    for form in ("auto", "math"):
        with dispatch.force(form):
            mixed = attention(maps)
        weights = [p for name, p in attention.named_parameters() if name != "height.similarity_norm.bias"]
        # the softmax sees no offset: its gradient is 0, and there is none where norms are merged
        found.append([mixed, *torch.autograd.grad(mixed.sin().sum(), [maps, *weights], allow_unused=True)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(torch.zeros_like(slow) if fast is None else fast, slow, atol=1e-9, rtol=1e-7)


def test_height_comes_first_and_axes_have_weights_of_their_own() -> None:
    attention = randomised(AxialAttention(4, 4, 2))
    maps = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    expected = attention.width(attention.height(maps.transpose(2, 3)).transpose(2, 3))
    torch.testing.assert_close(attention(maps), expected)
    assert not torch.allclose(attention(maps.transpose(2, 3)).transpose(2, 3), expected)


def test_training_normalises_by_the_batch() -> None:
    attention = AxialAttention(4, 4, 2).train()
    maps = torch.randn(2, 4, 3, 5)
    trained = attention(maps)
    assert attention.width.similarity_norm.num_batches_tracked == 1
    assert not torch.allclose(trained, attention.eval()(maps), atol=1e-3)


def test_table_rows_belong_to_distances() -> None:
    weights = torch.arange(2.0 * LONGEST - 1)[:, None]
    rows = relative_rows(weights, LONGEST)[..., 0]
    assert rows[0, LONGEST - 1] == 2 * LONGEST - 2 and rows[LONGEST - 1, 0] == 0
    assert torch.equal(relative_rows(weights, 4)[..., 0][1], torch.tensor([253.0, 254, 255, 256]))


def test_longer_axes_stretch_the_table() -> None:
    weights = torch.arange(2.0 * LONGEST - 1)[:, None]
    rows = relative_rows(weights, 300)[..., 0]
    assert rows.shape == (300, 300)
    assert rows[0, 299] == 2 * LONGEST - 2 and rows[299, 0] == 0 and rows[5, 5] == LONGEST - 1
    attention = AxisAttention(2, 2, 1).eval()
    assert attention(torch.randn(1, 2, 1, 300)).shape == (1, 4, 1, 300)


def test_an_export_leaves_nothing_behind() -> None:
    """Distances of a length that was traced before it was computed."""
    attention = AxisAttention(2, 2, 1).eval()
    maps = torch.randn(1, 2, 1, 119)
    program = torch.export.export(attention, (maps,), strict=False)
    torch.testing.assert_close(program.module()(maps), attention(maps))


def test_tables_are_not_decayed() -> None:
    attention = AxisAttention(2, 2, 1)
    assert all(table._no_weight_decay for table in (attention.query_table, attention.value_table))  # type: ignore[attr-defined]


def test_autocast_stays_close() -> None:
    torch.manual_seed(0)
    attention = AxialAttention(8, 8, 2).eval()
    maps = torch.randn(1, 8, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = attention(maps)
    torch.testing.assert_close(half.float(), attention(maps).detach(), atol=0.15, rtol=0.1)
