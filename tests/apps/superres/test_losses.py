"""Losses with values that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from apps.superres.losses import KINDS, charbonnier, frequency_l1, pixel_focus, restoration_loss
from graftwork.errors import ShapeError


def images() -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.zeros(1, 1, 1, 2)
    return torch.tensor([[[[0.1, -0.3]]]]), target


def test_by_hand():
    restored, target = images()
    assert restoration_loss(restored, target, "l1")["loss"] == pytest.approx(0.2)
    assert restoration_loss(restored, target, "mse")["loss"] == pytest.approx(0.05)
    assert charbonnier(restored, target, 0.4) == pytest.approx((math.sqrt(0.17) + 0.5) / 2)
    # errors 0.1 and 0.3, mean 0.2: weights 0.5 and 1.5
    assert pixel_focus(restored, target, 1.0, "power") == pytest.approx((0.5 * 0.1 + 1.5 * 0.3) / 2)
    low, high = math.exp(0.2), math.exp(0.6)
    expected = (low * 0.1 + high * 0.3) / (low + high)
    assert pixel_focus(restored, target, 2.0, "exponential") == pytest.approx(expected)


@pytest.mark.parametrize("form", ["power", "exponential"])
def test_no_focus_is_the_mean_error(form):
    restored, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert pixel_focus(restored, target, 0.0, form) == pytest.approx(float((restored - target).abs().mean()), rel=1e-5)


def test_a_constant_error_lies_in_one_frequency():
    # 4 x 4 values of 0.5: the orthonormal transform holds 0.5 * 16 / 4 = 2 in one of 4 x 3 x 2 numbers
    assert frequency_l1(torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)) == pytest.approx(2 / 24)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frequency_weight", [0.0, 0.1])
def test_losses_vanish_at_the_truth_and_have_gradients_elsewhere(kind, frequency_weight):
    target = torch.rand(1, 3, 6, 5)
    options = {"frequency_weight": frequency_weight, "epsilon": 0.0}
    assert restoration_loss(target, target, kind, **options)["loss"] == 0
    restored = torch.rand(1, 3, 6, 5, requires_grad=True)
    parts = restoration_loss(restored, target, kind, **options)
    parts["loss"].backward()
    assert restored.grad.isfinite().all() and restored.grad.abs().sum() > 0
    if frequency_weight:
        assert float(parts["loss"]) == pytest.approx(float(parts[kind] + 0.1 * parts["frequency"]), rel=1e-5)


def test_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"restored images are \[1, 3, 4, 4\], the truth is \[1, 3, 4, 5\]"):
        restoration_loss(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
