"""The parts of a run, put together from the configuration: data, module, name, progress."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl

from apps.core.cli.schema import to_plain
from apps.core.config import AppConfig
from apps.core.run.module import GraftModule
from apps.core.run.randomness import seed_place
from apps.core.task import Task, VerbOptions
from backbones.vision.create import without_initial_weights


def default_name(config: AppConfig) -> str:
    """Name of a run that has none: ``<data>_<model>``."""
    plain = to_plain(config)
    names = [
        part["name"] for part in (plain.get("data"), plain.get("model")) if isinstance(part, dict) and "name" in part
    ]
    return config.run.name or "_".join(name.rpartition(".")[2] for name in names) or "run"


def prepared_data(config: AppConfig) -> Any:
    """The datamodule, with its data read.

    Raises:
        DataError: The data is missing or unsuitable.
    """
    data = config.data.build(seed=config.seed)
    data.setup()
    return data


def prepared_module(task: Task, config: AppConfig, options: VerbOptions, data: Any) -> GraftModule:
    """The module with weights that depend on the seed alone, or with those that its configuration begins with."""
    seed_place(config.seed, "init")
    with without_initial_weights() if options.weights else nullcontext():
        module: GraftModule = task.module_class()(config, data.info)
    module.story = {"task": task.name, "config": to_plain(config), "config_text": options.config_text}
    if config.trainer.compile:
        module.model.compile()
    return module


def progress() -> list[pl.Callback]:
    """The progress bar."""
    from apps.core.callbacks.progress import RunProgress

    return [RunProgress()]
