"""Runs golden cases through adapters and compares every output."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tests.parity import adapters
from tests.parity.case import Case
from tests.parity.tolerance import Error, Tolerance, missing

Adapter = Callable[[Case], dict[str, Tensor]]
Status = Literal["pass", "FAIL", "no adapter"]


@dataclass
class Result:
    """What became of a case.

    Args:
        case: The case.
        status: ``pass``, ``FAIL`` or ``no adapter``.
        errors: Name of an output to its error.
        seconds: Wall time.
        message: Why it failed, one line.
        details: Traceback of an adapter that raised.
    """

    case: Case
    status: Status
    errors: dict[str, Error] = field(default_factory=dict)
    seconds: float = 0.0
    message: str = ""
    details: str = ""

    @property
    def worst(self) -> tuple[str, Error] | None:
        """The output furthest from its golden, with its error."""
        key = lambda item: math.inf if math.isnan(item[1].ratio) else item[1].ratio  # noqa: E731
        return max(self.errors.items(), key=key, default=None)


def run_case(case: Case) -> Result:
    """Run one case; an adapter that raises makes it fail."""
    adapter = adapters.find(case.area, case.system, case.part)
    if adapter is None:
        return Result(case, "no adapter")
    begin = time.perf_counter()
    torch.manual_seed(0)
    try:
        outputs = adapter(case)
    except Exception as error:  # a broken case must not hide the others
        message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        seconds = time.perf_counter() - begin
        return Result(case, "FAIL", seconds=seconds, message=message, details=traceback.format_exc())
    errors = compare(case, outputs)
    result = Result(case, "pass", errors, time.perf_counter() - begin)
    bad = [
        f"{name} ({error.note or f'{error.ratio:.3g} x tolerance'})"
        for name, error in errors.items()
        if not error.passes
    ]
    if bad or not errors:
        result.status = "FAIL"
        result.message = ", ".join(bad[:6]) + (f" and {len(bad) - 6} more" if len(bad) > 6 else "")
        result.message = result.message or "the case has no outputs to compare"
    return result


def compare(case: Case, outputs: dict[str, Tensor]) -> dict[str, Error]:
    """Error of every golden output; one that the adapter does not give counts as infinitely wrong."""
    tolerance = Tolerance.of(case.meta.get("tolerance") or {})
    return {
        name: tolerance.error(name, outputs[name], golden) if name in outputs else missing()
        for name, golden in case.expected.items()
    }
