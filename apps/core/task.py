"""What the core knows of an app: dotted names and defaults, no imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from graftwork.components import Registry, import_dotted

VERBS = {
    "fit": "train, validate, keep best and last checkpoints, test the best, write a report",
    "validate": "metrics on the validation split",
    "test": "metrics on the test split beside the baseline and the published value",
    "predict": "apply trained weights to a file",
    "export": "write an ONNX file and check it number by number",
    "benchmark": "latency, throughput, peak memory, parameters and FLOPs",
    "doctor": "check this machine and the dataset, estimate memory and time",
}


@dataclass(frozen=True)
class Task:
    """One app, as the core sees it.

    Args:
        name: Folder below ``apps/``: ``"forecasting"``.
        title: One line for listings.
        config: The app's configuration dataclass, a subclass of ``AppConfig`` with ``data`` and ``model`` components.
        module: Dotted path of the LightningModule, ``cls(config, info)`` with the datamodule's ``info``.
        predictor: Dotted path of a class ``cls(module)`` with ``__call__(array)`` and ``predict_file(input, output)``.
        registries: Names to list in the help: ``{"models": MODELS}``.
        monitor: Logged name that picks the best checkpoint.
        mode: Whether the smallest or largest monitored value is best.
    """

    name: str
    title: str
    config: type
    module: str
    predictor: str
    registries: Mapping[str, Registry] = field(default_factory=dict)
    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"

    def module_class(self) -> Any:
        """The app's LightningModule class (imports torch)."""
        return import_dotted(self.module)

    def predictor_class(self) -> Any:
        """The app's predictor class (imports torch)."""
        return import_dotted(self.predictor)


@dataclass(frozen=True)
class VerbOptions:
    """Options of one call that are not part of the configuration.

    Args:
        argv: The words after ``python -m apps.<task>``, for the record.
        resume: ``"last"`` or the path of a checkpoint to go on from.
        weights: ``PATH``, ``official:PATH`` or ``zoo:NAME``.
        input: File or folder that ``predict`` reads.
        output: File or folder that ``predict`` and ``export`` write.
        format: Export format.
        checkpoint_config: Raw configuration stored in the weights, where they are a checkpoint of ours.
        config_text: Resolved configuration as YAML, as ``--print_config`` shows it.
    """

    argv: tuple[str, ...] = ()
    resume: str = ""
    weights: str = ""
    input: str = ""
    output: str = ""
    format: str = "onnx"
    json: str = ""
    checkpoint_config: Mapping[str, Any] | None = None
    config_text: str = ""

    @property
    def output_path(self) -> Path | None:
        """``output`` as a path, or None."""
        return Path(self.output) if self.output else None
