"""Measure the sequence operators: ``python -m backbones.sequence benchmark [NAMES]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from backbones.tables import print_memories, print_speeds
from graftwork.errors import ConfigError, UserError
from graftwork.names import unknown


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        results = _benchmark(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backbones.sequence", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    text = "time a training step (forward and backward) of each operator's fast form against its literal one"
    verb = verbs.add_parser("benchmark", help=text, description=text)
    verb.add_argument("names", nargs="*", metavar="NAME", help="operators (default: all), e.g. flow selective_scan")
    verb.add_argument("--length", type=int, default=720, help="tokens (default: %(default)s)")
    verb.add_argument("--batch", type=int, default=16, help="sequences (default: %(default)s)")
    verb.add_argument("--width", type=int, default=512, help="channels over all heads (default: %(default)s)")
    verb.add_argument("--heads", type=int, default=8, help="heads (default: %(default)s)")
    verb.add_argument("--repeats", type=int, default=5, help="measured runs of each form (default: %(default)s)")
    verb.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    verb.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    verb.add_argument("--memory", action="store_true", help="also the growth of memory from 1k to 16k tokens")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


def _benchmark(options: argparse.Namespace) -> dict[str, Any]:
    for name in ("length", "batch", "width", "heads", "repeats"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.width % options.heads:
        raise ConfigError(f"--width {options.width} must be a multiple of --heads {options.heads}")

    import torch

    from backbones.sequence import benchmark

    for name in options.names:
        if not benchmark.chosen([name]):
            raise unknown("operator", name, benchmark.CASES)
    if options.threads:
        torch.set_num_threads(options.threads)
    size = benchmark.Size(
        batch=options.batch, length=options.length, heads=options.heads, width=options.width, device=options.device
    )
    names = benchmark.chosen(options.names)
    speeds = benchmark.compare_forms(names, size, options.repeats)
    title = f"Training step, {size.batch} x {size.length} x {size.width}, {size.device}"
    print_speeds(speeds, f"{title}, {torch.get_num_threads()} threads")
    memories = []
    if options.memory:
        small = benchmark.Size(batch=1, heads=options.heads, width=options.width, device=options.device)
        memories = [benchmark.memory_growth(name, small) for name in names if benchmark.CASES[name].linear]
        print_memories(memories, "Peak memory (MiB) of a training step by tokens, one sequence: live tensors")
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "size": vars(size),
        "speed": [row._asdict() for row in speeds],
        "memory": [row._asdict() for row in memories],
    }


if __name__ == "__main__":
    sys.exit(main())
