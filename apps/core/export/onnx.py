"""The verb ``export``: one ONNX (or ``.pt2``) file with everything in it, checked against the model."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

import graftwork
from apps.core.checkpoints.read import FROM_ZOO, WeightsMeta
from apps.core.export.check import Arrays, Check, Runner, check, table
from apps.core.export.graph import cannot_export, dynamic_shapes, pt2_runner, quiet, write_pt2
from apps.core.inference.load import load_module
from apps.core.protocols import ExportSpec
from apps.core.report.numbers import size
from apps.core.report.table import print_table
from apps.core.run.atomic import check_place
from apps.core.task import Task, VerbOptions
from graftwork.errors import missing_package
from graftwork.names import unknown

log = logging.getLogger(__name__)


class Format(NamedTuple):
    """A kind of file.

    Args:
        suffix: Its suffix.
        write: Writes a spec with metadata to a path.
        runner: Opens the file for checking.
        packages: Packages that it needs.
    """

    suffix: str
    write: Callable[[ExportSpec, Path, Mapping[str, str]], None]
    runner: Callable[[Path, ExportSpec], Runner]
    packages: tuple[str, ...]


def export(task: Task, config: Any, options: VerbOptions) -> int:
    """Write the trained model as a file and check it at several shapes.

    Args:
        task: The app.
        config: Its resolved configuration.
        options: ``weights``, ``output`` and ``format``.

    Returns:
        0, or 1 where the file differs from the model: it then is kept as ``<name>.failed<suffix>``.

    Raises:
        UserError: Unknown format, a missing package, no usable weights, or a model that cannot be exported.
    """
    form = formats(options.format)
    wanted = named_output(options.output, form.suffix)
    loaded = load_module(task, config, options, need_weights=True)
    path = wanted or default_output(task, options.weights, loaded.meta, form.suffix)
    check_place(path, "--output")
    spec = loaded.module.eval().cpu().export_spec()
    metadata = {
        "task": task.name,
        "config": options.config_text,
        "graftwork": graftwork.__version__,
        "torch": str(torch.__version__),
        "weights": options.weights,
        **spec.notes,
    }
    checks, written = export_checked(spec, path, form, metadata)
    console = Console()
    print_table(table(checks), f"{options.format} against the model (rtol {spec.rtol:g}, atol {spec.atol:g})", console)
    return _conclude(checks, written, console)


def formats(name: str) -> Format:
    """The format called ``name``.

    Raises:
        ConfigError: There is no such format.
        MissingPackageError: It needs a package that is not installed.
    """
    known = {
        "onnx": Format(".onnx", write_onnx, onnx_runner, ("onnx", "onnxscript", "onnxruntime")),
        "pt2": Format(".pt2", write_pt2, pt2_runner, ()),
    }
    if name not in known:
        raise unknown("export format", name, known, where="--format")
    for package in known[name].packages:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "export", f"export --format {name}")
    return known[name]


def export_checked(spec: ExportSpec, path: Path, form: Format, metadata: Mapping[str, str]) -> tuple[list[Check], Path]:
    """Write a file beside its place, check it there, and only then put it in its place.

    Returns:
        The checks, and where the file is: ``path`` if all agree, else ``<name>.failed<suffix>``.
    """
    spec.module.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished{form.suffix}")
    try:
        form.write(spec, unfinished, metadata)
        checks = check(spec, form.runner(unfinished, spec))
        failed = path.with_name(f"{path.stem}.failed{form.suffix}")
        target = path if all(row.ok for row in checks) else failed
        unfinished.replace(target)
        if target is path:
            failed.unlink(missing_ok=True)
    finally:
        unfinished.unlink(missing_ok=True)
    return checks, target


def write_onnx(spec: ExportSpec, path: Path, metadata: Mapping[str, str]) -> None:
    """Write one ONNX file, weights and metadata inside.

    Raises:
        UserError: The exporter refuses the model; the message gives the reason.
    """
    import onnx

    try:
        with quiet():
            program = torch.onnx.export(
                spec.module,
                args=(),
                kwargs=dict(spec.examples[0]),
                dynamo=True,
                dynamic_shapes=dynamic_shapes(spec),
                input_names=list(spec.examples[0]),
                output_names=list(spec.outputs),
                external_data=False,
                verbose=False,
            )
        model = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # the exporter raises errors of many kinds
        raise cannot_export(spec, error) from error
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, str(path))


def onnx_runner(path: Path, spec: ExportSpec) -> Runner:
    """Runs an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # a refused shape is reported by the check, once
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(example: Mapping[str, Tensor]) -> Arrays:
        feeds = {name: example[name].detach().cpu().numpy() for name in names}  # inputs that nothing reads are gone
        return list(session.run(list(spec.outputs), feeds))

    return run


def named_output(output: str, suffix: str) -> Path | None:
    """The file that ``--output`` means, ``FOLDER/model.onnx`` for a folder; None where it is not given.

    Raises:
        UserError: It cannot be written.
    """
    if not output:
        return None
    path = Path(output)
    path = path / f"model{suffix}" if path.is_dir() or output.endswith(os.sep) else path
    check_place(path, "--output")
    return path


def default_output(task: Task, weights: str, meta: WeightsMeta | None, suffix: str) -> Path:
    """Beside weights of the user's own; for others in the current folder, under the name of the task."""
    if meta is None or meta.official or weights.startswith(FROM_ZOO):
        return Path(f"{task.name}{suffix}")
    return meta.path.with_suffix(suffix)


def _conclude(checks: list[Check], written: Path, console: Console) -> int:
    wrong = [row for row in checks if not row.ok]
    facts = f"{written} ({size(written.stat().st_size)})"
    if not wrong:
        console.print(f"wrote {facts}: equal to the model at all shapes", markup=False, highlight=False, soft_wrap=True)
        return 0
    text = f"{len(wrong)} of {len(checks)} outputs differ from the model; kept as {facts}, not for use"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 1
