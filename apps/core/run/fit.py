"""Train, keep best and last, test the best, write the report; go on where an earlier run stopped."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from apps.core.callbacks.averaging import MovingAverage
from apps.core.callbacks.finite import FiniteGuard
from apps.core.callbacks.interruption import Interrupted, Interruption
from apps.core.callbacks.memory import memory_explained
from apps.core.callbacks.stopping import Patience, StepLimit
from apps.core.callbacks.timing import Timing
from apps.core.callbacks.training_log import TrainingLog
from apps.core.callbacks.writing import CheckpointWriter
from apps.core.checkpoints.agreement import CHOSEN
from apps.core.checkpoints.io import AtomicCheckpointIO
from apps.core.checkpoints.read import ENTRY, WeightsMeta, read_checkpoint, resolve_weights, stored_meta
from apps.core.config import AppConfig
from apps.core.run.assembly import default_name, prepared_data, prepared_module, progress
from apps.core.run.evaluate import finish, note_attention, score_split
from apps.core.run.folder import RunFolder
from apps.core.run.loggers import MetricsFile, build_loggers, closing
from apps.core.run.module import GraftModule, misfits
from apps.core.run.processes import is_first_process
from apps.core.run.provenance import provenance
from apps.core.run.trainer import build_trainer, refuse_impossible
from apps.core.task import Task, VerbOptions
from graftwork.errors import ConfigError, UserError, WeightsError

log = logging.getLogger(__name__)

GROUPING = ("optim.layer_decay", "optim.backbone_factor")
"""Options by which parameters come into groups, which a checkpoint of the optimiser must fit."""
# sections that a resumed run may change without a word
_FREE = ("run.", "log.", "checkpoint.", "trainer.", "published")


class Start(NamedTuple):
    """Where a run begins.

    Args:
        folder: Its folder.
        checkpoint: What it goes on from; None to begin from scratch.
    """

    folder: RunFolder
    checkpoint: Path | None = None


def fit(task: Task, config: AppConfig, options: VerbOptions) -> int:
    """Train a model.

    Args:
        task: The app.
        config: Its configuration.
        options: ``resume`` goes on with an earlier run, ``weights`` are those to start from.

    Returns:
        Exit code: 0, or 143 (SIGTERM) or 130 (Ctrl-C) where the run was stopped and can be gone on with.

    Raises:
        UserError: Something that the user can mend; the checkpoints of before are intact.
    """
    refuse_overwriting(config, options)
    refuse_impossible(config, task.name)
    data = prepared_data(config)
    module = prepared_module(task, config, options, data)
    start = find_start(task, config, options)
    begin(start, task, config, options, module)
    interruption = Interruption()
    trainer = build_trainer(
        config,
        start.folder.path,
        callbacks=callbacks(task, config, start.folder, interruption),
        loggers=_loggers(task, config, start),
        validate=data.has("val"),
    )
    try:
        with memory_explained(config), closing(trainer.loggers):
            train(trainer, module, data, start)
            rows = _test(trainer, module, data, start.folder)
    except Interrupted as stopped:
        log.warning("%s; go on with: %s", stopped, how_to_go_on(task, start.folder))
        return stopped.exit_code
    finish(start.folder, config, rows, f"{task.name} {default_name(config)}")
    return 0


# -- where to begin -----------------------------------------------------------------------------------------------


def refuse_overwriting(config: AppConfig, options: VerbOptions) -> None:
    """Stop before a run writes over another one.

    Raises:
        UserError: The folder already holds a run and ``--resume`` is not given.
    """
    folder = config.run.dir
    if folder and not options.resume and is_first_process() and RunFolder(folder).holds_run():
        mend = "Go on with it by --resume last, or choose another folder by --run.dir"
        raise UserError("already holds a run", folder, mend)


def find_start(task: Task, config: AppConfig, options: VerbOptions) -> Start:
    """The folder of the run, and the checkpoint to go on from.

    Raises:
        UserError: There is nothing to go on from, or the folder cannot be made.
    """
    name, run = default_name(config), config.run
    if not options.resume:
        return Start(RunFolder.create(task.name, run, name))
    if options.weights:
        raise ConfigError(
            "--resume goes on with the weights of the run, --weights starts from others; give one of them"
        )
    if options.resume == "last":
        folder = RunFolder.open(run.dir) if run.dir else RunFolder.latest(task.name, run, name)
        if folder is None:
            home = RunFolder.home(task.name, run, name)
            raise UserError("no run to go on with", str(home), "Name one by --run.dir or --run.name, or drop --resume")
        return Start(folder, folder.last if folder.last.exists() else None)
    return _start_of(Path(options.resume), task, config)


def _start_of(path: Path, task: Task, config: AppConfig) -> Start:
    """Go on from a named checkpoint, in the folder of its run."""
    if path.is_dir():
        folder = RunFolder.open(path)
        return Start(folder, folder.last if folder.last.exists() else None)
    if not path.is_file():
        raise UserError("no such checkpoint", f"--resume {path}", "Give last.ckpt of a run folder, or 'last'")
    if config.run.dir or path.resolve().parent.name != "checkpoints":
        return Start(RunFolder.create(task.name, config.run, default_name(config)), path)
    return Start(RunFolder.open(path.resolve().parent.parent), path)


def begin(start: Start, task: Task, config: AppConfig, options: VerbOptions, module: GraftModule) -> None:
    """Prepare the folder, and the weights to start from."""
    folder, checkpoint = start
    folder.prepare()
    if options.resume and checkpoint is None:
        log.info("%s has no checkpoint yet: starting from scratch", folder.path)
    if checkpoint is not None:
        _check_same(checkpoint, task, module)
        log.info("going on from %s", checkpoint)
        folder.note("resumed", [*folder.notes().get("resumed", []), datetime.now().isoformat(timespec="seconds")])
    else:
        folder.write_provenance(provenance(task.name, default_name(config), options.argv, config.seed))
    folder.write_config(options.config_text)
    if options.weights:
        state, meta = resolve_weights(options.weights, task.name)
        module.start_from(state, meta)
        log.info("starting from the weights of %s", meta.path)


def _check_same(checkpoint: Path, task: Task, module: GraftModule) -> None:
    """Refuse to go on with another model, other sizes of the data or fewer epochs; say what else differs."""
    meta = _story(checkpoint, task)
    changed = dict(differences(meta.config, module.story["config"]))
    sizes = {f"data.{key}" for key in (*(meta.info or {}), *CHOSEN)}
    fixed = {"model": [text for key, text in changed.items() if key.startswith("model.")]}
    fixed["data"] = [text for key, text in changed.items() if key in sizes]
    fixed["optim"] = [text for key, text in changed.items() if key in GROUPING]
    for section, texts in fixed.items():
        if texts:
            mend = f"Resume with the same {section}, or start a new run"
            raise ConfigError(f"the run so far had {', '.join(texts)}", str(checkpoint), mend)
    others = [text for key, text in changed.items() if not key.startswith(_FREE)]
    if others:
        log.warning("the run so far had %s", ", ".join(others))
    epochs = module.config.trainer.max_epochs
    if 0 < epochs < meta.epochs:
        mend = f"Raise --trainer.max_epochs above {meta.epochs} to go on, or score it with the verb test"
        raise UserError(
            f"already has {meta.epochs} epochs, more than trainer.max_epochs={epochs}", str(checkpoint), mend
        )


def _story(checkpoint: Path, task: Task) -> WeightsMeta:
    """What a checkpoint says of itself; where it is damaged, the best one of its run is offered instead."""
    try:
        return stored_meta(checkpoint, task.name)
    except WeightsError as error:
        best = checkpoint.with_name("best.ckpt")
        if not best.is_file() or best.samefile(checkpoint):
            raise
        mend = f"Go on from the best epoch: --resume {best}"
        raise WeightsError(error.what, error.where, mend) from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and a phrase for each value that changed; keys of one side alone are left out."""
    for key in before:
        if key not in now:
            continue
        old, new, name = before[key], now[key], f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{name}.")
        elif old != new:
            yield name, f"{name}={old}, now {new}"


