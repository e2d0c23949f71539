"""Scoring a split: streaming metrics, the mean loss, and the samples worth a picture, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apps.core.metrics.best_worst import SampleKeeper
from apps.core.protocols import MetricSuite

if TYPE_CHECKING:
    from apps.core.run.module import GraftModule

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """Scores of a whole split, over all processes.

    Args:
        metrics: Metric name to value; ``loss`` is the mean over batches where the app gives one.
        baseline: The same metrics of the trivial baseline, where it has them.
        tables: Further tables by name.
        samples: Samples scored.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: int = 0


class SplitScore:
    """One pass over a split.

    Args:
        suite: Metrics of the split.
        keeper: Takes samples for pictures; None keeps none.
        with_loss: Whether the app's validation loss is a score too.
    """

    def __init__(self, suite: MetricSuite, keeper: SampleKeeper | None = None, with_loss: bool = True) -> None:
        self.suite, self.keeper, self.with_loss = suite, keeper, with_loss
        self._loss = torch.zeros((), dtype=torch.float64)
        self._batches = self._samples = 0

    def add(self, module: GraftModule, batch: Mapping[str, Tensor], prediction: Any, indices: list[int]) -> None:
        """Score one batch.

        Args:
            module: Knows losses and scores.
            batch: The batch.
            prediction: The module's prediction for it.
            indices: Indices of its samples in the split, for the pictures.
        """
        self.suite.update(batch, prediction)
        self._samples += batch_size(batch)
        loss = module.validation_loss(batch, prediction) if self.with_loss else None
        if loss is not None:
            self._loss, self._batches = self._loss + loss.detach().cpu().double(), self._batches + 1
        scores = module.sample_scores(batch, prediction) if self.keeper is not None else None
        if self.keeper is not None and scores is not None:
            places = module.picture_candidates(batch, indices)
            self.keeper.offer(
                [float(scores[place]) for place in places],
                [indices[place] for place in places],
                lambda i: (sample_at(batch, places[i]), module.unbatch(prediction, places[i])),
            )

    def outcome(self, reduce: Reduce) -> Outcome:
        """Scores over all processes.

        Args:
            reduce: Sum of a tensor over the processes.
        """
        loss, batches, samples = reduce(torch.stack([self._loss, *_doubles(self._batches, self._samples)])).tolist()
        metrics = {name: float(value) for name, value in self.suite.compute().items()}
        baseline = {name: float(value) for name, value in self.suite.baseline().items()}
        if batches:
            metrics.setdefault("loss", loss / batches)
        return Outcome(metrics, baseline, self.suite.tables(), round(samples))


def _doubles(*values: int) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def batch_size(batch: Any) -> int:
    """Samples of a batch: length of the first axis of its first tensor.

    Raises:
        TypeError: The batch holds no tensor with an axis.
    """
    if isinstance(batch, Tensor) and batch.ndim:
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for part in parts:
        if isinstance(part, Tensor) and part.ndim:
            return len(part)
    raise TypeError(f"a batch must hold a tensor with a leading batch axis, got {type(batch).__name__}")


def sample_at(batch: Mapping[str, Any], place: int) -> dict[str, Any]:
    """One sample of a batch as copies on the CPU, so that it does not hold on to the whole batch."""
    return {key: _own(value[place]) for key, value in batch.items()}


def _own(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
