"""``python -m apps.superres.benchmark [NAMES]``: what the networks cost here, beside their literal forms."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.core.inference.conditions import add_options, conditions
from apps.superres.models.config import MODELS
from backbones.image_size import image_size
from backbones.tables import print_parts, print_table, ratio_cells, write_rows
from graftwork.errors import ConfigError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for an error that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m apps.superres.benchmark", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS.names())}; all if omitted")
    parser.add_argument("--sizes", nargs="+", default=["64x64", "180x320"], help="of the input (default: %(default)s)")
    parser.add_argument("--scale", type=int, default=4, help="output pixels per input pixel (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measured calls of each form (default: %(default)s)")
    add_options(parser)
    parser.add_argument("--parts", action="store_true", help="the parts that decide alone, not whole networks")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows there, too: .csv or .json")
    return parser


def _run(options: argparse.Namespace) -> None:
    sizes = [image_size(text, "--sizes", 1, "64x64") for text in options.sizes]
    for name in ("scale", "repeats"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)} must be at least 1")
    for name in options.names:
        MODELS.get(name)

    chosen = conditions(options)

    from apps.superres import costs

    place = chosen.described()
    if options.parts:
        parts = costs.parts(options.repeats, chosen)
        print_parts(parts, place)
        write_rows([part._asdict() for part in parts], options.output)
        return
    rows = []
    for height, width in sizes:
        for name in costs.chosen(options.names):
            network = costs.network(name, height, width, options.scale, chosen)
            rows += list(costs.costs(network, options.repeats))
    _print_costs(rows, f"One image, scale {options.scale} (1 for networks that only restore); {place}")
    write_rows([row._asdict() for row in rows], options.output)


def _print_costs(rows: Sequence[Any], title: str) -> None:
    names = ("model", "input", "M par.", "GMACs", "ms", "MiB", "against", "ms", "MiB", "ratio", "range", "difference")
    cells = []
    for row in rows:
        cell = [row.model, row.size, f"{row.parameters / 1e6:.2f}", f"{row.gmacs:.2f}"]
        cell += [f"{row.fast_ms:.0f}", f"{row.fast_mib:.0f}"]
        if row.rival:
            cell += [row.rival, f"{row.rival_ms:.0f}", f"{row.rival_mib:.0f}"]
            cell += [*ratio_cells(row.ratio, row.ratio_min, row.ratio_max), f"{row.difference:.0e}"]
        cells.append(cell)
    print_table(names, cells, title)


if __name__ == "__main__":
    sys.exit(main())
