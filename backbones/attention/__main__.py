"""Print which attention backends are usable here and why the others are not: ``python -m backbones.attention``."""

from __future__ import annotations

import argparse
import sys

from graftwork.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m backbones.attention", description=__doc__)
    parser.add_argument("--device", help="device to probe, e.g. cpu or cuda:1 (default: a GPU if there is one)")
    options = parser.parse_args(arguments)

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from backbones.attention import dispatch

    try:
        rows, wanted = dispatch.explain(options.device), dispatch.wish()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("backend", "usable", "types", "why not", title=f"Attention backends on {rows[0].device}")
    for row in rows:
        usable, types = "yes" if row.dtypes else "no", ", ".join(row.dtypes) or "-"
        table.add_row(row.backend, usable, types, escape(row.reason) or "-")
    console = Console()
    console.print(table)
    source = f", wanted by {wanted[1]}" if wanted[1] else ": the fastest that can serve a call"
    console.print(f"In force: {wanted[0]}{source}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
