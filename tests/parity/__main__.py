"""``python -m tests.parity [DIR ...] [--json FILE] [--filter SUBSTR]``: compare our systems with golden cases."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from graftwork.errors import UserError
from tests.parity.case import find_cases
from tests.parity.certificate import HEADER, counts, row, write
from tests.parity.runner import run_case

GOLDENS = Path(__file__).resolve().parents[3] / "shared" / "goldens"


def main(arguments: list[str] | None = None) -> int:
    """Run the cases.

    Returns:
        0 if every case passes; 1 if one fails, has no adapter, or none is found; 2 for a mistake in the arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "roots", nargs="*", type=Path, metavar="DIR", help="folders or json files (default ../shared/goldens)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome as a certificate")
    parser.add_argument(
        "--filter", default="", metavar="SUBSTR", help="cases whose area/system/part/case contains this"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of adapters that raise")
    options = parser.parse_args(arguments)
    try:
        cases = find_cases(options.roots or [GOLDENS])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    cases = [c for c in cases if options.filter in f"{c.area}/{c.system}/{c.part}/{c.name}"]
    if not cases:
        print("no golden case found", file=sys.stderr)
        return 1
    print(HEADER)
    results = []
    for case in cases:
        results.append(run_case(case))
        print(row(results[-1]), flush=True)
        if options.debug and results[-1].details:
            print(results[-1].details)
    print(", ".join(f"{count} {name}" for name, count in counts(results).items()))
    if options.json:
        write(results, options.json)
    return 0 if all(result.status == "pass" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
