"""Trained modules: the one way in which predict, export, benchmark and Python users get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from apps.core.checkpoints.agreement import refuse_other_data
from apps.core.checkpoints.read import WeightsMeta, resolve_weights, stored_config
from apps.core.cli.schema import to_plain
from apps.core.task import Task, VerbOptions
from backbones.vision.create import without_initial_weights
from graftwork.errors import ConfigError, UserError, WeightsError


class Loaded(NamedTuple):
    """A module in evaluation mode, and where it comes from.

    Args:
        module: The app's LightningModule.
        info: Facts about the data that it was built with.
        datamodule: Where these came from the data instead of the weights; None otherwise.
        meta: What the weights say of themselves; None where there were none.
    """

    module: Any
    info: Any
    datamodule: Any = None
    meta: WeightsMeta | None = None


def load_module(task: Task, config: Any, options: VerbOptions, *, need_weights: bool = False) -> Loaded:
    """The configured module with the weights of ``options.weights``, or freshly initialised without any.

    Facts about the data come from the weights where they hold them, so that no data is needed; else from the data.

    Args:
        task: The app.
        config: Its resolved configuration.
        options: Names the weights.
        need_weights: Whether weights that were never trained are of no use.

    Raises:
        UserError: Weights are needed and none are given.
        ConfigError: The configuration asks for other sizes of the data than the weights were trained with.
        WeightsError: They cannot be read or do not fit the model.
        DataError: The data is needed and cannot be read.
    """
    if not options.weights:
        if need_weights:
            raise UserError(
                "no trained weights given", where="--weights", mend="Give a checkpoint or a run folder of fit"
            )
        return _fresh(task, config)
    state, meta = resolve_weights(options.weights, task.name)
    refuse_other_data(meta.config, meta.info, to_plain(config).get("data") or {}, str(meta.path))
    with without_initial_weights():
        loaded = Loaded(_module(task, config, meta.info), meta.info) if meta.info is not None else _fresh(task, config)
    loaded.module.load_weights(state, meta)
    return loaded._replace(meta=meta)


def load(task: str, weights: str | Path, device: str = "auto") -> Any:
    """A predictor for Python: ``load("forecasting", "runs/forecasting/demo/20261103-142501")(array)``.

    Args:
        task: Name of the app.
        weights: A checkpoint or exported weights of ours, a run folder, or ``zoo:NAME``.
        device: Where to run; ``auto`` takes a GPU if there is one.

    Returns:
        The app's predictor: call it with an array, or use ``predict_file(input, output)``.

    Raises:
        ConfigError: There is no such app, or no such device.
        WeightsError: The weights cannot be read, or do not know their configuration.
    """
    from apps.core.cli.resolve import config_from_plain
    from apps.core.cli.tasks import get_task

    found = get_task(task)
    stored = stored_config(weights, task)
    if stored is None:
        raise WeightsError(
            "does not hold the configuration of its model",
            where=str(weights),
            mend=f"Use python -m apps.{task} predict with --config, or give a checkpoint of a run",
        )
    config = config_from_plain(found.config, stored)
    loaded = load_module(found, config, VerbOptions(weights=str(weights)), need_weights=True)
    return found.predictor_class()(loaded.module.to(choose_device(device)))


def choose_device(accelerator: str) -> torch.device:
    """The device that Lightning would take for an accelerator's name, or the torch device of that name.

    Raises:
        ConfigError: There is no such device here.
    """
    if accelerator in ("auto", "gpu", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        if accelerator != "cuda" and torch.backends.mps.is_available():
            return torch.device("mps")
        if accelerator == "auto":
            return torch.device("cpu")
    try:
        device = torch.device(accelerator)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        mend = "Use auto or cpu, or see: python -m apps.<task> doctor"
        raise ConfigError(f"there is no device '{accelerator}' here", mend=mend) from error
    return device


def _fresh(task: Task, config: Any) -> Loaded:
    datamodule = config.data.build(seed=config.seed)
    datamodule.setup()
    return Loaded(_module(task, config, datamodule.info), datamodule.info, datamodule)


def _module(task: Task, config: Any, info: Any) -> Any:
    with torch.random.fork_rng(devices=[]):  # a caller's random numbers stay as they were
        torch.manual_seed(config.seed)
        return task.module_class()(config, info).eval()
