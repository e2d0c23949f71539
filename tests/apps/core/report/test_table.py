from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from apps.core.report.numbers import comparison, duration, number, published, size
from apps.core.report.table import format_rows, print_results

ROWS = [
    {"metric": "mse", "value": 0.375, "baseline": 0.5, "published": 0.38, "samples": 2785},
    {"metric": "miou", "value": 0.4, "baseline": 0.5, "published": None, "samples": 2785},
]


def test_table_is_plain_and_stable_in_a_file():
    out = io.StringIO()
    print_results(ROWS, "forecasting: test", Console(file=out, width=20))
    assert out.getvalue() == (
        "forecasting: test\n"
        "metric   value  baseline  published  samples  against baseline\n"
        "------  ------  --------  ---------  -------  ----------------\n"
        "mse     0.3750    0.5000       0.38    2,785       25 % better\n"
        "miou    0.4000    0.5000          -    2,785        20 % worse\n"
    )


def test_terminal_marks_what_beats_the_baseline():
    out = io.StringIO()
    print_results(ROWS, "test", Console(file=out, force_terminal=True, width=120))
    assert "\x1b[32m25 % better" in out.getvalue() and "\x1b[33m20 % worse" in out.getvalue()


def test_columns_that_nobody_fills_are_left_out():
    assert format_rows([{"metric": "[acc]", "value": 0.5}]) == [["metric", "value"], ["[acc]", "0.5000"]]
    out = io.StringIO()
    print_results([], "nothing", Console(file=out))
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.37954, "0.3795"),
        (12.3456, "12.35"),
        (1234567.0, "1,234,567"),
        (12345678.0, "1.23e+07"),
        (1.23456e-5, "1.23e-05"),
        (0.0, "0"),
        (2785, "2,785"),
        (-0.5, "-0.5000"),
        (None, "–"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        ("text", "text"),
        (True, "True"),
    ],
)
def test_numbers_have_four_digits(value: object, text: str):
    assert number(value) == text


def test_published_values_keep_their_digits():
    assert [published(value) for value in (0.386, 27.7, 3, None)] == ["0.386", "27.7", "3", "–"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (4.11, "4.1 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_sizes():
    assert [size(count) for count in (12, 2048, 300 * 2**20, 5 * 2**30)] == ["12 B", "2.0 KiB", "300 MiB", "5.0 GiB"]


@pytest.mark.parametrize(
    ("metric", "ours", "other", "text"),
    [
        ("mse", 0.375, 0.5, "25 % better"),
        ("psnr", 33.0, 30.0, "3.00 dB better"),
        ("val/psnr_rgb", 29.9, 30.0, "0.10 dB worse"),
        ("si_sdr", float("inf"), 30.0, "better"),
        ("mse", 0.508, 0.5, "1.6 % worse"),
        ("mse", 0.5, 0.5, "equal"),
        ("mse", 1.0, 0.0, "worse"),
        ("si_sdr", 3.0, -3.0, "6.00 dB better"),
        ("mse", math.nan, 1.0, ""),
        ("mse", 1.0, None, ""),
    ],
)
def test_comparison_in_words(metric: str, ours: float, other: float | None, text: str):
    assert comparison(metric, ours, other) == text
