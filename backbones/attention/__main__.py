"""Which attention backends are usable here and why the others are not; with ``benchmark``, what the operators cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backbones.tables import print_memories, print_speeds, print_table, write_rows
from graftwork.errors import ConfigError, UserError
from graftwork.names import unknown


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "benchmark":
            _benchmark(options)
        else:
            _explain(options.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backbones.attention", description=__doc__)
    parser.add_argument("--device", help="device to probe, e.g. cpu or cuda:1 (default: a GPU if there is one)")
    verbs = parser.add_subparsers(dest="verb")
    text = "time each operator's fast form against its literal one, forward and forward with backward"
    verb = verbs.add_parser("benchmark", help=text, description=text)
    verb.add_argument("names", nargs="*", metavar="NAME", help="operators (default: all), e.g. neighborhood_attention")
    verb.add_argument("--repeats", type=int, default=5, help="measured runs of each form (default: %(default)s)")
    verb.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    verb.add_argument("--memory", action="store_true", help="also peak memory, and its growth from 28x28 to 224x224")
    verb.add_argument("--output", type=Path, metavar="FILE", help="write the rows there, too: .csv or .json")
    return parser


def _explain(device: str | None) -> None:
    from rich.console import Console

    from backbones.attention import dispatch

    rows, wanted = dispatch.explain(device), dispatch.wish()
    cells = [
        (row.backend, "yes" if row.dtypes else "no", ", ".join(row.dtypes) or "-", row.reason or "-") for row in rows
    ]
    print_table(("backend", "usable", "types", "why not"), cells, f"Attention backends on {rows[0].device}")
    source = f", wanted by {wanted[1]}" if wanted[1] else ": the fastest that can serve a call"
    Console().print(f"In force: {wanted[0]}{source}", highlight=False)


def _benchmark(options: argparse.Namespace) -> None:
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} must be at least 1")

    import torch

    from backbones.attention import benchmark

    for name in options.names:
        if not benchmark.chosen([name]):
            raise unknown("operator", name, benchmark.CASES)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or "cpu"
    names, where = benchmark.chosen(options.names), f"{device}, {torch.get_num_threads()} threads"
    print_table(("operator", "measured at"), [(name, benchmark.CASES[name].what) for name in names])
    forward = benchmark.speeds(names, options.repeats, device)
    print_speeds(forward, f"Forward pass, {where}")
    training = benchmark.speeds(names, options.repeats, device, train=True)
    print_speeds(training, f"Forward and backward, {where}")
    rows = [
        {**row._asdict(), **{f"train_{key}": value for key, value in step._asdict().items() if key != "name"}}
        for row, step in zip(forward, training, strict=True)
    ]
    if options.memory:
        for row, peak in zip(rows, _memory(names, device), strict=True):
            row |= peak
    write_rows(rows, options.output, {"torch": torch.__version__, "threads": torch.get_num_threads()})


def _memory(names: list[str], device: str) -> list[dict[str, object]]:
    from backbones.attention import benchmark

    forward, peaks = (benchmark.peaks(names, device, train=train) for train in (False, True))
    for rows, title in ((forward, "Peak memory of forward"), (peaks, "Peak memory of forward and backward")):
        cells = [(p.name, f"{p.fast / 2**20:.1f}", f"{p.math / 2**20:.1f}", f"{p.math / p.fast:.1f}") for p in rows]
        print_table(("operator", "fast MiB", "math MiB", "math / fast"), cells, title)
    growths = [benchmark.memory_growth(name, device=device) for name in names if benchmark.CASES[name].linear]
    print_memories(growths, "Peak memory (MiB) of forward and backward by positions of the map")
    exponents = {growth.name: growth.exponent for growth in growths}
    return [
        {
            "forward_fast_bytes": ahead.fast,
            "forward_math_bytes": ahead.math,
            "fast_bytes": p.fast,
            "math_bytes": p.math,
            "growth": exponents.get(p.name),
        }
        for ahead, p in zip(forward, peaks, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
