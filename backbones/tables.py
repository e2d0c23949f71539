"""Tables in the terminal, and the same rows as csv and json files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import UserError

WIDE = 180
"""Characters of a line in files and pipes."""

if TYPE_CHECKING:
    from backbones.comparison import Memory, Part, Speed


def print_speeds(rows: Sequence[Speed], title: str) -> None:
    """Both forms and their ratio, a row per operator."""
    cells = [
        (row.name, f"{row.fast_s * 1e3:.1f}", f"{row.math_s * 1e3:.1f}", *ratio_cells(row.ratio, *row[4:]))
        for row in rows
    ]
    print_table(("operator", "fast ms", "math ms", "math / fast", "range"), cells, title)


def ratio_cells(ratio: float, low: float, high: float) -> tuple[str, str]:
    """Median and range of a ratio."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}", f"{low:.2f} - {high:.2f}"


def print_memories(rows: Sequence[Memory], title: str) -> None:
    """Peak memory by number of tokens, a row per operator; nothing where there are no rows."""
    if not rows:
        return
    names = ("operator", *[f"{length:,}" for length in rows[0].lengths], "growth")
    cells = [(row.name, *[f"{peak / 2**20:.1f}" for peak in row.bytes], f"{row.exponent:.2f}") for row in rows]
    print_table(names, cells, title)


def print_parts(rows: Sequence[Part], title: str) -> None:
    """Time, memory and difference of two forms, a row per part."""
    names = ("part", "fast ms", "literal ms", "ratio", "range", "fast MiB", "literal MiB", "difference")
    cells = [
        (
            row.name,
            f"{row.fast_ms:.1f}",
            f"{row.literal_ms:.1f}",
            *ratio_cells(row.ratio, row.ratio_min, row.ratio_max),
            f"{row.fast_mib:.1f}",
            f"{row.literal_mib:.1f}",
            f"{row.difference:.0e}",
        )
        for row in rows
    ]
    print_table(names, cells, title)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table of text, wide enough for its columns where the output is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def write_rows(rows: Sequence[Mapping[str, Any]], file: Path | None, facts: Mapping[str, Any] | None = None) -> None:
    """Write rows as csv or json, by the suffix of the file.

    Args:
        rows: Mappings with the same keys.
        file: Where to; None writes nothing.
        facts: What holds for all rows, written to json beside them.

    Raises:
        UserError: The file cannot be written, or has another suffix.
    """
    if file is None:
        return
    try:
        if file.suffix == ".json":
            file.write_text(json.dumps({**(facts or {}), "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
        elif file.suffix == ".csv":
            _write_csv(rows, file)
        else:
            raise UserError("expected a name that ends in .csv or .json", where=str(file))
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(file)) from error


def _write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value
