"""The outcome of a run as rows on the screen and as a json file."""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import graftwork
from tests.parity.runner import Result

HEADER = f"{'system':<24} {'part / case':<34} {'worst/tol':>10}  {'result':<10} {'time':>7}"


def row(result: Result) -> str:
    """One line per case; a second one says why it failed."""
    case, worst = result.case, result.worst
    ratio = "-" if worst is None else f"{worst[1].ratio:.3g}"
    name = f"{case.part}: {case.name}" if case.part else case.name
    line = f"{case.system:<24} {name:<34} {ratio:>10}  {result.status:<10} {result.seconds:>6.2f}s"
    return f"{line}\n    {result.message}" if result.message else line


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many passed, failed, and have no adapter."""
    statuses = [result.status for result in results]
    return {
        "passed": statuses.count("pass"),
        "failed": statuses.count("FAIL"),
        "no adapter": statuses.count("no adapter"),
    }


def certificate(results: Sequence[Result]) -> dict[str, Any]:
    """Everything a reader needs to trust, or to repeat, the run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "graftwork": graftwork.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.platform(),
        },
        **counts(results),
        "cases": [_entry(result) for result in results],
    }


def write(results: Sequence[Result], path: Path) -> None:
    """Write the certificate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(certificate(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _entry(result: Result) -> dict[str, Any]:
    worst = result.worst
    return {
        "area": result.case.area,
        "system": result.case.system,
        "part": result.case.part,
        "case": result.case.name,
        "sha256": result.case.digest,
        "result": result.status,
        "worst_over_tolerance": _number(worst[1].ratio) if worst else None,
        "worst_tensor": worst[0] if worst else None,
        "seconds": round(result.seconds, 3),
        "message": result.message,
        "tensors": {
            name: {"over_tolerance": _number(error.ratio), "max_abs_error": _number(error.absolute), "note": error.note}
            for name, error in result.errors.items()
        },
    }


def _number(value: float) -> float | None:
    """Json knows no infinity: null."""
    return value if math.isfinite(value) else None
