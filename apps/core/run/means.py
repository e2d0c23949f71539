"""Running means of the training losses, kept in checkpoints so that a resumed epoch has the mean of all its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class EpochMeans:
    """Mean over the batches of an epoch of each named loss, in float64 and on the device of the losses."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def reset(self) -> None:
        """Begin an epoch."""
        self._sums.clear()
        self._counts.clear()

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add the losses of one batch; nothing waits for the device."""
        for name, value in parts.items():
            value = value.detach().to(_widest(value))
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def totals(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, int]]:
        """Sum and count of each loss over all processes.

        Args:
            reduce: Sum of a tensor over the processes.
        """
        totals = {}
        for name in sorted(self._sums):
            pair = torch.stack([self._sums[name], torch.tensor(self._counts[name]).to(self._sums[name])])
            total, count = reduce(pair).tolist()
            totals[name] = (total, round(count))
        return totals

    def load(self, totals: Mapping[str, tuple[float, int]]) -> None:
        """Go on from what :meth:`totals` gave; one process takes all of it, the others nothing."""
        self.reset()
        for name, (total, count) in totals.items():
            self._sums[name] = torch.tensor(total, dtype=torch.float64)
            self._counts[name] = int(count)


def _widest(value: Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64  # Apple's GPUs know no float64
