"""The best, the worst and some random samples of a split, in constant memory."""

from __future__ import annotations

import hashlib
import math
from bisect import insort
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor


class Kept(NamedTuple):
    """A sample that was kept.

    Args:
        score: Its score, lower is better; infinite where it was NaN.
        sample_index: Its index in the split.
        sample: Whatever ``make`` gave as sample.
        prediction: Whatever ``make`` gave as prediction.
    """

    score: float
    sample_index: int
    sample: Any
    prediction: Any


class _Shelf:
    """The ``size`` entries of smallest rank, in order of rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        # rank, index, sample: the index breaks ties, so that the order of arrival has no say
        self.entries: list[tuple[float, int, Kept]] = []

    def wants(self, rank: float, index: int) -> bool:
        if len(self.entries) < self.size:
            return True
        return bool(self.entries) and (rank, index) < self.entries[-1][:2]

    def put(self, rank: float, kept: Kept) -> None:
        if not self.wants(rank, kept.sample_index) or any(index == kept.sample_index for _, index, _ in self.entries):
            return
        insort(self.entries, (rank, kept.sample_index, kept), key=lambda entry: entry[:2])
        del self.entries[self.size :]

    def kept(self) -> list[Kept]:
        return [kept for _, _, kept in self.entries]


class SampleKeeper:
    """Keeps the ``k`` best, ``k`` worst and ``k`` random samples that it is offered.

    The choice is a pure function of scores, indices and seed: neither the batch size, nor the order, nor the number of
    processes changes it. Random samples are those whose hashed index is smallest.

    Args:
        k: Samples of each kind.
        seed: Seed of the random choice.
    """

    def __init__(self, k: int, seed: int = 0) -> None:
        self.k = k
        self.seed = seed
        self._best, self._worst, self._random = _Shelf(k), _Shelf(k), _Shelf(k)

    def offer(
        self,
        scores: Tensor | Iterable[float],
        indices: Tensor | Iterable[int],
        make: Callable[[int], tuple[Any, Any]],
    ) -> None:
        """Offer a batch.

        Args:
            scores: Score of each sample, [B], lower is better; NaN counts as the worst of all.
            indices: Index of each sample in the split, [B].
            make: Position in the batch to (sample, prediction); called only for samples that are kept. It must return
                copies (or CPU tensors of its own), else a kept sample holds on to its whole batch.
        """
        for position, (score, index) in enumerate(zip(_floats(scores), _ints(indices), strict=True)):
            ranks = self._ranks(score, index)
            if any(shelf.wants(rank, index) for shelf, rank in ranks):
                self._put(ranks, Kept(_finite_or_inf(score), index, *make(position)))

    def merge(self, others: Iterable[Kept]) -> None:
        """Add samples kept elsewhere, for instance by another process: ``keeper.merge(other.all())``."""
        for kept in others:
            self._put(self._ranks(kept.score, kept.sample_index), kept)

    @property
    def best(self) -> list[Kept]:
        """Samples of lowest score, the best first."""
        return self._best.kept()

    @property
    def worst(self) -> list[Kept]:
        """Samples of highest score, the worst first."""
        return self._worst.kept()

    @property
    def random(self) -> list[Kept]:
        """Samples drawn without regard to their score, in order of index."""
        return sorted(self._random.kept(), key=lambda kept: kept.sample_index)

    def all(self) -> list[Kept]:
        """Every kept sample once, in order of index."""
        by_index = {
            kept.sample_index: kept for shelf in (self._best, self._worst, self._random) for kept in shelf.kept()
        }
        return [by_index[index] for index in sorted(by_index)]

    def _ranks(self, score: float, index: int) -> list[tuple[_Shelf, float]]:
        score = _finite_or_inf(score)
        return [(self._best, score), (self._worst, -score), (self._random, self._hash(index))]

    def _put(self, ranks: list[tuple[_Shelf, float]], kept: Kept) -> None:
        for shelf, rank in ranks:
            shelf.put(rank, kept)

    def _hash(self, index: int) -> float:
        digest = hashlib.blake2b(f"{self.seed}:{index}".encode(), digest_size=6).digest()
        return float(int.from_bytes(digest, "big"))  # 48 bits: exact in a float


def _finite_or_inf(score: float) -> float:
    return math.inf if math.isnan(score) else score


def _floats(values: Tensor | Iterable[float]) -> list[float]:
    return [float(value) for value in (values.detach().tolist() if isinstance(values, Tensor) else values)]


def _ints(values: Tensor | Iterable[int]) -> list[int]:
    return [int(value) for value in (values.detach().tolist() if isinstance(values, Tensor) else values)]
