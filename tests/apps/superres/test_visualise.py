"""Crops of the largest gain and loss, pictures, and attributions that can be worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from apps.superres.attribution import diffusion_index, local_attribution
from apps.superres.visualise import draw_attribution, draw_crops, extreme_crops, plain


def png(figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def test_crops_lie_where_the_error_falls_and_rises_most():
    truth = np.zeros((60, 90, 3))
    baseline, restored = truth.copy(), truth.copy()
    baseline[40:44, 70:74] = 1  # repaired
    restored[10:14, 20:24] = 1  # spoiled
    best, worst = extreme_crops(restored, baseline, truth, side=16)
    assert best.of(baseline).sum() == worst.of(restored).sum() == 4 * 4 * 3
    small, _ = extreme_crops(restored[:9, :7], baseline[:9, :7], truth[:9, :7], side=16)
    assert small == (0, 0, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_drawn(channels):
    image = np.random.default_rng(0).random((40, 50, channels))
    rows = [("largest gain", [image, image]), ("largest loss", [image, image])]
    assert png(draw_crops(rows, ("bicubic", "ours"), image.mean(-1)))
    assert png(draw_crops(rows[:1], ("bicubic", "ours")))
    assert png(draw_attribution(image, image.mean(-1), (4, 5, 6, 7), 12.3))


def test_a_plain_picture_has_the_pixels_of_the_image():
    figure = plain(np.random.default_rng(0).random((220, 330, 3)))
    assert figure.get_size_inches() * 110 == pytest.approx([330, 220])
    assert plain(np.zeros((3000, 20, 1))).get_size_inches()[1] * 110 == pytest.approx(900)


def test_importance_lies_inside_the_field_of_view():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 5, padding=2), nn.PixelShuffle(2))
    image = torch.rand(3, 40, 40)
    found = local_attribution(net, image, 2, side=8, place=(40, 20), steps=5)
    assert found.box == (20, 10, 4, 4)
    inside = found.weights[20 - 2 : 24 + 2, 10 - 2 : 14 + 2]
    assert float(inside.sum()) == pytest.approx(1.0, abs=1e-5) and float(found.weights.sum()) == pytest.approx(1.0)
    assert 0 < found.diffusion_index < 10


def test_the_diffusion_index_of_one_pixel_and_of_all():
    one = torch.zeros(10, 10)
    one[3, 4] = 1
    assert diffusion_index(one) == pytest.approx(1.0)  # one of a hundred pixels
    assert diffusion_index(torch.ones(10, 10)) == pytest.approx(100)
    half = torch.zeros(10, 10)
    half[:5] = 1
    assert diffusion_index(half) == pytest.approx(50)
