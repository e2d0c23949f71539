"""Lightning's Trainer from our configuration: its engine, without its chatter and its guesses."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from apps.core.checkpoints.io import AtomicCheckpointIO
from apps.core.config import AppConfig, TrainerConfig
from graftwork.errors import ConfigError, MissingPackageError


def build_trainer(
    config: AppConfig,
    folder: Path,
    *,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    validate: bool = True,
) -> pl.Trainer:
    """The Trainer of a run.

    Args:
        config: The app's configuration.
        folder: The run's folder.
        callbacks: What happens around the steps.
        loggers: Where numbers go.
        validate: Whether there is a validation split.

    Raises:
        ConfigError: The machine does not have what ``trainer`` asks for, or its options contradict each other.
    """
    quiet()
    settings = config.trainer
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        trainer = pl.Trainer(
            **_options(settings),
            gradient_clip_val=config.optim.clip_norm or None,
            limit_val_batches=settings.limit_val_batches if validate else 0,
            callbacks=list(callbacks),
            logger=list(loggers) or False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            use_distributed_sampler=False,  # our samplers share the samples out themselves
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks),
            enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        )
    except (MisconfigurationException, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = _option_at_fault(first, settings)
        raise ConfigError(first.rstrip("."), where, "Run doctor to see what this machine has") from error
    if settings.sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise ConfigError(
            f"torch shares statistics between GPUs alone, and these are {trainer.world_size} processes on CPUs",
            "trainer.sync_batchnorm",
            "Leave it at false",
        )
    return trainer


def refuse_impossible(config: AppConfig, task: str) -> None:
    """Stop before the data is read where this machine, or the way it was started, cannot do what is asked for.

    Args:
        config: The app's configuration.
        task: Name of the app, for the command to use instead.

    Raises:
        ConfigError: Several machines are asked for, and no launcher has started this process on each.
        MissingPackageError: ``torch.compile`` lacks a package.
    """
    settings = config.trainer
    if settings.num_nodes > 1 and not any(os.environ.get(name) for name in _LAUNCHED):
        raise ConfigError(
            f"num_nodes={settings.num_nodes}, but only this process was started; it would wait for the others forever",
            "trainer",
            f"Start it on each machine: torchrun --nnodes {settings.num_nodes} --nproc_per_node {settings.devices} "
            f"--rdzv_backend c10d --rdzv_endpoint HOST:29500 -m apps.{task} fit ...; or use srun",
        )
    if settings.compile and importlib.util.find_spec("setuptools") is None:
        raise MissingPackageError(
            "trainer.compile=True needs the package 'setuptools'",
            mend="Install it with: pip install setuptools; or drop --trainer.compile",
        )


_LAUNCHED = ("MASTER_ADDR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")


def _option_at_fault(message: str, settings: TrainerConfig) -> str:
    """Key of the option that Lightning's message speaks of; the section where it cannot be told."""
    text = message.lower()
    options = ("precision", "strategy", "accelerator", "devices", "num_nodes", "max_epochs")
    quoted = {name: f"'{getattr(settings, name)}'".lower() for name in options}
    found = [name for name, value in quoted.items() if value != "'auto'" and value in text]
    found += [name for name in options if name in text]
    return f"trainer.{found[0]}" if found else "trainer"


def _options(settings: TrainerConfig) -> dict[str, Any]:
    """Options that have the same meaning here and there. ``max_steps`` is ours, see ``StepLimit``."""
    same = (
        "max_epochs accelerator num_nodes strategy accumulate_grad_batches check_val_every_n_epoch "
        "limit_train_batches limit_test_batches log_every_n_steps deterministic precision sync_batchnorm"
    )
    options = {name: getattr(settings, name) for name in same.split()}
    return {**options, "devices": parse_devices(settings.devices)}


def parse_devices(devices: int | str) -> int | str | list[int]:
    """``2`` and ``"2"`` are a number, ``"0,1"`` is a list, anything else (``auto``) goes to Lightning as it is.

    Raises:
        ConfigError: A list with something else than numbers in it.
    """
    if isinstance(devices, int):
        return devices
    text = devices.strip().strip("[]")
    if "," in text:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not all(part.isdigit() for part in parts):
            raise ConfigError(f"'{devices}' is no list of devices", "trainer.devices", "Write it like 0,1")
        return [int(part) for part in parts]
    return int(text) if text.lstrip("-").isdigit() else devices


def quiet() -> None:
    """Silence Lightning's tips and the warnings about things that are meant to be as they are."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("pytorch_lightning", "lightning_fabric", "torch.optim.lr_scheduler", "torch.utils.data"):
        warnings.filterwarnings("ignore", module=module.replace(".", r"\."))
