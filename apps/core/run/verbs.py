"""From a verb to the code that does it; only what the verb needs is imported."""

from __future__ import annotations

from typing import Any

from apps.core.task import VERBS, Task, VerbOptions
from graftwork.names import unknown


def run_verb(task: Task, verb: str, config: Any, options: VerbOptions) -> int:
    """Run a verb of an app.

    Args:
        task: The app.
        verb: One of :data:`apps.core.task.VERBS`.
        config: The app's resolved configuration.
        options: What else was given on the command line.

    Returns:
        Exit code: 0 done, 1 a check failed, 143 or 130 stopped by SIGTERM or Ctrl-C with a checkpoint to go on from.

    Raises:
        UserError: Something that the user can mend.
    """
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    _choose_attention(config.attention)
    if verb == "fit":
        from apps.core.run.fit import fit

        return fit(task, config, options)
    if verb == "validate" or verb == "test":
        from apps.core.run.evaluate import evaluate

        return evaluate(task, config, options, "validate" if verb == "validate" else "test")
    return _other(task, verb, config, options)


def _other(task: Task, verb: str, config: Any, options: VerbOptions) -> int:
    if verb == "predict":
        from apps.core.inference.predict import predict

        return int(predict(task, config, options))
    if verb == "export":
        from apps.core.export.onnx import export

        return int(export(task, config, options))
    if verb == "benchmark":
        from apps.core.run.benchmark import benchmark

        return int(benchmark(task, config, options))
    from apps.core.run.doctor import doctor

    return int(doctor(task, config, options))


def _choose_attention(name: str) -> None:
    """Let ``attention`` of the configuration be the default of this process."""
    from backbones.attention import set_default

    set_default(None if name == "auto" else name)
