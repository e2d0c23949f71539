"""Whether an exported file computes what the model computes, at every example shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.core.protocols import ExportSpec

Arrays = list[NDArray[Any]]
Runner = Callable[[Mapping[str, Tensor]], Arrays]


@dataclass(frozen=True)
class Check:
    """One output at one shape.

    Args:
        shapes: Shapes of the inputs, as text.
        output: Name of the output.
        ok: Whether it agrees within the tolerances.
        abs_error: Largest absolute error; NaN where there is none to speak of.
        rel_error: Largest relative error.
        reason: Why there is nothing to compare; empty otherwise.
    """

    shapes: str
    output: str
    ok: bool
    abs_error: float = float("nan")
    rel_error: float = float("nan")
    reason: str = ""


def check(spec: ExportSpec, run: Runner) -> list[Check]:
    """Compare the exported file with the model at all example shapes.

    Args:
        spec: Model, examples and tolerances.
        run: Runs the exported file on named inputs and gives its outputs in order.
    """
    return [row for example in spec.examples for row in _check_example(spec, run, example)]


def _check_example(spec: ExportSpec, run: Runner, example: Mapping[str, Tensor]) -> list[Check]:
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in example.items())
    try:
        found = run(example)
    except Exception as error:  # whatever a runtime raises at a shape is the answer for that shape
        return [Check(shapes, name, False, reason=first_line(error)) for name in spec.outputs]
    expected = model_outputs(spec.module, example)
    if len(found) != len(spec.outputs) or len(expected) != len(spec.outputs):
        reason = f"{len(found)} outputs in the file, {len(expected)} of the model, {len(spec.outputs)} named"
        return [Check(shapes, name, False, reason=reason) for name in spec.outputs]
    pairs = zip(spec.outputs, found, expected, strict=True)
    return [compare(shapes, name, ours, theirs, spec.rtol, spec.atol) for name, ours, theirs in pairs]


def model_outputs(module: torch.nn.Module, example: Mapping[str, Tensor]) -> Arrays:
    """What the model itself gives, as arrays."""
    with torch.no_grad():
        outputs = module(**example)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return [output.cpu().numpy() for output in outputs]


def compare(shapes: str, name: str, found: NDArray[Any], expected: NDArray[Any], rtol: float, atol: float) -> Check:
    """Compare one array: |found - expected| <= atol + rtol * |expected|, NaN only where the model has NaN."""
    if found.shape != expected.shape:
        return Check(shapes, name, False, reason=f"shape {found.shape}, the model gives {expected.shape}")
    if not expected.size:
        return Check(shapes, name, True, 0.0, 0.0)
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    ok = bool(np.allclose(ours, theirs, rtol=rtol, atol=atol, equal_nan=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(ours == theirs, 0.0, np.abs(ours - theirs))  # equal infinities differ by nothing
        relative = error / np.maximum(np.abs(theirs), np.finfo(np.float32).tiny)
    finite = np.isfinite(theirs) & np.isfinite(ours)
    if not finite.any():
        return Check(shapes, name, ok, reason="" if ok else "not finite")
    large = finite & (np.abs(theirs) > atol)  # the relative error of what is nearly zero says nothing
    worst = float(relative[large].max()) if large.any() else 0.0
    reason = "" if ok or np.isfinite(ours).all() else "not finite"
    return Check(shapes, name, ok, float(error[finite].max()), worst, reason)


def table(checks: Sequence[Check]) -> list[list[str]]:
    """Checks as rows of text, a header first."""
    rows = [["inputs", "output", "max abs error", "max rel error", "verdict"]]
    for row in checks:
        verdict = "equal" if row.ok else f"DIFFERS{': ' if row.reason else ''}{row.reason}"
        rows.append([row.shapes, row.output, _error(row.abs_error), _error(row.rel_error), verdict])
    return rows


def first_line(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line; of a chain of errors the one that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def _error(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1e}"
