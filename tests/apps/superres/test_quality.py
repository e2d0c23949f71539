"""Scores of images against numbers worked out by hand, their invariants, and the published bicubic baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apps.superres.quality import blocking, eight_bit, luma, psnr, psnr_b, ssim, ycbcr
from datamodules.superres.bicubic import imresize
from graftwork.errors import DataError, ShapeError

BICUBIC = {2: (33.679, 0.9304), 3: (30.406, 0.8690), 4: (28.432, 0.8113)}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def literal_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """The definition on one plane from 0 to 255, window by window."""
    bell = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    values = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            x, y = (plane[top : top + 11, left : left + 11] for plane in (one, other))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            both = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    return float(np.mean(values))


def test_rounding_to_eight_bits_takes_halves_to_even_and_cuts():
    values = torch.tensor([-0.5, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.7, float("nan")])
    assert eight_bit(values.view(1, 1, 6)).flatten().tolist() == [0, 0, 2, 2, 255, 0]


def test_scoring_leaves_its_inputs_alone():
    ours, truth = noise(1, 3, 16, 16) * 2 - 0.5, noise(1, 3, 16, 16, seed=1)
    before = ours.clone(), truth.clone()
    for score in (psnr, ssim, psnr_b):
        score(ours, truth, colour="y")
    assert torch.equal(ours, before[0]) and torch.equal(truth, before[1])


def test_psnr_by_hand():
    truth = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    ours = truth.clone()
    ours[0] += 1  # mean squared error 1
    ours[1, 0, 0, 0] = 16  # 256 / 16 pixels = 16
    expected = [20 * math.log10(255), 10 * math.log10(255**2 / 16)]
    assert psnr(ours, truth).tolist() == pytest.approx(expected)
    assert psnr(ours, truth, border=1).tolist() == pytest.approx([expected[0], math.inf])


def test_luma_by_hand():
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    pixels = colours.T.reshape(3, 1, 4)
    assert luma(pixels).flatten().tolist() == pytest.approx([16, 235, 16 + 65.481, 16 + 24.966])
    assert ycbcr(pixels)[1, 0].tolist() == pytest.approx([128, 128, 128 - 37.797, 240])
    assert ycbcr(pixels)[2, 0].tolist() == pytest.approx([128, 128, 240, 128 - 18.214])
    assert luma(pixels[:1]).flatten().tolist() == [0, 255, 255, 0]  # grey is taken as it is


def test_grey_read_as_colour_scores_higher_by_a_known_amount():
    grey, other = noise(1, 24, 24), noise(1, 24, 24, seed=1)
    as_colour = psnr(grey.expand(3, 24, 24), other.expand(3, 24, 24), colour="y")
    assert float(as_colour - psnr(grey, other)) == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)  # 1.32 dB


@settings(max_examples=8)
@given(height=st.integers(11, 17), width=st.integers(11, 40), seed=st.integers(0, 9))
def test_ssim_is_its_definition(height, width, seed):
    truth = eight_bit(noise(1, height, width, seed=seed))
    ours = eight_bit(truth / 255 * 0.8 + 0.2 * noise(1, height, width, seed=seed + 1))
    expected = literal_ssim(ours[0].double().numpy(), truth[0].double().numpy())
    assert float(ssim(ours, truth)) == pytest.approx(expected, abs=1e-10)


def test_ssim_of_colour_is_the_mean_over_channels():
    ours, truth = noise(3, 20, 20), noise(3, 20, 20, seed=1)
    channels = [float(ssim(ours[i : i + 1], truth[i : i + 1])) for i in range(3)]
    assert float(ssim(ours, truth)) == pytest.approx(np.mean(channels), abs=1e-12)


@settings(max_examples=10)
@given(batch=st.integers(0, 3), channels=st.sampled_from([1, 3]), border=st.integers(0, 3), y=st.booleans())
def test_each_image_of_a_batch_scores_as_if_alone(batch, channels, border, y):
    colour = "y" if y else "rgb"
    ours, truth = noise(batch, channels, 19, 23), noise(batch, channels, 19, 23, seed=1)
    for score in (psnr, ssim, psnr_b):
        together = score(ours, truth, border=border, colour=colour)
        assert together.shape == (batch,) and together.dtype == torch.float64
        alone = [float(score(a, b, border=border, colour=colour)) for a, b in zip(ours, truth, strict=True)]
        assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_equal_images_are_perfect():
    image = noise(1, 3, 16, 16)
    assert float(psnr(image, image)) == math.inf and float(ssim(image, image)) == pytest.approx(1, abs=1e-14)
    assert float(psnr_b(torch.full_like(image, 0.5), torch.full_like(image, 0.5))) == math.inf


def test_blocking_by_hand():
    step = torch.zeros(1, 16, 16, dtype=torch.float64)
    step[..., 8:] = 2.0  # one border of two: 16 pairs with squared step 4, 16 pairs without
    assert float(blocking(step)) == pytest.approx(4 * 16 / 32 * math.log2(8) / math.log2(16))
    inside = torch.zeros(1, 16, 16, dtype=torch.float64)
    inside[..., 5:] = 2.0
    assert float(blocking(inside)) == 0  # an edge within blocks is none of JPEG's


def test_psnr_b_adds_blocking_to_the_error():
    truth = torch.full((1, 16, 16), 100, dtype=torch.uint8)
    ours = truth.clone()
    ours[..., 8:] = 102
    error, extra = 2.0, 2.0 * 3 / 4
    assert float(psnr_b(ours, truth)) == pytest.approx(10 * math.log10(255**2 / (error + extra)))
    assert float(psnr_b(ours, truth)) < float(psnr(ours, truth))


def test_jpeg_scores_lower_with_its_blocks_counted(tmp_path):
    smooth = np.fromfunction(lambda i, j: 127 + 100 * np.sin(i / 19) * np.cos(j / 23), (96, 96)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=5)
    ours = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert float(psnr_b(ours, smooth)) < float(psnr(ours, smooth)) - 0.1


def test_arrays_have_their_channels_last():
    ours, truth = noise(3, 20, 24), noise(3, 20, 24, seed=1)
    arrays = [image.permute(1, 2, 0).numpy() for image in (ours, truth)]
    for score in (psnr, ssim, psnr_b):
        assert float(score(*arrays)) == float(score(ours, truth))
    assert float(psnr(arrays[0][..., 0], arrays[1][..., 0])) == float(psnr(ours[:1], truth[:1]))


@pytest.mark.parametrize("scale", BICUBIC)
def test_bicubic_scores_on_set5(shared, scale):
    folder = shared / "data/Set5"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/Set5")
    scores = []
    for path in sorted((folder / "HR").glob("*.png")):
        small = np.asarray(Image.open(folder / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png").convert("RGB"))
        ours = imresize(small.astype(np.float32) / 255, scale)
        truth = np.asarray(Image.open(path).convert("RGB"))[: ours.shape[0], : ours.shape[1]]
        scores.append([float(score(ours, truth, border=scale, colour="y")) for score in (psnr, ssim)])
    assert len(scores) == 5
    assert np.mean(scores, axis=0).tolist() == [
        pytest.approx(value, abs=6e-4 / 10**i) for i, value in enumerate(BICUBIC[scale])
    ]


def test_what_cannot_be_compared():
    image = torch.zeros(3, 16, 16)
    with pytest.raises(ShapeError, match=r"\[3, 16, 16\] and \[3, 16, 17\]"):
        psnr(image, torch.zeros(3, 16, 17))
    with pytest.raises(ShapeError, match="border=8 leaves nothing of an image of 16 x 16"):
        psnr(image, image, border=8)
    with pytest.raises(ShapeError, match="sides of 11 pixels and more without the border, got 10 x 10"):
        ssim(image, image, border=3)
    with pytest.raises(ShapeError, match="luma needs 3 colour channels, got 4"):
        psnr(torch.zeros(4, 8, 8), torch.zeros(4, 8, 8), colour="y")
    with pytest.raises(ShapeError, match=r"expected a tensor \[..., C, H, W\], got \[8, 8\]"):
        psnr(torch.zeros(8, 8), torch.zeros(8, 8))
    with pytest.raises(ShapeError, match=r"expected an array \[H, W\] or \[H, W, C\], got \[8\]"):
        ssim(np.zeros(8), np.zeros(8))
    with pytest.raises(DataError, match=r"pixels of type torch\.int64"):
        psnr(torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (20, 1), (2, 9), (8, 8)])
def test_tiny_images_have_a_psnr(size):
    ours, truth = noise(3, *size), noise(3, *size, seed=1)
    assert math.isfinite(float(psnr(ours, truth))) and math.isfinite(float(psnr_b(ours, truth)))
