"""The datamodule of every task: splits, deterministic loaders and the place to go on from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
from torch.utils.data import Dataset, default_collate

from datamodules.findings import Finding
from datamodules.guard import CorruptSample, GuardedDataset, GuardedLoader, OnCorrupt
from datamodules.sampler import EvalBatches, TrainBatches, sample_rng
from graftwork.errors import DataError, UserError

__all__ = ["CorruptSample", "Finding", "SplitName", "TaskDataModule", "sample_rng"]

SplitName = Literal["train", "val", "test"]


class TaskDataModule(pl.LightningDataModule):
    """Base of every datamodule.

    A subclass gives :meth:`datasets` and sets ``info``. Its datasets are map-style and take ``(epoch, index)`` or a
    plain index as key; what is random about a sample comes from ``sample_rng(seed, epoch, index)``. They may offer
    ``__getitems__`` and the subclass ``collate`` where a whole batch is cheaper than its samples.

    Args:
        seed: Seed of the order of the training samples.
        batch_size: Training samples per batch and process.
        eval_batch_size: Samples per validation and test batch; ``batch_size`` if omitted.
        num_workers: Loader processes; results do not depend on it.
        drop_last: Leave out a last training batch that is not full.
        on_corrupt: What a ``CorruptSample`` raised by a dataset does: stop, or be replaced by the next sample.
    """

    info: Any = None
    """Task-specific facts about the data that the model needs; set by :meth:`setup`."""

    def __init__(
        self,
        *,
        seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
        on_corrupt: OnCorrupt = "error",
    ) -> None:
        super().__init__()
        self.seed, self.batch_size = seed, batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers, self.drop_last = num_workers, drop_last
        self.on_corrupt: OnCorrupt = on_corrupt
        self.skipped: Counter[str] = Counter()
        self._splits: dict[str, GuardedDataset] = {}
        self._start = (0, 0)

    def datasets(self) -> Mapping[str, Dataset[Any]]:
        """Datasets by split name (``train``, ``val``, ``test``); called once.

        Raises:
            DataError: Files are missing, unreadable or unsuitable.
        """
        raise NotImplementedError(f"{type(self).__name__} must offer datasets()")

    def collate(self, samples: Sequence[Any]) -> Any:
        """Samples of a batch, as the dataset gave them, to a dict of tensors with a leading batch axis."""
        return default_collate(list(samples))

    @property
    def sample_spec(self) -> Mapping[str, Any]:
        """Each key of a sample with shape, dtype, unit and range."""
        return {}

    def plot(self, sample: Mapping[str, Any]) -> Any:
        """A matplotlib figure of one sample."""
        raise NotImplementedError(f"{type(self).__name__} has no plot()")

    def inspect(self) -> list[Finding]:
        """What ``doctor`` should say about the data: splits with their sizes, and the first sample of each."""
        try:
            self.setup()
        except UserError as error:
            return [Finding("error", str(error))]
        return [self._finding(name, dataset) for name, dataset in self._splits.items()]

    def _finding(self, name: str, dataset: GuardedDataset) -> Finding:
        if not len(dataset):
            return Finding("error", f"{name}: no samples")
        error = dataset.__getitems__([(0, 0)]).error
        if error is not None:
            return Finding("error", f"{name}: {error}")
        return Finding("ok", f"{name}: {len(dataset)} samples")

    def setup(self, stage: str | None = None) -> None:
        """Read the data, once, whatever the stage."""
        if not self._splits:
            self._splits = {name: GuardedDataset(data, self.on_corrupt) for name, data in self.datasets().items()}
            if "train" in self._splits and not len(self._splits["train"]):
                raise DataError("the training split has no samples")

    def has(self, split: str) -> bool:
        """Whether the split exists and has samples."""
        return split in self._splits and len(self._splits[split]) > 0

    def split(self, split: str) -> GuardedDataset:
        """Dataset of a split.

        Raises:
            DataError: The data has no such split.
        """
        if not self.has(split):
            raise DataError(f"the data has no {split} split", mend=f"Splits with samples: {', '.join(self._splits)}")
        return self._splits[split]

    def train_batches(self) -> TrainBatches:
        """Batch sampler of the training split for this process, at the place where training goes on."""
        rank, world = self._place()
        dataset = self.split("train")
        batches = TrainBatches(
            len(dataset), self.batch_size, seed=self.seed, drop_last=self.drop_last, rank=rank, world=world
        )
        batches.start_at(*self._start)
        return batches

    def train_length(self, limit: int | float = 1.0) -> int:
        """Batches of an epoch for one process.

        Args:
            limit: Lightning's ``limit_train_batches``: a number of batches, or a share of them.
        """
        batches = len(self.train_batches())
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def eval_batches(self, split: str) -> EvalBatches:
        """Batch sampler of an evaluation split for this process."""
        rank, world = self._place()
        return EvalBatches(len(self.split(split)), self.eval_batch_size, rank=rank, world=world)

    def resume_at(self, epoch: int, batch: int) -> None:
        """Let training go on with batch number ``batch`` (0-based) of ``epoch``."""
        self._start = (epoch, batch)

    def loader(self, split: str) -> GuardedLoader:
        """Loader of a split: the training split in the order of its epoch, the others in their own."""
        return GuardedLoader(
            self.split(split),
            self.train_batches() if split == "train" else self.eval_batches(split),
            self.collate,
            num_workers=self.num_workers,
            seed=self.seed,
            on_skip=self._skip,
        )

    def train_dataloader(self) -> GuardedLoader:
        """Loader of the training split."""
        return self.loader("train")

    def val_dataloader(self) -> Any:
        """Loader of the validation split; an empty list where there is none."""
        return self.loader("val") if self.has("val") else []

    def test_dataloader(self) -> Any:
        """Loader of the test split."""
        return self.loader("test")

    def __getstate__(self) -> dict[str, Any]:
        """Without the trainer: ``collate`` travels to worker processes, and takes its datamodule with it."""
        return {**self.__dict__, "trainer": None}

    def _skip(self, file: str) -> None:
        self.skipped[file] += 1

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of all."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
