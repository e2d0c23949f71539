"""Corruptions depend on seed, image and severity alone, grow with severity, and move nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apps.segmentation.config import CORRUPTION_GROUPS
from apps.segmentation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupt_batch
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, ShapeError


def scene(height: int = 96, width: int = 128, channels: int = 3) -> Tensor:
    """Smooth ground with a bright square and a dark one."""
    down, across = torch.arange(height)[:, None] / height, torch.arange(width) / width
    image = torch.stack([0.3 + 0.3 * down + 0 * across, 0.5 - 0.2 * across + 0 * down, 0.4 + 0.1 * down * across])
    image[:, height // 5 : height // 2, width // 6 : width // 2] = torch.tensor([0.9, 0.8, 0.3])[:, None, None]
    image[:, height // 2 : -10, width // 2 : -20] = torch.tensor([0.1, 0.05, 0.2])[:, None, None]
    return image[:channels]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).pow(2).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_stays_an_image_and_is_the_same_every_time(name):
    for channels in (1, 3):
        image = scene(channels=channels)
        before = image.clone()
        found = corrupt(image, name, 3, seed=4, index=7)
        assert found.shape == image.shape and found.dtype == torch.float32
        assert found.min() >= 0 and found.max() <= 1
        assert torch.equal(image, before) and not torch.equal(found, image)
        torch.manual_seed(1)  # no draw of anybody else matters
        assert torch.equal(corrupt(image, name, 3, seed=4, index=7), found)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse_than_the_one_before(name):
    texture = 0.1 * torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(0))
    image = scene(120, 160) + texture
    far = [distance(corrupt(image, name, severity), image) for severity in SEVERITIES]
    if name in ("jpeg", "pixelate", "snow"):  # coarser grids may happen to fit; snow trades flakes for whiteness
        assert far[4] > far[0] > 0
    else:
        assert far[0] > 0 and far == sorted(far)


RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "frost", "snow", "occlusion"}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_and_seeds_differ_where_chance_has_a_part(name):
    image = scene()
    first = corrupt(image, name, 2, seed=0, index=0)
    for options in ({"seed": 1}, {"index": 1}):
        assert torch.equal(first, corrupt(image, name, 2, **options)) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (33, 5)])
def test_small_images_are_taken(name, size):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    for severity in (1, 5):
        assert corrupt(image, name, severity).isfinite().all()


def test_published_severities():
    grey = torch.full((3, 200, 200), 0.5)
    for severity, deviation in zip((1, 2), (0.08, 0.12), strict=True):
        assert corrupt(grey, "gaussian_noise", severity).std() == pytest.approx(deviation, rel=0.02)
    assert corrupt(grey, "shot_noise", 1).std() == pytest.approx((0.5 / 60) ** 0.5, rel=0.02)
    assert (corrupt(grey, "impulse_noise", 5) != 0.5).float().mean() == pytest.approx(0.27, rel=0.05)
    assert corrupt(grey, "impulse_noise", 5).mean() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(corrupt(grey, "brightness", 2), torch.full_like(grey, 0.7))
    image = scene()
    torch.testing.assert_close(corrupt(image, "contrast", 1).mean((1, 2)), image.mean((1, 2)))
    torch.testing.assert_close(corrupt(image, "contrast", 1).std(), 0.4 * image.std(), rtol=0.1, atol=0)


def test_brightness_keeps_hue_and_lights_up_black():
    image = torch.tensor([0.2, 0.4, 0.1])[:, None, None].expand(3, 2, 2).clone()
    image[:, 0, 0] = 0
    found = corrupt(image, "brightness", 1)
    torch.testing.assert_close(found[:, 1, 1], torch.tensor([0.25, 0.5, 0.125]))
    torch.testing.assert_close(found[:, 0, 0], torch.full((3,), 0.1))


@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur", "pixelate", "motion_blur"])
def test_blurs_leave_flat_images_alone(name):
    flat = torch.full((3, 40, 50), 0.3)
    torch.testing.assert_close(corrupt(flat, name, 5), flat)


def test_a_disc_of_the_published_radius():
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    spread = corrupt(point, "defocus_blur", 3)[0]
    assert spread.sum() == pytest.approx(1, rel=1e-4)
    inside = (spread > 0.5 * spread.max()).sum()
    assert inside == pytest.approx(torch.pi * 6**2, rel=0.05)
    torch.testing.assert_close(spread, spread.flip(0))
    torch.testing.assert_close(spread, spread.T)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.05), (5, 0.4)])
def test_patches_hide_at_most_their_share(severity, share):
    hidden = (corrupt(torch.zeros(3, 200, 300), "occlusion", severity) == 0.5)[0]
    assert 0.4 * share < hidden.float().mean() <= 1.1 * share
    more = (corrupt(torch.zeros(3, 200, 300), "occlusion", 5) == 0.5)[0]
    assert (hidden & ~more).float().mean() < 0.01  # the same places, larger


def test_batches_are_corrupted_image_by_image():
    info = SegmentationInfo(("a",), ((0, 0, 0),))
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    image, sizes = scene(60, 50), torch.tensor([[60, 50], [41, 33]])
    images = torch.zeros(2, 3, 60, 50)
    images[0], images[1, :, :41, :33] = (image - mean) / std, ((image - mean) / std)[:, :41, :33]
    batch = {"image": images, "index": torch.tensor([5, 6]), "size": sizes, "name": ["a", "b"]}
    found = corrupt_batch(batch, info, "gaussian_noise", 2, seed=3)
    assert found["name"] == ["a", "b"] and torch.equal(batch["image"], images)
    expected = (corrupt(image[:, :41, :33], "gaussian_noise", 2, seed=3, index=6) - mean) / std
    torch.testing.assert_close(found["image"][1, :, :41, :33], expected, rtol=1e-4, atol=1e-4)
    assert not found["image"][1, :, 41:].any() and not found["image"][1, :, :, 33:].any()


def test_every_corruption_is_of_one_kind():
    assert sorted(name for names in CORRUPTION_GROUPS.values() for name in names) == sorted(CORRUPTIONS)


def test_what_is_wrong_is_named():
    with pytest.raises(ConfigError, match="did you mean gaussian_noise"):
        corrupt(scene(), "gausian_noise", 1)
    with pytest.raises(ConfigError, match="severity=6 must be from 1 to 5"):
        corrupt(scene(), "fog", 6)
    with pytest.raises(ShapeError, match=r"got \[2, 8, 8\]"):
        corrupt(torch.rand(2, 8, 8), "fog", 1)
