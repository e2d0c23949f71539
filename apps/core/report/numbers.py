"""Numbers as a reader wants them, the same in the terminal and on the page."""

from __future__ import annotations

import math
from typing import Any

from apps.core.metrics.direction import in_decibels, is_better

MISSING = "–"


def number(value: Any, digits: int = 4) -> str:
    """A number with ``digits`` significant digits: 0.3795, 1,234, 1.2e-05; a dash for None, 'NaN' for NaN."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -digits or exponent >= 7:
        return f"{value:.{digits - 1}g}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def published(value: Any) -> str:
    """A published number with the digits it was published with."""
    return f"{value:,.10g}" if isinstance(value, float) and math.isfinite(value) else number(value)


def duration(seconds: float) -> str:
    """Time as people say it: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def latency(seconds: float) -> str:
    """A measured time in milliseconds, always, so that a column can be compared at a glance."""
    return f"{number(1000 * seconds, 3)} ms"


def size(count: float) -> str:
    """Bytes: 12 B, 3.4 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def comparison(metric: str, ours: float | None, other: float | None) -> str:
    """How ours stands to another value: '31 % better', '0.93 dB better', 'equal'; empty where that cannot be said."""
    if ours is None or other is None or math.isnan(ours) or math.isnan(other):
        return ""
    verdict = is_better(metric, ours, other)
    if verdict is None:
        return "equal"
    word = "better" if verdict else "worse"
    if in_decibels(metric) and math.isfinite(ours) and math.isfinite(other):
        return f"{abs(ours - other):.2f} dB {word}"
    if other == 0 or math.isinf(ours) or math.isinf(other) or (ours < 0) != (other < 0):
        return word  # a percentage of nothing, or across zero, says nothing
    share = 100 * abs(ours - other) / abs(other)
    return f"{share:.0f} % {word}" if share >= 10 else f"{share:.1g} % {word}" if share < 1 else f"{share:.1f} % {word}"
