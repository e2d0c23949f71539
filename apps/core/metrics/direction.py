"""Whether a metric, known by name alone, is better high or low."""

from __future__ import annotations

import math
import re

_HIGHER = frozenset(
    [
        "aacc",
        "acc",
        "accuracy",
        "ap",
        "ap50",
        "ap75",
        "ar",
        "auc",
        "auroc",
        "coverage",
        "dice",
        "f1",
        "fscore",
        "iou",
        "jaccard",
        "macc",
        "map",
        "miou",
        "ndcg",
        "pesq",
        "precision",
        "psnr",
        "pq",
        "r2",
        "recall",
        "return",
        "reward",
        "rq",
        "sdr",
        "sdri",
        "sdsdr",
        "sisdr",
        "sisdri",
        "snr",
        "sq",
        "ssim",
        "stoi",
        "success",
        "top1",
        "top5",
    ]
)
_LOWER = frozenset(["cer", "distance", "eer", "err", "error", "gap", "loss", "mae", "mse", "rate", "rmse", "wer"])

_DECIBELS = frozenset(["psnr", "sdr", "sdri", "sdsdr", "sisdr", "sisdri", "snr"])


def in_decibels(metric: str) -> bool:
    """True for metrics on a logarithmic scale, of which differences tell and ratios do not.

    Args:
        metric: Name, with or without its split: ``"val/psnr_rgb"``.
    """
    words = re.split(r"[^a-z0-9]+", metric.lower().rpartition("/")[2])
    return any(word in _DECIBELS or word.startswith("psnr") for word in words)


def higher_is_better(metric: str) -> bool:
    """True for metrics such as accuracy, IoU or PSNR; errors, losses and everything unknown are better low.

    Args:
        metric: Name, with or without its split: ``"val/miou"``.
    """
    words = re.split(r"[^a-z0-9]+", metric.lower().rpartition("/")[2])
    if any(word in _LOWER for word in words):
        return False
    return any(word in _HIGHER or word.startswith(("accuracy", "map", "psnr")) for word in words)


def is_better(metric: str, ours: float | None, other: float | None) -> bool | None:
    """Whether our value beats another; None where either is missing, NaN, or both are equal."""
    if ours is None or other is None or math.isnan(ours) or math.isnan(other) or ours == other:
        return None
    return (ours > other) == higher_is_better(metric)
