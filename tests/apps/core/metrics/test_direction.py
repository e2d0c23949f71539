from __future__ import annotations

import math

import pytest

from apps.core.metrics.direction import higher_is_better, is_better


@pytest.mark.parametrize("name", ["val/miou", "acc_top1", "psnr_y", "SSIM", "mAP@50", "dice", "si_sdr", "top5"])
def test_scores_are_better_high(name: str):
    assert higher_is_better(name)


@pytest.mark.parametrize("name", ["mse", "val/mae", "loss", "wer", "depth_error", "precision_loss", "something"])
def test_errors_and_unknown_names_are_better_low(name: str):
    assert not higher_is_better(name)


def test_better_needs_two_different_numbers():
    assert is_better("mse", 1.0, 2.0) is True
    assert is_better("miou", 1.0, 2.0) is False
    for ours, other in [(1.0, 1.0), (None, 1.0), (1.0, None), (math.nan, 1.0), (1.0, math.nan)]:
        assert is_better("mse", ours, other) is None
