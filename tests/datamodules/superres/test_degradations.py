"""Degradations: numbers worked out by hand, parts that equal parts of the degraded whole, options out of range."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.superres.bicubic import imresize
from datamodules.superres.config import FolderConfig
from datamodules.superres.crops import Box, Turn, at_least, centre_box, draw_box, draw_turn
from datamodules.superres.degradations.blur import convolved, gaussian_blur, line_kernel
from datamodules.superres.degradations.config import (
    DEGRADATIONS,
    PATTERNS,
    BicubicConfig,
    GaussianBlurConfig,
    GaussianNoiseConfig,
    HazeConfig,
    JpegConfig,
    MosaicConfig,
    MotionBlurConfig,
    RainConfig,
    ReflectionConfig,
    StoredConfig,
)
from datamodules.superres.degradations.mosaic import interpolated, pattern_mask
from graftwork.errors import ConfigError, DataError, ShapeError
from tests.datamodules.superres.images import pixels


def picture(height: int = 48, width: int = 64, number: int = 0) -> np.ndarray:
    return (pixels(number, height, width) / 255).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


COMPUTED = [name for name in DEGRADATIONS.names() if name != "stored"]


@pytest.mark.parametrize("name", COMPUTED)
def test_a_function_of_image_and_generator_alone(name):
    config = DEGRADATIONS.get(name)()
    degrade, image, other = config.build(), picture(), picture(number=1)
    before = image.copy()
    first = degrade(image, rng(3), other)
    np.random.random(5)
    np.testing.assert_array_equal(degrade(image, rng(3), other), first)
    np.testing.assert_array_equal(image, before)
    assert first.dtype == np.float32 and np.isfinite(first).all()
    assert first.shape == (48 // config.scale, 64 // config.scale, config.input_channels(3))
    assert not np.array_equal(first, image)


SETTLED: dict[str, Any] = {
    "bicubic 2": BicubicConfig(scale=2),
    "bicubic 3": BicubicConfig(scale=3),
    "bicubic 4": BicubicConfig(scale=4, rounding="none"),
    "bicubic passes": BicubicConfig(scale=4, rounding="passes"),
    "jpeg": JpegConfig(quality=20),
    "jpeg 4:4:4": JpegConfig(quality=50, subsampling="4:4:4"),
    "gaussian": GaussianBlurConfig(width=1.3),
    "motion": MotionBlurConfig(length=7.5, angle=25),
    "bayer": MosaicConfig(pattern="grbg"),
    "quad": MosaicConfig(pattern="quad_events"),
    "packed": MosaicConfig(pattern="quad", form="packed"),
}


@settings(max_examples=8)
@pytest.mark.parametrize("name", SETTLED)
@given(seed=st.integers(0, 10**6))
def test_a_part_is_degraded_as_in_the_whole(name, seed):
    degrade, random = SETTLED[name].build(), rng(seed)
    height, width = (degrade.period * int(random.integers(60 // degrade.period, 96 // degrade.period)) for _ in "hw")
    image = picture(height, width)
    box = draw_box(random, height, width, 12 * degrade.period, degrade.period)
    region = box.widened(degrade.margin, degrade.grid, height, width)
    inner = box.within(region).shrunk(degrade.scale)
    part, whole = inner.of(degrade(region.of(image), rng())), box.shrunk(degrade.scale).of(degrade(image, rng()))
    assert part.shape == whole.shape
    # rounding to 8 bits may turn a difference in the last digit into one level
    np.testing.assert_allclose(part, whole, atol=1.01 / 255 if "bicubic" in name else 2e-6)
    assert np.mean(np.abs(part - whole) > 1e-5) < 0.01


def test_bicubic_is_matlab_s():
    np.testing.assert_array_equal(BicubicConfig(rounding="none").build()(picture(), rng()), imresize(picture(), 0.25))
    rounded = BicubicConfig().build()(picture(), rng()) * 255
    np.testing.assert_allclose(rounded, np.round(rounded), atol=1e-4)


def test_noise_is_neither_rounded_nor_cut():
    flat = np.ones((200, 200, 3), np.float32)
    noise = (GaussianNoiseConfig(sigma=50).build()(flat, rng()) - flat) * 255
    assert abs(noise.mean()) < 1 and noise.std() == pytest.approx(50, rel=0.01)
    assert noise.max() > 100 and np.abs(noise - np.round(noise)).max() > 0.4
    np.testing.assert_array_equal(GaussianNoiseConfig(sigma=0).build()(flat, rng()), flat)


def test_blind_noise_is_drawn_from_its_range():
    degrade = GaussianNoiseConfig(sigma=10, sigma_max=40).build()
    found = [255 * degrade(np.zeros((64, 64, 1), np.float32), rng(seed)).std() for seed in range(40)]
    assert 9 < min(found) < 15 and 35 < max(found) < 42


def test_jpeg_is_what_a_file_would_hold():
    image = picture()
    stream = io.BytesIO()
    Image.fromarray(pixels(0, 48, 64)).save(stream, "JPEG", quality=35)
    expected = np.asarray(Image.open(stream))
    found = JpegConfig(quality=35).build()(image, rng())
    np.testing.assert_array_equal(np.rint(found * 255), expected)
    errors = [np.abs(JpegConfig(quality=q).build()(image, rng()) - image).mean() for q in (95, 50, 10)]
    assert errors[0] < errors[1] < errors[2]


def test_jpeg_in_grey_and_of_random_quality():
    grey = picture()[..., :1]
    assert JpegConfig().build()(grey, rng()).shape == grey.shape
    degrade = JpegConfig(quality=10, quality_max=90).build()
    assert len({float(degrade(grey, rng(seed)).sum()) for seed in range(20)}) > 10
    with pytest.raises(ShapeError, match="JPEG takes 1 or 3 channels, got 4"):
        degrade(np.zeros((8, 8, 4), np.float32), rng())


def test_gaussian_blur_by_hand():
    point = np.zeros((21, 21, 1), np.float32)
    point[10, 10] = 1
    found = gaussian_blur(point, 1.5)[..., 0]
    bell = np.exp(-(np.arange(-6, 7) ** 2) / (2 * 1.5**2))
    np.testing.assert_allclose(found[4:17, 4:17], np.outer(bell, bell) / bell.sum() ** 2, atol=1e-8)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(gaussian_blur(np.full((3, 2, 3), 0.4, np.float32), 5), 0.4, rtol=1e-6)


def test_line_kernels_by_hand():
    assert line_kernel(1, 33).tolist() == [[1.0]]
    across = line_kernel(5, 0)
    assert across.shape == (5, 5) and across[[0, 1, 3, 4]].sum() == 0
    np.testing.assert_allclose(across[2], [0.125, 0.25, 0.25, 0.25, 0.125], atol=0.01)
    np.testing.assert_allclose(line_kernel(9, 90), np.rot90(line_kernel(9, 0)), atol=1e-6)
    np.testing.assert_allclose(line_kernel(9, 180), line_kernel(9, 0), atol=1e-6)
    rising = line_kernel(9, 45)  # up to the right: the upper right corner, not the upper left
    assert rising[1:4, 5:8].sum() > 0.2 and rising[1:4, 1:4].sum() == 0


@settings(max_examples=20)
@given(length=st.floats(1, 40), angle=st.floats(-360, 360))
def test_line_kernels_sum_to_one_and_are_symmetric(length, angle):
    kernel = line_kernel(length, angle)
    assert kernel.shape[0] % 2 == 1 and kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-5)


def test_convolution_turns_its_kernel_and_mirrors_the_border():
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    kernel = np.zeros((3, 3), np.float32)
    kernel[1, 2] = 1  # takes the value from the left
    np.testing.assert_array_equal(convolved(image, kernel)[..., 0], [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]])
    kernel = np.zeros((3, 3), np.float32)
    kernel[0, 1] = 1  # takes the value from below
    np.testing.assert_array_equal(convolved(image, kernel)[..., 0], [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]])


def test_blur_with_noise():
    image = np.full((64, 64, 3), 0.5, np.float32)
    for config in (GaussianBlurConfig(sigma=10), MotionBlurConfig(sigma=10)):
        assert 255 * config.build()(image, rng()).std() == pytest.approx(10, rel=0.05)


# -- mosaics ----------------------------------------------------------------------------------------------------------


def test_patterns_by_hand():
    letters = {"rggb": ["rg", "gb"], "bggr": ["bg", "gr"], "grbg": ["gr", "bg"], "gbrg": ["gb", "rg"],
               "quad": ["rrgg", "rrgg", "ggbb", "ggbb"], "quad_events": ["rrgg", "r.gg", "ggbb", "ggb."]}  # fmt: skip
    assert set(letters) == set(PATTERNS)
    for pattern, rows in letters.items():
        mask = pattern_mask(pattern)
        found = ["".join("rgb"[int(place.argmax())] if place.any() else "." for place in row) for row in mask]
        assert found == rows


def test_a_masked_mosaic_keeps_one_colour_per_pixel():
    image = picture()
    found = MosaicConfig().build()(image, rng())
    np.testing.assert_array_equal(found[0::2, 0::2, 0], image[0::2, 0::2, 0])
    np.testing.assert_array_equal(found[1::2, 0::2, 1], image[1::2, 0::2, 1])
    np.testing.assert_array_equal(found[1::2, 1::2, 2], image[1::2, 1::2, 2])
    assert (np.count_nonzero(found, axis=2) <= 1).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_packing_loses_nothing(pattern):
    image = picture()
    packed = MosaicConfig(pattern=pattern, form="packed").build()(image, rng())
    masked = MosaicConfig(pattern=pattern).build()(image, rng())
    period = len(pattern_mask(pattern))
    assert packed.shape == (48 // period, 64 // period, period**2)
    np.testing.assert_array_equal(packed[3, 5, period + 1], masked[3 * period + 1, 5 * period + 1].sum())
    both = [interpolated(torch.from_numpy(form).permute(2, 0, 1)[None], pattern) for form in (packed, masked)]
    assert torch.equal(*both) and both[0].shape == (1, 3, 48, 64)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_interpolation_keeps_what_was_measured_and_flat_colours(pattern):
    image = picture()
    masked = torch.from_numpy(MosaicConfig(pattern=pattern).build()(image, rng())).permute(2, 0, 1)[None]
    found = interpolated(masked, pattern)[0].permute(1, 2, 0).numpy()
    where = np.tile(pattern_mask(pattern), (48 // len(pattern_mask(pattern)), 64 // len(pattern_mask(pattern)), 1)) > 0
    np.testing.assert_array_equal(found[where], image[where])
    flat = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (16, 16, 3))
    masked = torch.from_numpy(MosaicConfig(pattern=pattern).build()(flat, rng())).permute(2, 0, 1)[None]
    np.testing.assert_allclose(interpolated(masked, pattern)[0].permute(1, 2, 0), flat, atol=1e-6)


def test_bilinear_demosaicing_by_hand():
    values = torch.arange(36.0).view(1, 1, 6, 6).expand(1, 3, 6, 6)
    mask = torch.from_numpy(pattern_mask("rggb")).permute(2, 0, 1).tile(1, 3, 3)
    found = interpolated(values * mask, "rggb")[0]
    assert found[1, 2, 2] == (8 + 13 + 15 + 20) / 4  # green at a red pixel: four neighbours
    assert found[0, 3, 3] == (14 + 16 + 26 + 28) / 4  # red at a blue pixel: four corners
    assert found[0, 2, 3] == (14 + 16) / 2  # red at a green pixel: two neighbours


def test_mosaics_refuse_what_has_no_pattern():
    with pytest.raises(ShapeError, match=r"3 channels and sides that are multiples of 2, got \[5, 4, 3\]"):
        MosaicConfig().build()(np.zeros((5, 4, 3), np.float32), rng())
    with pytest.raises(ConfigError, match="unknown pattern 'xtrans'; known: rggb"):
        pattern_mask("xtrans")


# -- weather and reflections ------------------------------------------------------------------------------------------


def test_rain_only_brightens_in_streaks():
    image = picture(96, 96) * 0.5
    found = RainConfig(tilt=0).build()(image, rng()) - image
    assert found.min() >= 0 and 0.001 < (found > 0.05).mean() < 0.5
    rows, columns = np.abs(np.diff(found, axis=0)).mean(), np.abs(np.diff(found, axis=1)).mean()
    assert columns > 2 * rows  # upright streaks change quickly across, slowly along
    np.testing.assert_allclose(RainConfig(density=0).build()(image, rng()), image)


def test_haze_mixes_with_its_light():
    black = np.zeros((32, 40, 3), np.float32)
    found = HazeConfig(thickness=1, thickness_max=None, airlight=0.8).build()(black, rng())
    assert found.min() == pytest.approx(0, abs=1e-6) and found.max() == pytest.approx(0.8 * (1 - np.exp(-1)), rel=1e-4)
    np.testing.assert_allclose(HazeConfig(airlight=0.3).build()(black + 0.3, rng()), 0.3, rtol=1e-5)
    for sides in ((1, 1), (3, 50)):
        assert HazeConfig().build()(np.zeros((*sides, 3), np.float32), rng()).shape == (*sides, 3)


def test_reflections_add_a_blurred_other():
    image, other = np.full((16, 16, 3), 0.25, np.float32), np.full((16, 16, 3), 0.5, np.float32)
    degrade = ReflectionConfig(strength=0.4, strength_max=None).build()
    np.testing.assert_allclose(degrade(image, rng(), other), 0.25 + 0.4 * 0.5, rtol=1e-5)
    with pytest.raises(DataError, match="needs a second image of the same size"):
        degrade(image, rng(), None)


def test_stored_computes_nothing():
    assert not StoredConfig().computes and StoredConfig(scale=4).border == 4 and StoredConfig().border == 0
    with pytest.raises(DataError, match="read from files"):
        StoredConfig().build()(picture(), rng())


# -- options ----------------------------------------------------------------------------------------------------------

WRONG = [
    (BicubicConfig(scale=0), "scale=0 must be at least 1"),
    (GaussianNoiseConfig(sigma=-1), "sigma=-1 must be from 0 to 255"),
    (GaussianNoiseConfig(sigma=20, sigma_max=10), "sigma_max=10 must be from sigma=20 to 255"),
    (GaussianNoiseConfig(sigma=float("nan")), "sigma=nan"),
    (JpegConfig(quality=0), "quality=0 must be from 1 to 100"),
    (JpegConfig(quality=50, quality_max=101), "quality_max=101"),
    (GaussianBlurConfig(width=0), "width=0"),
    (MotionBlurConfig(length=0.5), "length=0.5"),
    (RainConfig(density=2), "density=2"),
    (HazeConfig(airlight=1.5), "airlight=1.5"),
    (ReflectionConfig(strength=0.5, strength_max=0.2), "strength_max=0.2 must be from strength=0.5 to 1"),
    (MosaicConfig(sigma=300), "sigma=300"),
    (StoredConfig(scale=-1), "scale=-1"),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=[text for _, text in WRONG])
def test_options_out_of_range(config, message, tmp_path):
    with pytest.raises(ConfigError, match=f"degradation.{message}"):
        FolderConfig(root=str(tmp_path), degradation=config).check()


def test_every_degradation_is_registered_with_a_description_and_its_protocol():
    protocol = {
        name: (DEGRADATIONS.get(name)().colour, DEGRADATIONS.get(name)().border) for name in DEGRADATIONS.names()
    }
    assert protocol["bicubic"] == ("y", 4) and protocol["gaussian_noise"] == ("rgb", 0)
    assert protocol["rain"] == ("y", 0) and protocol["mosaic"] == ("rgb", 10) and protocol["jpeg"] == ("rgb", 0)
    assert all(DEGRADATIONS.get(name).__doc__ for name in DEGRADATIONS.names())


# -- parts and turns --------------------------------------------------------------------------------------------------


SIDES, WAYS = st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=40)
@given(sides=SIDES, ways=WAYS, seed=st.integers(0, 99))
def test_a_part_keeps_its_content_when_the_image_is_turned(sides, ways, seed):
    (height, width), turn = sides, Turn(*ways)
    image = np.arange(height * width).reshape(height, width, 1)
    random = rng(seed)
    (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2).tolist()) for side in (height, width))
    box = Box(top, left, bottom, right)
    np.testing.assert_array_equal(turn.box(box, height, width).of(turn.of(image)), turn.of(box.of(image)))


def test_the_eight_turns_differ():
    image = np.arange(4).reshape(2, 2, 1)
    turns = [Turn(a, b, c).of(image).tobytes() for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    assert len(set(turns)) == 8
    assert Turn(mirror=True).of(image)[..., 0].tolist() == [[1, 0], [3, 2]]
    assert Turn(upend=True, transpose=True).of(image)[..., 0].tolist() == [[2, 0], [3, 1]]  # a quarter turn


def test_turns_are_drawn_with_probability_one_half_each():
    turns = np.array([draw_turn(rng(seed), True, True) for seed in range(400)])
    assert (np.abs(turns.mean(0) - 0.5) < 0.08).all() and len({tuple(turn) for turn in turns.tolist()}) == 8
    some = [draw_turn(rng(seed), True, False) for seed in range(50)]
    assert not any(turn.transpose for turn in some)
    assert [turn[:2] for turn in some] == [draw_turn(rng(seed), True, True)[:2] for seed in range(50)]


def test_every_place_of_a_patch_is_drawn():
    corners = {draw_box(rng(seed), 7, 9, 5, 2)[:2] for seed in range(200)}
    assert corners == {(top, left) for top in (0, 2) for left in (0, 2, 4)}
    assert draw_box(rng(), 5, 5, 5) == (0, 0, 5, 5)


def test_margins_end_at_the_image_and_begin_on_the_grid():
    assert Box(20, 30, 28, 38).widened(5, 8, 100, 41) == Box(8, 24, 40, 41)
    assert Box(0, 0, 8, 8).widened(3, 1, 9, 20) == Box(0, 0, 9, 11)


def test_centres_and_small_images():
    assert centre_box(10, 20, 4) == Box(3, 8, 7, 12) and centre_box(3, 20, 4, 2) == Box(0, 8, 3, 12)
    grown = at_least(np.arange(2).reshape(2, 1, 1), 5)
    assert grown[..., 0].T.tolist()[0] == [0, 1, 1, 0, 0] and grown.shape == (5, 5, 1)
