"""Pictures of forecasts: windows, errors by step, attention between variates. Knows no logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, TRUTH, NAIVE = "#2563eb", "#111827", "#9ca3af"
MOST_PANELS = 4

Array = NDArray[Any]


def new_figure(width: float, height: float, rows: int = 1) -> tuple[Figure, Array]:
    """A figure with one column of axes that needs no display.

    Args:
        width: Inches.
        height: Inches.
        rows: Axes, one below the other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def draw_forecast(
    history: Array,
    forecast: Array,
    names: Sequence[str],
    *,
    truth: Array | None = None,
    naive: Array | None = None,
    band: tuple[Array, Array] | None = None,
    times: Any = None,
    title: str = "",
) -> Figure:
    """History, forecast and, where known, truth, baseline and quantile band of the first variates.

    Args:
        history: [look-back, variates] in units.
        forecast: [horizon, outputs] in units; outputs are the last variates of the history.
        names: Name of each output.
        truth: [horizon, outputs].
        naive: [horizon, outputs], the baseline's forecast.
        band: Lowest and highest quantile, [horizon, outputs] each.
        times: look-back + horizon timestamps; steps relative to now if omitted.
        title: Line above the figure.
    """
    outputs = forecast.shape[1]
    history = history[:, history.shape[1] - outputs :]
    shown = _panels(outputs)
    figure, axes = new_figure(8, 1.2 + 1.6 * len(shown), len(shown))
    steps = np.arange(-len(history), len(forecast)) if times is None else np.asarray(times)
    past, ahead = steps[: len(history)], steps[len(history) :]
    for axis, i in zip(axes, shown, strict=True):
        axis.plot(past, history[:, i], color=TRUTH, lw=1, label="history")
        if truth is not None:
            axis.plot(ahead, truth[:, i], color=TRUTH, lw=1, ls=":", label="truth")
        if naive is not None:
            axis.plot(ahead, naive[:, i], color=NAIVE, lw=1, label="seasonal naive")
        if band is not None:
            axis.fill_between(ahead, band[0][:, i], band[1][:, i], color=OURS, alpha=0.2, lw=0, label="quantile band")
        axis.plot(ahead, forecast[:, i], color=OURS, lw=1.4, label="forecast")
        axis.set_ylabel(names[i], fontsize=8)
    axes[0].set_title(title, fontsize=9, loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, frameon=False, ncols=5, loc="outside upper right")
    if times is None:
        axes[-1].set_xlabel("steps from now", fontsize=8)
    else:
        figure.autofmt_xdate()
    return figure


def _panels(outputs: int) -> list[int]:
    """The last variates: the target stands last."""
    return list(range(max(0, outputs - MOST_PANELS), outputs))


def draw_error_by_step(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean absolute error over the horizon, ours and the baseline's.

    Args:
        rows: Rows of the suite's table ``error by step``.
    """
    figure, axes = new_figure(8, 3)
    steps = [row["step"] for row in rows]
    marker = "o" if len(steps) == 1 else None
    axes[0].plot(steps, [row["MAE, scaled"] for row in rows], color=OURS, lw=1.4, marker=marker, label="ours")
    naive = [row["MAE of seasonal naive, scaled"] for row in rows]
    axes[0].plot(steps, naive, color=NAIVE, lw=1, marker=marker, label="seasonal naive")
    axes[0].set_ylim(bottom=0)
    axes[0].set_xlabel("step of the horizon", fontsize=8)
    axes[0].set_ylabel("MAE, scaled values", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def draw_attention(weights: Array, names: Sequence[str]) -> Figure:
    """Which token attends to which, mean over heads.

    Args:
        weights: [heads, tokens, tokens], rows sum to 1.
        names: Name of each token; rows and columns beyond them are calendar tokens.
    """
    tokens = weights.shape[-1]
    labels = [*names, *(f"calendar {i + 1}" for i in range(tokens - len(names)))][:tokens]
    side = min(10.0, 2.5 + 0.35 * tokens)
    figure, axes = new_figure(side + 1, side)
    picture = axes[0].imshow(weights.mean(0), cmap="Blues", vmin=0)
    figure.colorbar(picture, ax=axes[0], shrink=0.8)
    if tokens <= 40:
        axes[0].set_xticks(range(tokens), labels, rotation=90, fontsize=7)
        axes[0].set_yticks(range(tokens), labels, fontsize=7)
    axes[0].set_xlabel("looked at", fontsize=8)
    axes[0].set_ylabel("looking", fontsize=8)
    return figure
