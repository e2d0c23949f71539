"""Pieces of HTML: everything that comes from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from apps.core.report.numbers import duration, number

MOST_ROWS = 500


def section(anchor: str, title: str, body: str) -> str:
    """A section with a heading; nothing where the body is empty."""
    return f'<section><h2 id="{escape(anchor)}">{escape(title)}</h2>{body}</section>' if body else ""


def fold(title: str, body: str) -> str:
    """A part that the reader opens; nothing where the body is empty."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def code(text: str, kind: str = "") -> str:
    """Text in a fixed-width font; nothing for no text."""
    return f'<pre class="{kind}">{escape(text.rstrip())}</pre>' if text.strip() else ""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table whose columns are all keys in order of appearance; long ones are cut and say so."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in columns)}</tr>" for row in rows[:MOST_ROWS])
    cut = f"<p class=over>{len(rows) - MOST_ROWS:,} further rows are left out.</p>" if len(rows) > MOST_ROWS else ""
    return f'<div class="scroll"><table class="plain"><tr>{head}</tr>{body}</table></div>{cut}'


def pairs(values: Mapping[str, Any]) -> str:
    """A mapping as a two-column table; nested mappings become dotted names, a key that ends in ``_s`` a duration."""
    flat = _flatten(values)
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in flat)
    return f'<div class="scroll"><table class="plain narrow">{rows}</table></div>' if rows else ""


def _cell(value: Any) -> str:
    return f"<td>{escape(number(value))}</td>"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{name}.")
        elif _is_duration(name, value):
            flat.append((re.sub(r"_s(?=_per_|$)", "", name).replace("_", " "), duration(value)))
        elif value not in ("", [], None):
            flat.append((name.replace("_", " "), _words(value)))
    return flat


def _facts(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _flatten(item))


def _is_duration(name: str, value: Any) -> bool:
    return re.search(r"(?<!per)_s($|_per_)", name) is not None and isinstance(value, int | float)


def _words(value: Any) -> str:
    if isinstance(value, int):
        return str(value)  # a seed or a port is no quantity: no thousands separator
    if isinstance(value, list | tuple):
        return "; ".join(_facts(item) if isinstance(item, Mapping) else number(item) for item in value)
    return number(value)
