"""Which logged values share a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from apps.core.metrics.direction import higher_is_better
from apps.core.report.chart import Line, Points, line_chart
from apps.core.report.numbers import number

BASELINE = "baseline_"


def charts(curves: Mapping[str, Points]) -> list[str]:
    """One chart for each metric: training and validation in one, loss first, learning rate last.

    Args:
        curves: Logged name (``train/loss``, ``val/mse``, ``val/baseline_mse``, ``lr-AdamW``) to points.
    """
    groups: dict[str, dict[str, Points]] = {}
    for name, points in curves.items():
        split, metric = _split(name)
        if split != "test" and points:
            groups.setdefault(metric, {})[name] = points
    ordered = sorted(groups, key=lambda metric: _rank(metric, groups[metric]))  # as logged within a rank
    drawn = [_chart(metric, groups[metric]) for metric in ordered]
    return [chart for chart in drawn if chart]


def best_point(metric: str, points: Points) -> int | None:
    """Index of the best finite point; None where there are fewer than two."""
    finite = [index for index, (_, y) in enumerate(points) if math.isfinite(y)]
    if len(finite) < 2:
        return None
    best = max if higher_is_better(metric) else min
    return best(finite, key=lambda index: points[index][1])


def _split(name: str) -> tuple[str, str]:
    """``val/baseline_mse`` to (val, mse); a learning rate to ('', 'learning rate')."""
    split, _, metric = name.rpartition("/")
    metric = metric.removesuffix("_step").removesuffix("_epoch").removeprefix(BASELINE)
    if metric == "lr" or metric.startswith(("lr-", "lr_")) or split == "lr":
        return "", "learning rate"
    return split, metric


def _rank(metric: str, group: Mapping[str, Points]) -> int:
    if metric == "loss":
        return 0
    if metric == "learning rate":
        return 3
    return 1 if any(name.startswith("val/") for name in group) else 2


def _chart(metric: str, group: Mapping[str, Points]) -> str:
    return line_chart(metric.replace("_", " "), [line for line in _lines(metric, group) if line.points])


def _lines(metric: str, group: Mapping[str, Points]) -> Sequence[Line]:
    lines = [_line(name, metric, group) for name in sorted(group, key=_drawn_order)]
    span = [x for points in group.values() for x, _ in points]
    return [_stretched(line, min(span), max(span)) if line.style == "baseline" else line for line in lines]


def _drawn_order(name: str) -> tuple[int, str]:
    """Single steps at the bottom, then training, the baseline, and validation on top."""
    if BASELINE in name:
        return 2, name
    if name.endswith("_step"):
        return 0, name
    return (3 if name.startswith("val/") else 1), name


def _line(name: str, metric: str, group: Mapping[str, Points]) -> Line:
    split, points = _split(name)[0], group[name]
    if f"/{BASELINE}" in name:
        return Line(f"baseline {number(points[-1][1])}", points, "baseline")
    if split == "val":
        mark = best_point(metric, points)
        best = f" (best {number(points[mark][1])})" if mark is not None else ""
        return Line(f"validation{best}", points, "val", mark)
    if split == "train":
        each_step = name.endswith("_step") or f"{name}_epoch" in group
        return Line("each step", points, "step") if each_step else Line("train", points, "train")
    return Line(name, points, "other")


def _stretched(line: Line, low: float, high: float) -> Line:
    """A baseline drawn over the whole width, also where it was logged once."""
    if not line.points:
        return line
    return Line(line.label, [(low, line.points[0][1]), *line.points, (high, line.points[-1][1])], line.style)