def how_to_go_on(task: Task, folder: RunFolder) -> str:
    """The command that goes on with a run."""
    words = ["--config", str(folder.config_file), "--run.dir", str(folder.path), "--resume", "last"]
    return shlex.join(["python", "-m", f"apps.{task.name}", "fit", *words])


# -- training -----------------------------------------------------------------------------------------------------


def callbacks(task: Task, config: AppConfig, folder: RunFolder, interruption: Interruption) -> list[pl.Callback]:
    """What happens around the steps, in order; the writer of checkpoints comes last."""
    monitor, mode = config.checkpoint.monitor or task.monitor, config.checkpoint.mode or task.mode
    settings = config.trainer
    found: list[pl.Callback] = [FiniteGuard()]
    found += [MovingAverage(settings.ema_decay)] if settings.ema_decay else []
    found += [TrainingLog(), Timing(folder), *progress()]
    found += [StepLimit(settings.max_steps)] if settings.max_steps > 0 else []
    found += [Patience(monitor, mode, settings.patience)] if settings.patience else []
    return [*found, interruption, CheckpointWriter(folder, config.checkpoint, monitor, mode, interruption)]


def _loggers(task: Task, config: AppConfig, start: Start) -> list[Any]:
    loggers = build_loggers(config.log, start.folder, task.name, start.folder.path.name)
    if start.checkpoint is None:
        for logger in loggers:
            if isinstance(logger, MetricsFile):
                logger.start_over()  # rows of an attempt that was killed before its first checkpoint
    return loggers


def train(trainer: pl.Trainer, module: GraftModule, data: Any, start: Start) -> None:
    """Train, or just write the checkpoint of a model that has nothing to train."""
    if not module.trainable:
        log.info("%s has nothing to train", type(module.model).__name__)
        if start.folder.writes:
            _write_untrained(module, start.folder)
        return
    module.prepare_training()
    checkpoint = str(start.checkpoint) if start.checkpoint is not None else None
    if start.checkpoint is not None:
        _check_fits(start.checkpoint, module)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    note_attention(start.folder)


def _check_fits(checkpoint: Path, module: GraftModule) -> None:
    """Say which weights differ, where Lightning would print a page of them."""
    problems = misfits(module.state_dict(), read_checkpoint(checkpoint)["state_dict"])
    if problems:
        raise WeightsError(
            f"does not fit the model: {'; '.join(problems[:6])}", str(checkpoint), "Resume with the same configuration"
        )


def _write_untrained(module: GraftModule, folder: RunFolder) -> None:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 0, ENTRY: {}}
    module.on_save_checkpoint(checkpoint)
    for path in (folder.best, folder.last):
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def _test(trainer: pl.Trainer, module: GraftModule, data: Any, folder: RunFolder) -> list[dict[str, Any]]:
    """Test the best weights."""
    if not module.config.run.test or not data.has("test"):
        return []
    trainer.strategy.barrier("best")  # the first process has written it
    state, meta = resolve_weights(folder.best if folder.best.exists() else folder.last, "")
    module.load_weights(state, meta)
    return score_split(trainer, module, data, folder, "test")
