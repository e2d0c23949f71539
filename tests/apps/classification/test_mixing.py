"""Mixup and cutmix by hand, and their shares over many draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.classification.config import MixConfig
from apps.classification.mixing import Box, cutmix, draw_box, mix, mixup

IMAGES = torch.arange(2 * 1 * 4 * 4, dtype=torch.float64).reshape(2, 1, 4, 4)
TARGETS = torch.eye(2, dtype=torch.float64)


def test_mixup_by_hand():
    mixed = mixup(IMAGES, TARGETS, share=0.75)
    torch.testing.assert_close(mixed.images[0], 0.75 * IMAGES[0] + 0.25 * IMAGES[1])
    torch.testing.assert_close(mixed.images[1], 0.75 * IMAGES[1] + 0.25 * IMAGES[0])
    assert mixed.targets.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_cutmix_by_hand():
    mixed = cutmix(IMAGES, TARGETS, Box(1, 3, 0, 3))
    wanted = IMAGES[0].clone()
    wanted[:, 1:3, 0:3] = IMAGES[1][:, 1:3, 0:3]
    assert torch.equal(mixed.images[0], wanted)
    assert mixed.targets.tolist() == [[1 - 6 / 16, 6 / 16], [6 / 16, 1 - 6 / 16]]
    assert torch.equal(IMAGES, torch.arange(32, dtype=torch.float64).reshape(2, 1, 4, 4))


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_boxes_lie_inside(height, width, area, seed):
    top, bottom, left, right = draw_box(height, width, area, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (round(height * area**0.5)) * (round(width * area**0.5))


def test_the_middle_box_has_the_share_it_was_drawn_for():
    class Middle:
        def integers(self, size):
            return size // 2

    box = draw_box(100, 60, 0.25, Middle())
    assert (box.bottom - box.top, box.right - box.left) == (50, 30) and (box.top, box.left) == (25, 15)


def kinds(config: MixConfig, draws: int = 400) -> dict[str, float]:
    """Share of batches left alone, blended and cut."""
    random = np.random.default_rng(0)
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    found = {"plain": 0, "blended": 0, "cut": 0}
    for _ in range(draws):
        mixed = mix(images, torch.tensor([0, 1]), 2, config, random)
        torch.testing.assert_close(mixed.targets.sum(1), torch.ones(2))
        torch.testing.assert_close(mixed.images[0].mean(), mixed.targets[0, 1], atol=1e-6, rtol=0)
        values = mixed.images.unique()
        whole = torch.equal(mixed.images, images)
        kind = "plain" if whole else "cut" if set(values.tolist()) <= {0.0, 1.0} else "blended"
        found[kind] += 1
    return {kind: count / draws for kind, count in found.items()}


def test_kinds_have_their_share():
    assert kinds(MixConfig(mixup=1.0))["blended"] > 0.99
    assert kinds(MixConfig(cutmix=1.0))["blended"] == 0
    both = kinds(MixConfig(mixup=1.0, cutmix=1.0, probability=0.5, switch=0.25))
    assert both["plain"] == pytest.approx(0.5, abs=0.08) and both["blended"] == pytest.approx(0.375, abs=0.07)


def test_mixing_depends_on_its_generator_alone():
    config = MixConfig(mixup=0.8, cutmix=1.0)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    first, again, other = (mix(images, labels, 5, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.images, other.images)


def test_one_image_alone_mixes_with_itself():
    mixed = mix(IMAGES[:1], torch.tensor([1]), 2, MixConfig(mixup=1.0), np.random.default_rng(0))
    torch.testing.assert_close(mixed.images, IMAGES[:1])
    torch.testing.assert_close(mixed.targets, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
