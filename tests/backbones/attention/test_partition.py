"""Windows come apart and together without loss, and relative positions are numbered as official weights number them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from backbones.attention.partition import (
    merge,
    overlapping_index,
    overlapping_windows,
    partition,
    relative_bias,
    relative_index,
)
from backbones.attention.tables import table
from graftwork.errors import ConfigError, ShapeError


def test_windows_and_their_tokens_are_row_major():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = partition(x, (2, 3))
    assert windows.shape == (8, 6, 1)
    assert windows[0].flatten().tolist() == [0, 1, 2, 6, 7, 8]
    assert windows[1].flatten().tolist() == [3, 4, 5, 9, 10, 11]
    assert windows[2].flatten().tolist() == [12, 13, 14, 18, 19, 20]
    assert windows[4].flatten().tolist() == [24, 25, 26, 30, 31, 32]


@settings(max_examples=25)
@given(
    batch=st.integers(0, 2),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    channels=st.lists(st.integers(1, 3), max_size=2),
)
def test_merge_undoes_partition(batch, rows, columns, height, width, channels):
    x = torch.randn(batch, rows * height, columns * width, *channels)
    windows = partition(x, (height, width))
    assert windows.shape == (batch * rows * columns, height * width, *channels)
    assert torch.equal(merge(windows, (height, width), rows * height, columns * width), x)


def test_partition_agrees_with_swin():
    swin = pytest.importorskip("timm.models.swin_transformer")
    x = torch.randn(2, 14, 21, 5)
    theirs = swin.window_partition(x, (7, 7)).flatten(1, 2)
    assert torch.equal(partition(x, 7), theirs)


@pytest.mark.parametrize(
    "window, key_window", [((2, 3), (4, 3)), ((3, 3), (5, 7)), ((2, 2), (2, 2)), ((2, 3), (12, 9))]
)
def test_overlapping_windows_are_those_of_unfold_with_exact_gradients(window, key_window):
    x = torch.randn(2, 3 * window[0], 2 * window[1], 2, 3, dtype=torch.float64, requires_grad=True)
    windows = overlapping_windows(x, window, key_window)
    padding = [(outer - inner) // 2 for outer, inner in zip(key_window, window, strict=True)]
    columns = F.unfold(x.flatten(3).permute(0, 3, 1, 2), key_window, padding=padding, stride=window)
    expected = columns.view(2, 2, 3, -1, 6).permute(0, 4, 3, 1, 2).flatten(0, 1)
    torch.testing.assert_close(windows, expected)
    weight = torch.randn_like(windows)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (windows, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("window", [(7, 7), (2, 5), (1, 4), (1, 1)])
def test_relative_index_agrees_with_swin(window):
    swin = pytest.importorskip("timm.models.swin_transformer")
    assert torch.equal(relative_index(window), swin.get_relative_position_index(*window))


def test_bias_depends_on_the_offset_of_the_query_from_the_key_only():
    positions = torch.randn(15, 2, dtype=torch.float64, requires_grad=True)  # 2 * 2 - 1 by 2 * 3 - 1
    bias = relative_bias(positions, (2, 3))
    assert bias.shape == (2, 6, 6)
    grid = positions.view(3, 5, 2)
    for query in range(6):
        for key in range(6):
            down, across = query // 3 - key // 3, query % 3 - key % 3
            assert torch.equal(bias[:, query, key], grid[down + 1, across + 2])
    (gradient,) = torch.autograd.grad(bias.sum(), positions)
    assert gradient[:, 0].tolist() == torch.bincount(relative_index((2, 3)).flatten(), minlength=15).tolist()


@pytest.mark.parametrize("window, key_window", [(4, 6), (16, 24), (3, 3)])
def test_overlapping_index_is_that_of_official_weights(window, key_window):
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    outer = torch.stack(torch.meshgrid(torch.arange(key_window), torch.arange(key_window), indexing="ij")).flatten(1)
    offset = outer[:, None] - places[:, :, None] + window - key_window + 1  # with negative numbers, as published
    official = offset[0] * (window + key_window - 1) + offset[1]
    positions = torch.randn((window + key_window - 1) ** 2, 3)
    if window == 16:
        assert (official.min(), official.max()) == (-880, 640)
    assert torch.equal(relative_bias(positions, window, key_window), positions[official].permute(2, 0, 1))
    assert overlapping_index(window, key_window).min() >= 0


def test_tables_serve_training_after_inference_and_stay_on_their_device():
    with torch.inference_mode():
        index = relative_index((3, 11))
    assert not index.is_inference() and index is relative_index((3, 11))
    assert relative_index((3, 11), "meta").device.type == "meta"
    assert relative_index((3, 11)).device.type == "cpu"
    positions = torch.randn(105, 1, requires_grad=True)
    relative_bias(positions, (3, 11)).sum().backward()


def test_tables_made_while_tracing_are_not_kept():
    calls = []

    @table()
    def numbers(size):
        calls.append(size)
        return torch.arange(size)

    class Layer(torch.nn.Module):
        def forward(self, x):
            return x + numbers(3)

    torch.export.export(Layer(), (torch.zeros(3),), strict=False)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        numbers(3)
    assert type(numbers(3)) is torch.Tensor
    before = len(calls)
    assert numbers(3) is numbers(3) and len(calls) == before


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (
            lambda: partition(torch.zeros(1, 6, 7, 2), 3),
            ShapeError,
            "width 7 is no multiple of the window's 3.*pad it by 2",
        ),
        (lambda: partition(torch.zeros(1, 6, 7, 2), 0), ConfigError, "window=0"),
        (lambda: merge(torch.zeros(4, 9, 2), 3, 6, 7), ShapeError, r"windows: expected .* got \[4, 9, 2\]"),
        (lambda: merge(torch.zeros(5, 9, 2), 3, 6, 6), ShapeError, r"\[maps \* 4, 9, \.\.\]"),
        (lambda: overlapping_windows(torch.zeros(1, 6, 6, 2), 3, 4), ConfigError, "key_window=4 must exceed window=3"),
        (lambda: overlapping_windows(torch.zeros(1, 6, 7, 2), 3, 5), ShapeError, r"multiples of the window \(3, 3\)"),
        (lambda: relative_bias(torch.zeros(9, 2), 3), ShapeError, r"expected \[25, heads\] for the window \(3, 3\)"),
        (lambda: relative_index((3, 3, 3)), ConfigError, r"window=\(3, 3, 3\)"),
    ],
)
def test_wrong_inputs_are_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
