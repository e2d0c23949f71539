"""How scores fall when images get worse: a test of each corruption at each severity.

Source: Hendrycks and Dietterich 2019 for classification, Kamann and Rother 2020 for segmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from apps.core.report.drawing import new_figure
from apps.segmentation.corruptions import SEVERITIES, corrupt_batch
from apps.segmentation.metrics import SegmentationMetrics
from apps.segmentation.prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from apps.segmentation.module import SegmentationModule

CLEAN = "none"
"""Name of the row of images as they are."""


Batch = Mapping[str, Any]


def robustness(
    module: SegmentationModule,
    batches: Iterable[Batch],
    names: Sequence[str],
    most: int = 0,
    predict: Callable[[Batch], Prediction] | None = None,
) -> list[dict[str, Any]]:
    """Mean IoU under corruptions.

    Args:
        module: A trained module, on its device.
        batches: Batches of the test split, in its order.
        names: Corruptions.
        most: Images to take, the first ones of the split; 0 for all.
        predict: Classes of a batch; the module's if omitted.

    Returns:
        A row for images as they are and one for each corruption: ``corruption``, ``mean`` over severities, ``1`` to
        ``5``, and ``kept %``, the mean by that of images as they are; all in percent. The rows of several processes are
        those of all their images.
    """
    predict = predict or module.predict_classes
    suites = {(name, severity): SegmentationMetrics(module.info) for name in names for severity in SEVERITIES}
    suites[CLEAN, 0] = SegmentationMetrics(module.info)
    for suite in suites.values():
        suite.to(module.device)
    for batch in _first(batches, most) if most else batches:
        for (name, severity), suite in suites.items():
            changed = batch if name == CLEAN else corrupt_batch(batch, module.info, name, severity, module.config.seed)
            suite.update(changed, predict(changed))
    found = {key: suite.compute()["miou"] for key, suite in suites.items()}
    clean = found[CLEAN, 0]
    rows: list[dict[str, Any]] = [{"corruption": CLEAN, "mean": clean, "kept %": 100.0}]
    for name in names:
        values = [found[name, severity] for severity in SEVERITIES]
        mean = sum(values) / len(values)
        kept = 100 * mean / clean if clean > 0 else None
        by_severity = {str(severity): value for severity, value in zip(SEVERITIES, values, strict=True)}
        rows.append({"corruption": name, "mean": mean, "kept %": kept, **by_severity})
    return rows


def _first(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """The samples of the first images of a split, whatever batches and processes they are in."""
    for batch in batches:
        count = int((batch["index"] < most).sum())
        if not count:  # batches are in order
            return
        yield {key: value[:count] if isinstance(value, Tensor | list) else value for key, value in batch.items()}


def draw_robustness(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean IoU over severity, a line for each corruption.

    Args:
        rows: Of :func:`robustness`.
    """
    figure, axes = new_figure(7, 4)
    axis = axes[0, 0]
    axis.axhline(rows[0]["mean"], color="#6b7280", linestyle="--", linewidth=1, label="images as they are")
    for row in rows[1:]:
        values = [rows[0]["mean"], *(row[str(severity)] for severity in SEVERITIES)]
        axis.plot(range(len(values)), values, marker="o", markersize=3, linewidth=1.2, label=row["corruption"])
    axis.set_xlabel("severity")
    axis.set_ylabel("mean IoU, %")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=7)
    return figure
