"""The verb ``predict``: trained weights applied to a file."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from apps.core.inference.load import choose_device, load_module
from apps.core.report.numbers import duration, size
from apps.core.run.atomic import check_place
from apps.core.task import Task, VerbOptions
from graftwork.errors import UserError


def predict(task: Task, config: Any, options: VerbOptions) -> int:
    """Read ``--input``, write the prediction, and say what was written.

    Args:
        task: The app.
        config: Its resolved configuration.
        options: ``weights``, ``input`` and ``output``.

    Returns:
        0.

    Raises:
        UserError: No input, no usable weights, or an input that does not fit the model.
    """
    if not options.input:
        raise UserError("no file to predict on", where="--input", mend="Give a file, for example --input data.csv")
    if not Path(options.input).exists():
        raise UserError("no such file or folder", where=options.input, mend="Check --input")
    if options.output:
        check_place(Path(options.output), "--output", folder=True)
    loaded = load_module(task, config, options, need_weights=True)
    predictor = task.predictor_class()(loaded.module.to(choose_device(config.trainer.accelerator)))
    started = time.perf_counter()
    written = predictor.predict_file(options.input, options.output or None)
    console = Console()
    for path in paths(written):
        facts = f"wrote {path} ({size(path.stat().st_size)})" if path.is_file() else f"wrote {path}"
        console.print(facts, markup=False, highlight=False, soft_wrap=True)
    console.print(f"in {duration(time.perf_counter() - started)}", highlight=False)
    return 0


def paths(written: Any) -> list[Path]:
    """What a predictor says it wrote, as a list."""
    if written is None:
        return []
    if isinstance(written, str | Path):
        return [Path(written)]
    return [Path(path) for path in written] if isinstance(written, Iterable) else []
