"""Augmentation: image, mask and segments stay together; crops are mixed; colours change as they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.segmentation.balance import BalancedOrder, image_weights
from datamodules.segmentation.config import AugmentConfig
from datamodules.segmentation.info import SegmentationInfo
from datamodules.segmentation.transforms import (
    Scaling,
    View,
    change_colour,
    draw_view,
    padded,
    restored,
    scaled_size,
)
from tests.datamodules.segmentation.pictures import striped

INFO = SegmentationInfo(("a", "b"), ((1, 1, 1), (2, 2, 2)))


def blocks(seed: int, height: int, width: int, side: int = 16) -> Any:
    """Squares of random labels from 0 to 3."""
    small = np.random.default_rng(seed).integers(0, 4, (-(-height // side), -(-width // side))).astype(np.uint8)
    return small.repeat(side, 0).repeat(side, 1)[:height, :width].copy()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    crop=st.tuples(st.integers(32, 100), st.integers(32, 100)),
    low=st.floats(0.4, 1.0),
    high=st.floats(1.0, 2.5),
)
def test_image_mask_and_segments_show_the_same_place(seed, height, width, crop, low, high):
    """The image is its mask as grey levels: away from edges, the crop of one must be that of the other."""
    mask = blocks(seed, height, width)
    image = Image.fromarray(60 * mask)
    augment = AugmentConfig(scale=(low, high))
    view = draw_view(np.random.default_rng(seed), mask, augment, crop)
    shown, labels = np.asarray(view.of_image(image)).astype(int), view.of_numbers(mask)
    assert shown.shape == labels.shape == view.size and all(a <= b for a, b in zip(view.size, crop, strict=True))
    assert (view.of_numbers(mask.astype(np.int32)) == labels).all()
    inner = np.zeros(labels.shape, dtype=bool)
    inner[2:-2, 2:-2] = True  # at the rim, what lies outside of the crop is mixed in
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):  # bilinear resampling mixes two pixels of the neighbour at most
            inner &= np.roll(labels, shift, axis) == labels
    for shift in ((1, 1), (1, -1), (-1, 1), (-1, -1), (2, 2), (2, -2), (-2, 2), (-2, -2)):
        inner &= np.roll(labels, shift, (0, 1)) == labels
    assert (abs(shown - 60 * labels)[inner] <= 1).all()
    assert inner.mean() > 0.1 or min(view.size) < 24


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.5, 2.0))
def test_a_view_is_a_part_of_the_whole_image_resized(seed, factor):
    pixels = np.random.default_rng(seed).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    image, mask = Image.fromarray(pixels), blocks(seed, 70, 90)
    augment = AugmentConfig(scale=(factor, factor), flip=0.0)
    view = draw_view(np.random.default_rng(seed), mask, augment, (32, 48))
    height, width = scaled_size((70, 90), augment, factor)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    left, top = round(view.box[0] * width / 90), round(view.box[1] * height / 70)
    part = whole[top : top + view.size[0], left : left + view.size[1]]
    difference = abs(part - np.asarray(view.of_image(image)).astype(int))
    assert difference.max() <= 2 and difference.mean() < 0.4  # ties are rounded either way, twice


def test_mirrored_views():
    mask = striped(40, 48)
    view = View((0.0, 0.0, 48.0, 40.0), (40, 48))
    assert (view._replace(mirrored=True).of_numbers(mask) == mask[:, ::-1]).all()
    drawn = [draw_view(np.random.default_rng(k), mask, AugmentConfig(), (32, 32)).mirrored for k in range(200)]
    assert 70 < sum(drawn) < 130


def test_sizes_are_those_of_the_recipe():
    ade = AugmentConfig(resize=(2048, 512))
    assert scaled_size((512, 683), ade, 1.0) == (512, 683)
    assert scaled_size((300, 2000), ade, 1.0) == (307, 2048)  # the longer side decides
    assert scaled_size((256, 256), ade, 0.5) == (256, 256)
    assert scaled_size((33, 47), AugmentConfig(), 1.5) == (50, 71)  # halves are rounded up


def test_a_crop_that_one_class_fills_is_drawn_again():
    mask = np.zeros((64, 640), dtype=np.uint8)
    mask[:, 600:] = 1  # one crop in ten has something of it
    augment = AugmentConfig(scale=(1.0, 1.0), redraws=60)
    for seed in range(20):
        view = draw_view(np.random.default_rng(seed), mask, augment, (64, 64))
        shares = np.bincount(view.of_numbers(mask).ravel(), minlength=2) / 4096
        assert shares.max() < 0.75
    once = [
        draw_view(np.random.default_rng(s), mask, AugmentConfig(scale=(1, 1), redraws=0), (64, 64)) for s in range(9)
    ]
    assert any((view.of_numbers(mask) == 0).all() for view in once)


def test_ignored_pixels_do_not_count_for_the_share():
    mask = np.full((64, 64), 255, dtype=np.uint8)
    mask[:, :2], mask[:, 2:4] = 0, 1
    for augment in (AugmentConfig(scale=(1.0, 1.0)), AugmentConfig(scale=(1.0, 1.0), max_share=1.0)):
        assert draw_view(np.random.default_rng(0), mask, augment, (64, 64)).size == (64, 64)


def grey_of(image: Image.Image) -> float:
    return float(np.asarray(image, dtype=float).mean())


def test_colours_change_within_their_ranges_and_nothing_else_does():
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    only_bright = AugmentConfig(brightness=20, contrast=(1, 1), saturation=(1, 1), hue=0)
    values = [grey_of(change_colour(image, np.random.default_rng(s), only_bright)) for s in range(200)]
    assert 80 <= min(values) < 84 and 116 < max(values) <= 120
    assert 70 < sum(value == 100 for value in values) < 130  # half are left as they are
    only_contrast = AugmentConfig(brightness=0, contrast=(0.5, 1.5), saturation=(1, 1), hue=0)
    values = [grey_of(change_colour(image, np.random.default_rng(s), only_contrast)) for s in range(200)]
    assert 50 <= min(values) < 56 and 144 < max(values) <= 150


def test_hue_turns_and_saturation_fades():
    image = Image.new("RGB", (2, 2), (200, 50, 50))
    turned = AugmentConfig(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=60)
    found = {change_colour(image, np.random.default_rng(s), turned).getpixel((0, 0)) for s in range(100)}
    assert any(green > 150 for _, green, _ in found) and any(blue > 150 for _, _, blue in found)
    assert all(max(pixel) == 200 for pixel in found)  # the value of HSV stays
    pale = AugmentConfig(brightness=0, contrast=(1, 1), saturation=(0.01, 0.01), hue=0)
    found = {change_colour(image, np.random.default_rng(s), pale).getpixel((0, 0)) for s in range(20)}
    assert any(min(pixel) > 190 for pixel in found)
    grey = Image.new("L", (2, 2), 80)
    assert change_colour(grey, np.random.default_rng(0), turned).mode == "L"


def test_scaling_padding_and_back():
    image = Image.new("RGB", (3, 2), (255, 0, 128))
    scaled = Scaling(INFO)(image, (4, 5))
    assert scaled.shape == (3, 4, 5) and scaled.dtype == torch.float32
    assert float(scaled[0, 0, 0]) == pytest.approx((1 - 0.485) / 0.229, rel=1e-6)
    assert (scaled[:, 2:] == 0).all() and (scaled[:, :, 3:] == 0).all()
    assert torch.allclose(restored(scaled, INFO)[:, 0, 0], torch.tensor([1.0, 0.0, 128 / 255]), atol=1e-6)
    assert padded(np.ones((1, 2), np.uint8), (2, 3), 255).tolist() == [[1, 1, 255], [255, 255, 255]]


def test_weights_of_images_by_hand():
    present = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    assert image_weights(present, 1.0).tolist() == [1, 1, 4, 4]
    assert image_weights(present, 0.5).tolist() == [1, 1, 2, 2]
    assert image_weights(np.zeros((2, 3), dtype=bool), 1.0).tolist() == [1, 1]


def test_a_balanced_epoch_shows_images_by_their_weight():
    order = BalancedOrder(np.array([1.0, 1.0, 2.0, 4.0] * 4), seed=3)
    counts = np.mean([np.bincount(order.images(epoch), minlength=16) for epoch in range(200)], axis=0)
    assert np.allclose(counts, np.array([0.5, 0.5, 1.0, 2.0] * 4), atol=0.12)
    assert [order.image(7, k) for k in range(16)] == order.images(7).tolist()
    assert BalancedOrder(order.weights, 3).images(7).tolist() == order.images(7).tolist() != order.images(8).tolist()
    assert {int(n) for n in np.bincount(order.images(1), minlength=16)[3::4]} == {2}
