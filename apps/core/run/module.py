"""The LightningModule of every app: steps, optimiser, logging and scores; the app brings model, loss and metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import graftwork
from apps.core.checkpoints.read import ENTRY, WeightsMeta
from apps.core.config import AppConfig
from apps.core.metrics.best_worst import SampleKeeper
from apps.core.protocols import ExportSpec, MetricSuite, Picture
from apps.core.run.means import EpochMeans
from apps.core.run.optim import build_optimizer, learning_rate_factor, parameter_groups
from apps.core.run.randomness import seed_place
from apps.core.run.scoring import Outcome, SplitScore
from graftwork.errors import ConfigError, WeightsError

Batch = Mapping[str, Tensor]
EvalSplit = Literal["val", "test"]


class GraftModule(pl.LightningModule):
    """Base of every app's module.

    Logged names: ``train/loss_step`` and ``lr`` every ``log_every_n_steps`` steps, ``train/loss`` (mean over the
    epoch), ``val/<metric>``, ``val/baseline_<metric>``, ``test/<metric>``.

    Args:
        config: The app's configuration.
        info: Facts about the data: the datamodule's ``info``, or the plain dict that a checkpoint keeps of it.
    """

    def __init__(self, config: AppConfig, info: Any) -> None:
        super().__init__()
        self.config, self.info = config, info
        self.model = self.build_model()
        self.suites: dict[str, MetricSuite] = {}  # plain dict: metric states belong into no state dict
        self.means = EpochMeans()
        self.parts: dict[str, Tensor] = {}  # losses of the latest training batch
        self.monitored: dict[str, float] = {}  # what this epoch has measured so far, for best and early stopping
        self.outcomes: dict[str, Outcome] = {}
        self.pictures = 0
        self.keepers: dict[str, SampleKeeper] = {}
        self.story: dict[str, Any] = {}
        self._scores: dict[str, SplitScore] = {}
        self._fresh_groups: list[dict[str, Any]] = []

    # -- what an app brings ---------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """The model, from ``self.config`` and ``self.info``."""
        raise NotImplementedError

    def prepare_training(self) -> None:
        """Build what only a training needs, before a checkpoint is read."""

    def trained_beside(self) -> nn.Module | None:
        """What is trained together with the model and left behind after the training, as a distillation has it."""
        return None

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar ``loss``, and parts of it under other names, of a training batch."""
        raise NotImplementedError

    def predict_batch(self, batch: Batch) -> Any:
        """What metrics, scores and pictures read."""
        raise NotImplementedError

    def metric_suite(self, split: str) -> MetricSuite:
        """Streaming metrics of ``val`` or ``test``."""
        raise NotImplementedError

    def validation_loss(self, batch: Batch, prediction: Any) -> Tensor | None:
        """Scalar loss of an evaluation batch; its plain mean over batches is logged as ``val/loss``. None has none."""
        return None

    def sample_scores(self, batch: Batch, prediction: Any) -> Tensor | None:
        """Score of each sample, [B], lower is better; picks the best and worst pictures. None draws none."""
        return None

    def picture_candidates(self, batch: Batch, indices: Sequence[int]) -> list[int]:
        """Places in the batch of the samples that may become pictures; all, unless neighbours look the same.

        Args:
            batch: The batch.
            indices: Index of each of its samples in the split.
        """
        return list(range(len(indices)))

    def unbatch(self, prediction: Any, index: int) -> Any:
        """The prediction of one sample, as copies on the CPU."""
        return _item(prediction, index)

    def render(self, sample: Mapping[str, Any], prediction: Any) -> list[Picture]:
        """Pictures of one sample (tensors without batch axis) and its prediction."""
        return []

    def summary_pictures(self) -> list[Picture]:
        """Pictures of a whole test; ``self.suites["test"]`` still holds it."""
        return []

    def sample_pictures(self, sample: Mapping[str, Any]) -> list[Picture]:
        """Pictures of what the model does with one sample (tensors without batch axis), for instance its attention."""
        return []

    def export_spec(self) -> ExportSpec:
        """What the exporter needs."""
        raise ConfigError(f"{type(self).__name__} cannot be exported")

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """A batch of the configured sizes, for benchmarks."""
        raise ConfigError(f"{type(self).__name__} has no example batch")

    def official_keymap(self) -> Any:
        """The :class:`checkpoints.keymap.KeyMap` of this model's official weights; None if it has none."""
        return None

    # -- training -------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of the place in the run."""
        seed_place(self.config.seed, "train", self.trainer.current_epoch, batch_idx, self.trainer.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        losses = self.training_loss(batch)
        self.parts = {name: value.detach() for name, value in losses.items()}
        bar = {f"train/{name}": value for name, value in self.parts.items()}
        # for progress bars and the like; rows of the loggers are written by the TrainingLog callback
        self.log_dict(bar, logger=False, on_step=True, on_epoch=False, batch_size=1)
        return losses["loss"]

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def steps(self) -> tuple[int, int]:
        """Optimiser steps of the run and of an epoch."""
        settings = self.config.trainer
        batches: int = self.trainer.datamodule.train_length(settings.limit_train_batches)  # type: ignore[attr-defined]
        per_epoch = math.ceil(batches / settings.accumulate_grad_batches)
        limits = [settings.max_steps] * (settings.max_steps > 0)
        limits += [settings.max_epochs * per_epoch] * (settings.max_epochs > 0)
        return min(limits), per_epoch

    def configure_optimizers(self) -> Any:
        """Optimiser and step-wise schedule of the configuration."""
        optimizer = build_optimizer(self.model, self.config.optim)
        if (beside := self.trained_beside()) is not None:
            for group in parameter_groups(beside, self.config.optim.weight_decay, self.config.optim.lr):
                optimizer.add_param_group(group)
        self._fresh_groups = [_hyper(group) for group in optimizer.param_groups]
        factor = learning_rate_factor(self.config.schedule, *self.steps())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate(self, step: int) -> float:
        """Learning rate of an optimiser step (0-based)."""
        return self.config.optim.lr * learning_rate_factor(self.config.schedule, *self.steps())(step)

    def on_train_start(self) -> None:
        """Let the configuration win over what a checkpoint keeps of the optimiser's settings, such as ``optim.lr``."""
        for optimizer, entry in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            factor = entry.scheduler.lr_lambdas[0](self.trainer.global_step)  # type: ignore[union-attr]
            for group, fresh in zip(optimizer.param_groups, self._fresh_groups, strict=True):
                group.update(fresh, initial_lr=fresh["lr"], lr=fresh["lr"] * factor)
            entry.scheduler.base_lrs = [fresh["lr"] for fresh in self._fresh_groups]

    # -- evaluation -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin a validation."""
        self._begin("val")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a validation batch."""
        self._score("val", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the validation."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Begin a test."""
        self._begin("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a test batch."""
        self._score("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._finish("test")

    def _begin(self, split: EvalSplit) -> None:
        suite = self.suites.get(split) or self.metric_suite(split)
        suite.reset()
        self.suites[split] = suite.to(self.device) if isinstance(suite, nn.Module) else suite
        keeper = None
        if self.pictures and self.trainer.state.fn != "fit":
            keeper = self.keepers[split] = SampleKeeper(self.pictures, self.config.seed)
        self._scores[split] = SplitScore(self.suites[split], keeper, with_loss=split == "val")

    def _score(self, split: EvalSplit, batch: Batch, batch_idx: int) -> None:
        seed_place(self.config.seed, split, 0, batch_idx, self.trainer.global_rank)
        batches = self.trainer.datamodule.eval_batches(split)  # type: ignore[attr-defined]
        self._scores[split].add(self, batch, self.predict_batch(batch), batches.batch(batch_idx))

    def _finish(self, split: EvalSplit) -> None:
        outcome = self.outcomes[split] = self._scores.pop(split).outcome(self.summed)
        rows = {f"{split}/{name}": value for name, value in outcome.metrics.items()}
        rows |= {f"{split}/baseline_{name}": value for name, value in outcome.baseline.items()}
        self.monitored.update(rows)
        self.log_dict(rows, on_step=False, on_epoch=True, batch_size=1)

    def summed(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.trainer.world_size == 1:
            return values
        reduced: Tensor = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        return reduced

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the weights usable on their own: configuration, data facts and scores."""
        entry = checkpoint.setdefault(ENTRY, {})
        entry |= {
            **self.story,
            "version": graftwork.__version__,
            "info": plain_info(self.info),
            "metrics": {name: value for name, value in self.monitored.items() if name.startswith("val/")},
            "step": int(checkpoint.get("global_step", 0)),
        }

    def load_weights(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        """Load tensors that :func:`apps.core.checkpoints.read.resolve_weights` gave.

        Raises:
            WeightsError: They do not fit the model, or are official ones of a system that has no key map.
        """
        if meta.official:
            self._load_official(state, meta)
            return
        wanted = self.model.state_dict()
        whole = any(key.startswith("model.") for key in state) and not any(key.startswith("model.") for key in wanted)
        tensors = {k.removeprefix("model."): v for k, v in state.items() if not whole or k.startswith("model.")}
        problems = misfits(wanted, tensors)
        if problems:
            raise WeightsError(
                f"the weights do not fit {type(self.model).__name__}: {'; '.join(problems[:6])}"
                + (f"; and {len(problems) - 6} more" if len(problems) > 6 else ""),
                where=str(meta.path),
                mend="Give the model the sizes the weights were trained with",
            )
        self.model.load_state_dict(tensors)

    def start_from(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        """Begin a training with weights; an app may take a part of those that do not fit as a whole.

        Raises:
            WeightsError: They do not fit.
        """
        self.load_weights(state, meta)

    def _load_official(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        from checkpoints.keymap import load_official

        keymap = self.official_keymap()
        if keymap is None:
            raise WeightsError(f"no key map for official weights of {type(self.model).__name__}", where=str(meta.path))
        load_official(self.model, state, keymap, where=str(meta.path))


def misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """A phrase for each tensor whose shape differs, that is missing, or that has no place; shapes first."""
    shapes = [
        f"{name} is {list(found[name].shape)}, expected {list(wanted[name].shape)}"
        for name in wanted
        if name in found and wanted[name].shape != found[name].shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in found]
    return shapes + missing + [f"{name} is unexpected" for name in found if name not in wanted]


def plain_info(info: Any) -> Any:
    """Facts about the data as dicts, lists, numbers and strings."""
    if callable(getattr(info, "plain", None)):
        return info.plain()
    if dataclasses.is_dataclass(info) and not isinstance(info, type):
        return plain_info(dataclasses.asdict(info))
    if isinstance(info, Mapping):
        return {str(key): plain_info(value) for key, value in info.items()}
    if isinstance(info, list | tuple):
        return [plain_info(value) for value in info]
    return info.item() if hasattr(info, "item") else info


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _item(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value[index].detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _item(part, index) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [_item(part, index) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value[index] if isinstance(value, list) else value
