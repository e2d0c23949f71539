"""Tracing: dynamic axes, and ``torch.export`` files (``.pt2``)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.core.export.check import Arrays, Runner, first_line
from apps.core.protocols import ExportSpec
from graftwork.errors import UserError

DynamicShapes = dict[str, dict[int, Any]]


def dynamic_shapes(spec: ExportSpec) -> DynamicShapes:
    """The axes that may change, those of one name tied together, as ``torch.export`` wants them."""
    names = {name for axes in spec.dynamic.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name) for name in names}
    inputs = spec.examples[0]
    return {key: {axis: dims[name] for axis, name in spec.dynamic.get(key, {}).items()} for key in inputs}


def trace(spec: ExportSpec) -> torch.export.ExportedProgram:
    """The model as a graph for every size of the dynamic axes.

    Raises:
        UserError: It cannot be traced; the message gives the reason.
    """
    try:
        with quiet():
            return torch.export.export(
                spec.module, args=(), kwargs=dict(spec.examples[0]), dynamic_shapes=dynamic_shapes(spec), strict=False
            )
    except Exception as error:  # tracing raises errors of many kinds, none of them public
        raise cannot_export(spec, error) from error


def cannot_export(spec: ExportSpec, error: Exception) -> UserError:
    """The error for a model that the exporter refuses."""
    return UserError(
        f"this model cannot be exported: {first_line(error)}",
        where=type(spec.module).__name__,
        mend="Parts that loop over data or change shape with values cannot be traced; --debug shows the place",
    )


def write_pt2(spec: ExportSpec, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a ``torch.export`` file."""
    with quiet():
        torch.export.save(trace(spec), path, extra_files=dict(metadata))


def pt2_runner(path: Path, spec: ExportSpec) -> Runner:
    """Runs a ``torch.export`` file."""
    with quiet():
        loaded = torch.export.load(path).module()

    def run(example: Mapping[str, Tensor]) -> Arrays:
        with torch.no_grad():
            outputs = loaded(**example)
        return [output.cpu().numpy() for output in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own insides from the user."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
