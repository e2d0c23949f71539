"""Channels of images and of networks: mosaics keep their phase, grey networks keep the colours."""

from __future__ import annotations

import numpy as np
import pytest

from apps.superres.channels import as_image, as_input
from datamodules.superres.bicubic import imresize
from datamodules.superres.degradations.config import PATTERNS
from datamodules.superres.degradations.mosaic import pattern_mask
from datamodules.superres.info import RestorationInfo
from graftwork.errors import DataError

RNG = np.random.default_rng(0)
LUMA = np.array([0.299, 0.587, 0.114])


def colours(height: int, width: int) -> np.ndarray:
    return RNG.uniform(0.3, 0.7, (height, width, 3)).astype(np.float32)


def mosaic(pattern: str) -> RestorationInfo:
    return RestorationInfo(scale=1, channels=3, pattern=pattern, period=len(pattern_mask(pattern)))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sides", [(8, 12), (7, 9), (5, 4)])
def test_raw_values_go_to_the_colours_that_were_measured(pattern, sides):
    info, mask = mosaic(pattern), pattern_mask(pattern)
    whole = tuple(side + -side % len(mask) for side in sides)
    tiled = np.tile(mask, (whole[0] // len(mask), whole[1] // len(mask), 1))
    plain = np.broadcast_to(np.float32([0.2, 0.5, 0.8]), (*whole, 3))[: sides[0], : sides[1]]
    raw = (plain * tiled[: sides[0], : sides[1]]).sum(2, keepdims=True)
    for image in (raw, plain):
        found = as_input(image, info)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, tiled * np.float32([0.2, 0.5, 0.8]))
    assert as_image(colours(*whole), raw, info).shape == (*sides, 3)


def test_measured_values_stay_where_they_are():
    image = colours(7, 10)
    mask = np.tile(pattern_mask("grbg"), (4, 5, 1))[:7]
    found = as_input(image, mosaic("grbg"))
    np.testing.assert_array_equal(found[:7], image * mask)
    np.testing.assert_array_equal(found[7], found[5])  # the last pattern once more


def test_less_than_a_pattern_is_named():
    with pytest.raises(DataError, match=r"a\.png: 3 x 9 pixels are less than the pattern 'quad' of 4 x 4"):
        as_input(colours(3, 9), mosaic("quad"), "a.png")


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_grey_network_keeps_the_colours(scale):
    info, image = RestorationInfo(scale=scale, channels=1), colours(6, 8)
    np.testing.assert_allclose(as_input(image, info)[..., 0], image @ LUMA, atol=1e-6)
    enlarged = imresize(image, scale) if scale > 1 else image
    restored = (enlarged @ LUMA)[..., None].astype(np.float32) + 0.1
    found = as_image(restored, image, info)
    assert found.dtype == np.float32 and found.min() > 0 and found.max() < 1
    np.testing.assert_allclose(found @ LUMA, restored[..., 0], atol=1e-6)
    np.testing.assert_allclose(found - restored, enlarged - (enlarged @ LUMA)[..., None], atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2])
def test_grey_stays_grey(scale):
    grey = colours(5, 6)[..., :1]
    restored = RNG.random((5 * scale, 6 * scale, 1)).astype(np.float32)
    info = RestorationInfo(scale=scale, channels=1)
    np.testing.assert_array_equal(as_image(restored, grey, info), restored)
    found = as_image(restored, grey.repeat(3, axis=2), info)
    np.testing.assert_allclose(found, restored.repeat(3, axis=2), atol=1e-6)
    in_colour = RestorationInfo(scale=scale, channels=3)
    assert as_input(grey, in_colour).shape == (5, 6, 3)
    assert as_image(restored.repeat(3, axis=2), grey, in_colour).shape == restored.shape
