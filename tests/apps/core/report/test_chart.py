from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from apps.core.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, line_chart, thin, ticks
from apps.core.report.curves import best_point, charts


def vertices(figure: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline points="([^"]*)"', figure)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]  # type: ignore[misc]


def test_a_line_spans_the_chart_and_rises_upwards():
    (line,) = vertices(line_chart("loss", [Line("train", [(0, 1.0), (10, 2.0), (20, 3.0)])]))
    assert [x for x, _ in line] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    heights = [y for _, y in line]
    assert TOP < heights[2] < heights[1] < heights[0] < HEIGHT - BOTTOM
    assert abs((heights[0] - heights[1]) - (heights[1] - heights[2])) < 0.11


def test_nan_leaves_a_gap_and_nothing_finite_leaves_no_chart():
    figure = line_chart("loss", [Line("train", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 4.0), (4, 5.0), (5, math.inf)])])
    assert [len(line) for line in vertices(figure)] == [2, 2]
    assert line_chart("loss", [Line("train", [(0, math.nan)])]) == ""
    assert line_chart("loss", []) == ""


def test_a_single_point_and_a_flat_line_are_drawn():
    assert "<circle" in line_chart("loss", [Line("val", [(5, 0.0)])])
    (line,) = vertices(line_chart("loss", [Line("val", [(0, 3.0), (1, 3.0)])]))
    assert line[0][1] == line[1][1]


def test_wide_ranges_are_drawn_on_a_logarithmic_axis():
    points = [(float(i), 10.0**-i) for i in range(5)]
    (line,) = vertices(line_chart("loss", [Line("train", points)]))
    drops = [b[1] - a[1] for a, b in itertools.pairwise(line)]
    assert max(drops) - min(drops) < 0.25


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, span: float):
    marks = ticks(low, low + span)
    assert len(marks) <= 7
    assert all(low - 0.01 * span <= mark <= low + 1.01 * span for mark in marks)
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(3, 3) == [3]


def test_thinning_keeps_ends_and_means():
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100 and thinned[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.02 for _, y in thinned[:-1])
    assert thin(points[:50], 100) == points[:50]


def test_train_validation_and_baseline_share_a_chart():
    drawn = charts(
        {
            "lr-AdamW": [(0, 1e-3), (10, 0.0)],
            "val/baseline_mse": [(10, 0.5)],
            "val/mse": [(10, 0.4), (20, 0.3), (30, 0.35)],
            "train/loss": [(0, 1.0), (30, 0.2)],
            "train/loss_epoch": [(10, 0.8), (30, 0.3)],
            "val/loss": [(10, 0.9), (20, math.nan)],
            "test/mse": [(30, 0.3)],
        }
    )
    titles = [re.search(r"<b>(.*?)</b>", chart).group(1) for chart in drawn]  # type: ignore[union-attr]
    assert titles == ["loss", "mse", "learning rate"]
    assert "each step" in drawn[0] and ">train<" in drawn[0] and "validation<" in drawn[0]
    assert "best 0.3000" in drawn[1] and "baseline 0.5000" in drawn[1]
    assert len(vertices(drawn[1])) == 2  # the baseline, logged once, is a line over the whole width
    for chart in drawn:
        ElementTree.fromstring(chart)


def test_best_point_follows_the_direction_of_the_metric():
    points = [(0, 0.2), (1, 0.5), (2, math.nan), (3, 0.4)]
    assert best_point("mse", points) == 0 and best_point("miou", points) == 1
    assert best_point("mse", points[:1]) is None
