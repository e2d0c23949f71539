"""Validate and test: scores beside the trivial baseline and the published value, and pictures of samples."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch.distributed

from apps.core.callbacks.memory import memory_explained
from apps.core.checkpoints.agreement import other_dataset
from apps.core.checkpoints.read import resolve_weights
from apps.core.config import AppConfig
from apps.core.protocols import Picture
from apps.core.run.assembly import default_name, prepared_data, prepared_module, progress
from apps.core.run.folder import RunFolder
from apps.core.run.loggers import build_loggers, closing
from apps.core.run.module import EvalSplit, GraftModule, plain_info
from apps.core.run.provenance import provenance
from apps.core.run.scoring import Outcome
from apps.core.run.trainer import build_trainer, refuse_impossible
from apps.core.task import Task, VerbOptions
from graftwork.errors import UserError

log = logging.getLogger(__name__)

SPLITS: dict[str, EvalSplit] = {"validate": "val", "test": "test"}


def evaluate(task: Task, config: AppConfig, options: VerbOptions, verb: Literal["validate", "test"]) -> int:
    """Score trained weights on a split.

    Args:
        task: The app.
        config: Its configuration.
        options: ``weights`` names what to score; without it the best weights of ``run.dir`` are.
        verb: ``validate`` or ``test``.

    Returns:
        Exit code 0.

    Raises:
        UserError: No weights are named, they do not fit, or the data lacks the split.
    """
    refuse_impossible(config, task.name)
    data = prepared_data(config)
    data.split(SPLITS[verb])
    module = prepared_module(task, config, options, data)
    _load(module, task, config, options)
    folder = RunFolder.create(task.name, config.run, default_name(config), verb)
    if not folder.holds_run():
        folder.write_config(options.config_text)
        folder.write_provenance(provenance(task.name, default_name(config), options.argv, config.seed, verb))
    loggers = build_loggers(config.log, folder, task.name, folder.path.name)
    trainer = build_trainer(config, folder.path, callbacks=progress(), loggers=loggers)
    with memory_explained(config), closing(loggers):
        rows = score_split(trainer, module, data, folder, SPLITS[verb])
    finish(folder, config, rows, f"{task.name} {verb}")
    return 0


def _load(module: GraftModule, task: Task, config: AppConfig, options: VerbOptions) -> None:
    """Load the weights that are named, or the best ones of the run folder."""
    if not options.weights and not module.trainable:
        return
    spec = options.weights or config.run.dir
    if not spec:
        raise UserError("no trained weights given", "--weights", "Give a checkpoint, a run folder of fit or zoo:NAME")
    state, meta = resolve_weights(spec, task.name)
    module.load_weights(state, meta)
    log.info("weights: %s", meta.path)
    if differs := other_dataset(meta.info, plain_info(module.info)):
        log.warning("%s was trained on other data (%s): the scores say little about the training", meta.path, differs)


def score_split(
    trainer: pl.Trainer, module: GraftModule, data: Any, folder: RunFolder, split: EvalSplit
) -> list[dict[str, Any]]:
    """Score a split with the weights of ``module``, and leave results, tables and pictures in the folder.

    Returns:
        Result rows of this split.
    """
    module.pictures = module.config.run.pictures
    run = trainer.test if split == "test" else trainer.validate
    run(module, datamodule=data, verbose=False)
    outcome = module.outcomes[split]
    rows = result_rows(outcome, module.config.published if split == "test" else {}, split)
    folder.save_results([row for row in folder.results() if row.get("split") != split] + rows)
    if outcome.tables:
        folder.note("tables", outcome.tables)
    if data.skipped:
        folder.note("skipped files", dict(data.skipped))
    note_attention(folder)
    save_pictures(trainer, module, folder, split)
    return rows


def result_rows(outcome: Outcome, published: Mapping[str, float], split: str) -> list[dict[str, Any]]:
    """Rows of ``results.json``."""
    return [
        {
            "metric": name,
            "value": value,
            "baseline": outcome.baseline.get(name),
            "published": published.get(name),
            "samples": outcome.samples,
            "split": split,
        }
        for name, value in outcome.metrics.items()
    ]


def save_pictures(trainer: pl.Trainer, module: GraftModule, folder: RunFolder, split: EvalSplit) -> None:
    """Draw the best, the worst and some random samples, and what the app draws of the whole split."""
    keeper = module.keepers.pop(split, None)
    if keeper is None:
        return
    _gather(trainer, keeper)
    if not folder.writes:
        return
    folder.clear_pictures()
    found = [("summary", picture, None) for picture in module.summary_pictures()]
    for section in ("best", "worst", "random"):
        for kept in getattr(keeper, section):
            found += [(section, picture, kept.score) for picture in module.render(kept.sample, kept.prediction)]
    if keeper.best:
        found += [("summary", picture, None) for picture in module.sample_pictures(keeper.best[0].sample)]
    for section, picture, score in found:
        path = folder.save_picture(section, picture, score)
        _log_picture(trainer.loggers, f"{section}/{picture.name}", path, picture)


def _gather(trainer: pl.Trainer, keeper: Any) -> None:
    """Bring the samples that other processes kept to this one."""
    if trainer.world_size > 1:
        others: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(others, keeper.all())
        for kept in others:
            keeper.merge(kept)


def _log_picture(loggers: Sequence[Any], key: str, path: Path, picture: Picture) -> None:
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=key, images=[str(path)], caption=[picture.caption])


def note_attention(folder: RunFolder) -> None:
    """Note which attention backends have served."""
    from backbones.attention import used

    if found := used():
        folder.note("attention", found)


def finish(folder: RunFolder, config: AppConfig, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Write the report and show the results."""
    if not folder.writes:
        return
    from apps.core.report.report import write_report
    from apps.core.report.table import print_results

    print_results(rows, title)
    if config.run.report:
        sys.stdout.write(f"report: {write_report(folder)}\n")
    else:
        sys.stdout.write(f"run: {folder.path}\n")
