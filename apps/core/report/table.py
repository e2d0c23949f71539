"""The results table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from apps.core.report.numbers import MISSING, comparison, number, published

_COLUMNS = ("metric", "value", "baseline", "published", "samples", "against baseline")
Row = Mapping[str, Any]


def format_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Rows of ``results.json`` as text, a header first; columns in which no row has anything are left out.

    Args:
        rows: Dicts with ``metric``, ``value`` and, where known, ``baseline``, ``published`` and ``samples``.

    Returns:
        Header and one list per row, all of one length.
    """
    table = [[*(_cell(row, name) for name in _COLUMNS[:-1]), _against_baseline(row)] for row in rows]
    used = [index for index, _ in enumerate(_COLUMNS) if any(line[index] not in ("-", "") for line in table)]
    return [[_COLUMNS[index] for index in used], *([line[index] for index in used] for line in table)]


def plain(table: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table as aligned text: the first column to the left, the others to the right; no colour, no frame, no cut.

    Args:
        table: Rows, the header first.
        words: Whether the cells are words: then all columns are to the left.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    ruled = [table[0], ["-" * width for width in widths], *table[1:]]
    return "\n".join(_aligned(cells, widths, words) for cells in ruled)


def print_table(
    table: Sequence[Sequence[str]], title: str, console: Console | None = None, words: bool = False
) -> None:
    """Print a table, the first row being its header; as :func:`plain` text where the output is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.out(f"{title}\n{plain(table, words)}", highlight=False)
        return
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(table[0]):
        drawn.add_column(name, justify="right" if index and not words else "left", header_style="dim", overflow="fold")
    for cells in table[1:]:
        drawn.add_row(*(_coloured(cell) for cell in cells))
    console.print(drawn)


def print_results(rows: Sequence[Row], title: str, console: Console | None = None) -> None:
    """Print results beside the trivial baseline and the published value.

    Args:
        rows: See :func:`format_rows`; nothing is printed for no rows.
        title: Line above the table.
        console: Where to print; standard output if omitted.
    """
    if rows:
        print_table(format_rows(rows), title, console)


def _cell(row: Row, name: str) -> str:
    text = published(row.get(name)) if name == "published" else number(row.get(name))
    return "-" if text == MISSING else text


def _against_baseline(row: Row) -> str:
    return comparison(str(row.get("metric", "")), row.get("value"), row.get("baseline"))


def _aligned(cells: Sequence[str], widths: Sequence[int], words: bool) -> str:
    if words:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
    first, *others = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return "  ".join(padded).rstrip()


def _coloured(cell: str) -> str:
    style = "green" if cell.endswith("better") else "yellow" if cell.endswith("worse") else ""
    escaped = cell.replace("[", r"\[")
    return f"[{style}]{escaped}[/]" if style else escaped
