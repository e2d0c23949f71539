"""Configuration sections that every app has. Standard library only: help and checks need no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class OptimConfig:
    """Optimiser, its groups and gradient clipping."""

    name: Literal["adam", "adamw", "radam", "sgd"] = "adamw"
    """Optimiser."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decay of matrices; norms, biases and position tables are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Moment decay rates of the Adam family."""
    momentum: float = 0.9
    """Momentum of sgd."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of a vision backbone to the one before it; 1 is off, fine-tuning
    takes 0.65 to 0.9."""
    backbone_factor: float = 1.0
    """Factor of the learning rate of vision backbones; fine-tuning with a new decoder often takes 0.1."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if not 0 < self.lr < math.inf:
            yield f"lr={self.lr} must be above 0"
        if not 0 <= self.weight_decay < math.inf:
            yield f"weight_decay={self.weight_decay} must be 0 or more"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas={list(self.betas)} must both be in [0, 1), for example --optim.betas 0.9,0.999"
        if not 0 <= self.momentum < 1:
            yield f"momentum={self.momentum} must be in [0, 1)"
        if not 0 <= self.clip_norm < math.inf:
            yield f"clip_norm={self.clip_norm} must be 0 (off) or more"
        if not 0 < self.layer_decay <= 1:
            yield f"layer_decay={self.layer_decay} must be above 0 and up to 1 (off)"
        if not 0 < self.backbone_factor < math.inf:
            yield f"backbone_factor={self.backbone_factor} must be above 0; model.backbone.freeze trains none of it"


@dataclass(kw_only=True)
class ScheduleConfig:
    """Learning rate over the run: a linear warm-up, then the named curve."""

    name: Literal["constant", "cosine", "poly", "step", "halving"] = "cosine"
    """Curve: cosine or a power of what is left of all steps (poly) down to min_factor, step at milestones, or halving
    every epoch after the second (long-term forecasting's 'type1')."""
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up."""
    min_factor: float = 0.0
    """Factor of the peak that cosine and poly end at."""
    power: float = 0.9
    """Exponent of 'poly'; 1 is a straight line."""
    milestones: tuple[int, ...] = ()
    """Epochs after which 'step' multiplies by gamma."""
    gamma: float = 0.1
    """Factor of 'step' at each milestone."""

    def problems(self) -> Iterator[str]:
        """Values that contradict each other."""
        if self.warmup_steps < 0:
            yield f"warmup_steps={self.warmup_steps} must be 0 or more"
        if self.name == "step" and not self.milestones:
            yield "name=step needs milestones, for example --schedule.milestones [6,9]"
        if not 0 < self.power < math.inf:
            yield f"power={self.power} must be above 0"


@dataclass(kw_only=True)
class TrainerConfig:
    """Options of Lightning's Trainer that a user sweeps."""

    max_epochs: int = 10
    """Passes over the training data."""
    max_steps: int = -1
    """Stop after this many optimiser steps; -1 leaves it to max_epochs."""
    accelerator: str = "auto"
    """Lightning accelerator: auto, cpu, gpu, ..."""
    devices: int | str = 1
    """Number of devices, 'auto' for all, or a list such as '0,1'."""
    num_nodes: int = 1
    """Machines of a multi-node run."""
    strategy: str = "auto"
    """Lightning strategy: auto, ddp, fsdp, ..."""
    sync_batchnorm: bool = False
    """Batch norms take their statistics over all devices."""
    precision: str = "32-true"
    """32-true, bf16-mixed, 16-mixed, ..."""
    accumulate_grad_batches: int = 1
    """Batches per optimiser step."""
    check_val_every_n_epoch: int = 1
    """Epochs between validations."""
    limit_train_batches: int | float = 1.0
    """Batches (int) or share (float) of the training data used per epoch."""
    limit_val_batches: int | float = 1.0
    """The same for validation."""
    limit_test_batches: int | float = 1.0
    """The same for test."""
    log_every_n_steps: int = 20
    """Steps between logged training values."""
    patience: int = 0
    """Stop after this many validations without improvement; 0 never stops early."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, evaluated and kept as best; 0 is off."""
    compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = False
    """Refuse operators that are not reproducible."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.max_epochs == -1 and self.max_steps == -1:
            yield "max_epochs=-1 and max_steps=-1 never end; set one of them"
        elif self.max_epochs < 1 and self.max_steps < 1:
            yield f"max_epochs={self.max_epochs} must be at least 1"
        elif self.max_epochs < 1 and self.max_epochs != -1:
            yield f"max_epochs={self.max_epochs} must be at least 1, or -1 to leave it to max_steps"
        if self.max_steps < 1 and self.max_steps != -1:
            yield f"max_steps={self.max_steps} must be at least 1, or -1 to leave it to max_epochs"
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "num_nodes"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        for name in ("patience", "threads"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} must be 0 or more"
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
            yield from _limit_problems(name, getattr(self, name))
        if not 0 <= self.ema_decay < 1:
            yield f"ema_decay={self.ema_decay} must be in [0, 1)"


@dataclass(kw_only=True)
class CheckpointConfig:
    """When the run is written to disk."""

    every_n_steps: int = 200
    """Optimiser steps between writes of 'last', which is also written at every epoch's end; 0 leaves it to
    every_minutes."""
    every_minutes: float = 10.0
    """Longest time between writes of 'last'; 0 leaves it to every_n_steps."""
    monitor: str = ""
    """Logged name that picks 'best'; empty takes the task's own."""
    mode: Literal["", "min", "max"] = ""
    """Whether the smallest or the largest monitored value is best; empty takes the task's own."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.every_n_steps < 0:
            yield f"every_n_steps={self.every_n_steps} must be 0 (leaves it to every_minutes) or more"
        if not self.every_minutes >= 0:
            yield f"every_minutes={self.every_minutes} must be 0 (leaves it to every_n_steps) or more"


@dataclass(kw_only=True)
class RunConfig:
    """Where the run lives and what it leaves behind."""

    name: str = ""
    """Name of the run; empty takes '<data>_<model>'."""
    dir: str = ""
    """This exact folder; empty makes runs/<task>/<name>/<stamp>."""
    root: str = "runs"
    """Folder of all runs."""
    test: bool = True
    """Test the best weights after fit."""
    report: bool = True
    """Write report.html after fit and test."""
    pictures: int = 4
    """Samples drawn of each kind: best, worst, random."""

    def problems(self) -> Iterator[str]:
        """Values out of range, and a name that would leave the folder of runs."""
        if self.pictures < 0:
            yield f"pictures={self.pictures} must be 0 (none) or more"
        if self.name in (".", "..") or any(mark in self.name for mark in ("/", "\\", "\0")):
            yield f"name={self.name} must be a plain name; choose folders by --run.dir or --run.root"


@dataclass(kw_only=True)
class LogConfig:
    """Loggers beside metrics.csv."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases: auto sends only where the user is logged in, and writes offline files elsewhere."""
    project: str = "graftwork"
    """W&B project."""
    tags: tuple[str, ...] = ()
    """W&B tags."""


@dataclass(kw_only=True)
class AppConfig:
    """Base of every app's configuration; an app fills in ``data`` and ``model`` and may change defaults."""

    data: Any = None
    """The dataset, a component of the app's registry."""
    model: Any = None
    """The model, a component of the app's registry."""
    seed: int = 2023
    """Seed of weights, order, augmentation and dropout."""
    attention: Literal["auto", "math", "sdpa", "xformers", "natten"] = "auto"
    """Attention backend; auto picks the fastest that works here."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Training loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    run: RunConfig = field(default_factory=RunConfig)
    """Run folder."""
    log: LogConfig = field(default_factory=LogConfig)
    """Loggers."""
    published: dict[str, float] = field(default_factory=dict)
    """Published value of a test metric, shown beside ours: {'mse': 0.386}."""

    def problems(self) -> Iterator[str]:
        """Values out of range. An app that overrides this yields from it first."""
        if not 0 <= self.seed < 2**32:
            yield f"seed={self.seed} must be from 0 to {2**32 - 1}"


def _limit_problems(name: str, limit: int | float) -> Iterator[str]:
    if isinstance(limit, float) and not 0 <= limit <= 1:
        yield f"{name}={limit} must be a share above 0 and up to 1, or a whole number of batches"
    elif limit < 0:
        yield f"{name}={limit} must be 1 or more batches, or a share above 0 and up to 1"
    elif limit == 0 and name == "limit_train_batches":
        yield f"{name}={limit} leaves nothing to train on; use the verb test to score without training"
