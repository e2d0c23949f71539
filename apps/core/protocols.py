"""The three small protocols an app implements to get logging, media, report, export and benchmark for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class MetricSuite(Protocol):
    """Streaming metrics of one split and of the trivial baseline on the same samples.

    A ``torch.nn.Module`` made of torchmetrics objects, so that states move with the module and are summed over devices.
    """

    def update(self, batch: Mapping[str, Tensor], prediction: Any) -> None:
        """Add one batch."""

    def compute(self) -> dict[str, float]:
        """Metric name to value over all samples so far."""

    def baseline(self) -> dict[str, float]:
        """The same metrics of the trivial baseline; names that have none are left out."""

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Further tables by name (per class, per horizon step), rows as dicts."""

    def count(self) -> int:
        """Samples seen."""

    def reset(self) -> None:
        """Forget everything."""


@dataclass(frozen=True)
class Picture:
    """Something to look at or listen to.

    Args:
        name: Stem of the file to write, unique in its section.
        caption: One sentence for the reader.
        figure: A ``matplotlib.figure.Figure`` (written as PNG).
        before: A figure of the same size that the report lays under the other behind a slider; None for none.
    """

    name: str
    caption: str
    figure: Any
    before: Any = None


@dataclass(frozen=True)
class ExportSpec:
    """What an exporter needs to trace and check a model.

    Args:
        module: The ``torch.nn.Module`` to export; returns a tensor or a tuple of tensors.
        examples: Keyword inputs at three or more shapes; the first is traced, all are checked.
        dynamic: Input name to {axis: axis name} of the axes that may change.
        outputs: Output names, in order.
        rtol: Relative tolerance of the check.
        atol: Absolute tolerance of the check.
    """

    module: Any
    examples: Sequence[Mapping[str, Tensor]]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]
    rtol: float = 1e-3
    atol: float = 1e-4
    notes: Mapping[str, str] = field(default_factory=dict)
