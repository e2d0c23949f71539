"""Line charts as inline SVG, coloured by the page's style so that they follow dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from apps.core.report.numbers import number

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: Name in the legend.
        points: (x, y) in order of x; a y that is not finite leaves a gap.
        style: Class of the page's style: ``train``, ``val``, ``baseline`` or ``other``.
        mark: Index of a point to ring, for instance the best; None for none.
    """

    label: str
    points: Points
    style: str = "other"
    mark: int | None = None


def line_chart(title: str, lines: Sequence[Line], x_label: str = "step") -> str:
    """A figure with title, legend and chart.

    Returns:
        HTML, or an empty string where no line has a finite point.
    """
    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not finite:
        return ""
    axes = _Axes.around(finite)
    body = "".join([axes.grid(x_label), *(_draw(line, axes) for line in lines)])
    legend = "".join(f'<span class="key {line.style}">{escape(line.label)}</span>' for line in lines)
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover [low, high], at most ``most`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: means of equal runs of points, the last point kept; short lines stay as they are."""
    if len(points) <= most:
        return list(points)
    bounds = [len(points) * index // (most - 1) for index in range(most)]
    runs = [points[start:stop] for start, stop in pairwise(bounds)]
    return [*(_mean(run) for run in runs), points[-1]]


def _mean(run: Points) -> tuple[float, float]:
    finite = [y for _, y in run if math.isfinite(y)]
    return run[len(run) // 2][0], math.fsum(finite) / len(finite) if finite else math.nan


@dataclass(frozen=True)
class _Axes:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    @classmethod
    def around(cls, points: Points) -> _Axes:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        log = low > 0 and high / low > 200
        if log:
            low, high = math.log10(low), math.log10(high)
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(min(xs), max(xs), low - pad, high + pad, log)

    def x(self, value: float) -> float:
        width = self.x_high - self.x_low
        share = (value - self.x_low) / width if width else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        height = (math.log10(value) if self.log else value) - self.y_low
        return HEIGHT - BOTTOM - height / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str) -> str:
        marks = ticks(self.y_low, self.y_high)
        values = [10**mark for mark in marks] if self.log else marks
        rows = [self._row(value) for value in values if math.isfinite(value)]
        columns = [self._column(value) for value in ticks(self.x_low, self.x_high) if float(value).is_integer()]
        place = f'x="{LEFT - 6}" y="{HEIGHT - 6}" text-anchor="end"'
        name = f'<text class="axis" {place}>{escape(x_label)}</text>'
        return "".join([*rows, *columns, name])

    def _row(self, value: float) -> str:
        y = self.y(value)
        return (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        )

    def _column(self, value: float) -> str:
        anchor = "end" if self.x(value) > WIDTH - 2.5 * RIGHT else "middle"
        return f'<text x="{self.x(value):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_tick(value)}</text>'


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _draw(line: Line, axes: _Axes) -> str:
    points = thin(line.points)
    runs: list[list[str]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append(f"{axes.x(x):.1f},{axes.y(y):.1f}")
        elif runs[-1]:
            runs.append([])
    strokes = "".join(f'<polyline points="{" ".join(run)}"/>' for run in runs if len(run) > 1)
    lone = [run[0].split(",") for run in runs if len(run) == 1]
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in lone)
    return f'<g class="line {line.style}">{strokes}{dots}{_ring(line, axes)}</g>'


def _ring(line: Line, axes: _Axes) -> str:
    if line.mark is None:
        return ""
    x, y = line.points[line.mark]
    hint = f"{number(y)} at {number(x)}"
    return f'<circle class="ring" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4"><title>{hint}</title></circle>'
