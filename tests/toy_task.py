"""A tiny task for tests of the core: linear regression with dropout on generated data.

``python -m tests.toy_task fit --run.dir ...`` is a whole command line; ``data.step_s`` makes steps slow enough for a
kill to find them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MeanSquaredError

from apps.core.config import AppConfig, CheckpointConfig, LogConfig, OptimConfig, ScheduleConfig, TrainerConfig
from apps.core.protocols import Picture
from apps.core.run.module import GraftModule
from apps.core.task import Task
from datamodules.base import CorruptSample, TaskDataModule, sample_rng
from graftwork.components import Registry, component
from graftwork.errors import DataError


@dataclass(kw_only=True)
class LinesConfig:
    """Points of a noisy plane; every training sample is jittered anew in each epoch."""

    samples: int = 50
    """Training samples."""
    eval_samples: int = 21
    """Validation and test samples."""
    batch_size: int = 4
    """Samples per batch."""
    eval_batch_size: int = 5
    """Samples per evaluation batch."""
    num_workers: int = 0
    """Loader processes."""
    on_corrupt: str = "error"
    """What a corrupt sample does."""
    corrupt: tuple[int, ...] = ()
    """Indices of corrupt training samples."""
    broken: int = -1
    """Index of a training sample that raises a plain DataError."""
    nan: int = -1
    """Index of a training sample with a NaN."""
    step_s: float = 0.0
    """Seconds that loading a sample takes."""

    def build(self, seed: int) -> LinesData:
        return LinesData(self, seed)


@dataclass(kw_only=True)
class NetConfig:
    """A small network with dropout."""

    width: int = 8
    """Hidden width."""
    dropout: float = 0.3
    """Dropout."""
    scale: float = 1.0
    """Factor of the output; large values make the loss overflow."""

    def build(self) -> nn.Module:
        layers = [nn.Linear(3, self.width), nn.BatchNorm1d(self.width), nn.ReLU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(self.width, 1))


@dataclass(kw_only=True)
class ZeroConfig:
    """Predicts zero; nothing to train."""

    scale: float = 1.0
    """Factor of the output."""

    def build(self) -> nn.Module:
        return _Zero()


class _Zero(nn.Module):
    def forward(self, points: Tensor) -> Tensor:
        return points[:, :1] * 0


DATA = Registry("dataset", {"lines": LinesConfig})
MODELS = Registry("model", {"net": NetConfig, "zero": ZeroConfig})


@dataclass(kw_only=True)
class ToyConfig(AppConfig):
    """The toy task."""

    data: Any = component(DATA)
    model: Any = component(MODELS)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.02))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_steps=3))
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(max_epochs=3, accelerator="cpu", log_every_n_steps=2, threads=1)
    )
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_n_steps=3))
    log: LogConfig = field(default_factory=lambda: LogConfig(wandb="off"))


class Lines(Dataset):
    def __init__(self, config: LinesConfig, seed: int, split: str) -> None:
        self.config, self.seed, self.split = config, seed, split
        count = config.samples if split == "train" else config.eval_samples
        generator = torch.Generator().manual_seed({"train": 1, "val": 2, "test": 3}[split])
        self.points = torch.randn(count, 3, generator=generator)
        noise = 0.1 * torch.randn(count, 1, generator=generator)
        self.values = self.points @ torch.tensor([[1.0], [-2.0], [0.5]]) + noise

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        time.sleep(self.config.step_s)
        point = self.points[index]
        if self.split == "train":
            self._spoil(index)
            jitter = torch.from_numpy(sample_rng(self.seed, epoch, index).normal(size=3)).float()
            point = point + 0.01 * jitter
            if index == self.config.nan:
                point = point * float("nan")
        return {"points": point, "values": self.values[index], "index": torch.tensor(index)}

    def _spoil(self, index: int) -> None:
        if index in self.config.corrupt:
            raise CorruptSample("cannot be decoded", where=f"photos/{index}.png")
        if index == self.config.broken:
            raise DataError("has 2 columns, expected 3", where=f"rows/{index}.csv", mend="Add the column")


class LinesData(TaskDataModule):
    def __init__(self, config: LinesConfig, seed: int) -> None:
        super().__init__(
            seed=seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            num_workers=config.num_workers,
            on_corrupt=config.on_corrupt,
        )
        self.config = config

    def datasets(self) -> Mapping[str, Dataset]:
        self.info = {"inputs": 3}
        return {split: Lines(self.config, self.seed, split) for split in ("train", "val", "test")}


class ToyMetrics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mse, self.zero = MeanSquaredError(), MeanSquaredError()
        self.seen: list[int] = []

    def update(self, batch: Mapping[str, Tensor], prediction: Tensor) -> None:
        self.mse.update(prediction.double(), batch["values"].double())
        self.zero.update(torch.zeros_like(batch["values"]).double(), batch["values"].double())
        self.seen += batch["index"].tolist()

    def compute(self) -> dict[str, float]:
        return {"mse": float(self.mse.compute())}

    def baseline(self) -> dict[str, float]:
        return {"mse": float(self.zero.compute())}

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return {"by sign": [{"sign": "+", "samples": len(self.seen)}]}

    def count(self) -> int:
        return len(self.seen)

    def reset(self) -> None:
        self.mse.reset()
        self.zero.reset()
        self.seen = []


class ToyModule(GraftModule):
    config: ToyConfig

    def build_model(self) -> nn.Module:
        return self.config.model.build()

    def _forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.config.model.scale * self.model(batch["points"])

    def training_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        _kill_at(self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_idx)
        error = self._forward(batch) - batch["values"]
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}

    def predict_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._forward(batch)

    def validation_loss(self, batch: Mapping[str, Tensor], prediction: Tensor) -> Tensor:
        return (prediction - batch["values"]).square().mean()

    def metric_suite(self, split: str) -> ToyMetrics:
        return ToyMetrics()

    def sample_scores(self, batch: Mapping[str, Tensor], prediction: Tensor) -> Tensor:
        return (prediction - batch["values"]).abs().flatten()

    def render(self, sample: Mapping[str, Tensor], prediction: Tensor) -> list[Picture]:
        index, figure = int(sample["index"]), Figure(figsize=(1, 1))
        figure.add_subplot().bar([0, 1], [float(sample["values"]), float(prediction)])
        return [Picture(f"point_{index}", f"Point {index}.", figure)]

    def summary_pictures(self) -> list[Picture]:
        return [Picture("nothing", "An empty picture.", Figure(figsize=(1, 1)))]


def _kill_at(epoch: int, batch: int) -> None:
    """Send this process a signal at a batch: ``TOY_KILL=SIGKILL:1:5`` is in the step of batch 5 of epoch 1."""
    name, _, place = os.environ.get("TOY_KILL", "").partition(":")
    if place == f"{epoch}:{batch}":
        os.kill(os.getpid(), getattr(signal, name))


TASK = Task(
    name="toy",
    title="linear regression, for tests",
    config=ToyConfig,
    module="tests.toy_task:ToyModule",
    predictor="tests.toy_task:ToyModule",
    registries={"models": MODELS},
)

if __name__ == "__main__":
    from apps.core.cli.main import run
    from tests.toy_task import TASK as task

    run(task)
