"""``python -m apps.segmentation.benchmark``: the cost of backbones with heads, and fast forms beside literal ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from apps.core.inference.conditions import add_options, conditions
from apps.segmentation.models.config import HEADS
from backbones.image_size import image_size
from backbones.tables import print_parts, print_table, write_rows
from backbones.vision.config import BACKBONES
from graftwork.errors import ConfigError, UserError

SMALL = ("swin_tiny", "dinat_mini", "maxvit_tiny", "biformer_tiny", "tiny_vit_5m", "shvit_s1", "vig_tiny")
"""A small backbone of each kind."""
WELL_KNOWN = ("upernet", "segformer", "kmax", "mask2former")


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
    parser = argparse.ArgumentParser(prog="python -m apps.segmentation.benchmark", description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=list(SMALL), metavar="NAME", help="default: a small one each")
    parser.add_argument("--heads", nargs="+", default=list(WELL_KNOWN), metavar="NAME", help=f"of {HEADS.names()}")
    parser.add_argument("--size", default="512", help="of the image, 512 or 360x480 (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls of each form (default: %(default)s)")
    add_options(parser)
    parser.add_argument("--parts", action="store_true", help="fast against literal forms instead, at --size")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows there, too: .csv or .json")
    return parser


def _run(options: argparse.Namespace) -> None:
    height, width = image_size(options.size, "--size", 32, "512")
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} must be at least 1")
    for name in options.backbones:
        BACKBONES.get(name)
    for name in options.heads:
        HEADS.get(name)

    chosen = conditions(options)

    from apps.segmentation import costs

    place = chosen.described()
    if options.parts:
        parts = list(costs.parts(options.repeats, max(height, width), chosen))
        print_parts(parts, place)
        write_rows([part._asdict() for part in parts], options.output)
        return
    pairs = [(backbone, head) for backbone in options.backbones for head in options.heads]
    rows = [costs.cost(*pair, height, width, options.repeats, chosen) for pair in pairs]
    names = ("backbone", "head", "M par.", "GMACs", "ms", "range", "MiB")
    cells = [
        (
            row.backbone,
            row.head,
            f"{row.parameters / 1e6:.1f}",
            f"{row.gmacs:.1f}",
            f"{row.latency_ms:.0f}",
            f"{row.fastest_ms:.0f} - {row.slowest_ms:.0f}",
            f"{row.memory_mib:.0f}",
        )
        for row in rows
    ]
    print_table(names, cells, f"One image of {height} x {width}, {costs.CLASSES} classes; {place}")
    write_rows([row._asdict() for row in rows], options.output)


if __name__ == "__main__":
    sys.exit(main())
