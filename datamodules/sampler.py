"""Which samples make up which batch: pure functions of (seed, epoch), whatever loads them.

Keys are pairs ``(epoch, index)``, so that a worker process can derive the augmentation of a sample from its key alone,
see :func:`sample_rng`. Nothing here depends on the number of workers or on how far they have read ahead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from graftwork.errors import ConfigError

Key = tuple[int, int]
"""Epoch and sample index."""


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Randomness of one sample in one epoch, for augmentation.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        index: Index of the sample in its split.

    Returns:
        A generator that depends on the three numbers and on nothing else.
    """
    # the index goes into the spawn key: plain entropy (s, e) and (s, e, 0) would be the same stream
    return np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(index,)))


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of all samples in an epoch, [samples]: a permutation that depends on seed and epoch alone."""
    return np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(samples)


class TrainBatches(Sampler[list[Key]]):
    """Batches of a training epoch for one process of several.

    Every process gets the same number of batches, so that none waits for a gradient that never comes. Where the samples
    cannot be shared evenly the first few of the order come twice in that epoch; none is left out.

    Args:
        samples: Samples of the split.
        batch_size: Samples per batch and process.
        seed: Seed of the order.
        drop_last: Leave out a last batch that is not full. Off, because nothing should be lost silently.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        ConfigError: ``drop_last`` leaves no batch at all.
    """

    def __init__(
        self, samples: int, batch_size: int, *, seed: int = 0, drop_last: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.drop_last, self.rank, self.world = drop_last, rank, world
        self.epoch = 0
        self._start: Key = (0, 0)
        if samples and not len(self):
            raise ConfigError(
                f"batch_size={batch_size} is more than the {self.share} training samples of a process, and drop_last "
                "leaves out a batch that is not full",
                mend=f"Try --data.batch_size {self.share}",
            )

    @property
    def sampler(self) -> TrainBatches:
        """Itself: Lightning calls ``batch_sampler.sampler.set_epoch`` before each epoch."""
        return self

    @property
    def share(self) -> int:
        """Samples of one process and epoch."""
        return -(-self.samples // self.world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Let the next iteration go through ``epoch`` from its batch number ``batch`` (0-based) on.

        The length stays that of a whole epoch: the training loop counts the batches done before.
        """
        self.epoch, self._start = epoch, (epoch, batch)

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Sample indices of this process in an epoch, in order, [share]."""
        order = epoch_order(self.samples, self.seed, epoch)
        return np.resize(order, self.share * self.world)[self.rank :: self.world]

    def batch(self, epoch: int, number: int) -> list[int]:
        """Sample indices of one batch."""
        return self.indices(epoch)[number * self.batch_size : (number + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return self.share // self.batch_size if self.drop_last else -(-self.share // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        # no generator function: the epoch is fixed now, not when a worker asks for the first batch
        epoch, first = self.epoch, self._start[1] if self._start[0] == self.epoch else 0
        order = self.indices(epoch).tolist()
        starts = range(first * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return ([(epoch, index) for index in order[start : start + self.batch_size]] for start in starts)


class EvalBatches(Sampler[list[Key]]):
    """Batches of an evaluation for one process of several: each sample exactly once over all processes, in order.

    Args:
        samples: Samples of the split.
        batch_size: Samples per batch.
        rank: Number of this process; it takes samples ``rank``, ``rank + world``, ...
        world: Number of processes.

    Raises:
        ConfigError: A process would get no sample.
    """

    def __init__(self, samples: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if samples < world:
            raise ConfigError(
                f"{world} devices cannot share a split of {samples} samples", mend="Try --trainer.devices 1"
            )
        self.samples, self.batch_size, self.rank, self.world = samples, batch_size, rank, world

    def batch(self, number: int) -> list[int]:
        """Sample indices of one batch."""
        own = range(self.rank, self.samples, self.world)
        return list(own[number * self.batch_size : (number + 1) * self.batch_size])

    def __len__(self) -> int:
        own = len(range(self.rank, self.samples, self.world))
        return -(-own // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        return ([(0, index) for index in self.batch(number)] for number in range(len(self)))
