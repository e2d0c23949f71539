"""MATLAB's bicubic resizing: numbers worked out by hand, invariants, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.superres.banded import BandedMatrix, mirrored
from datamodules.superres.bicubic import eight_bit, imresize, resize_taps
from graftwork.errors import ConfigError, DataError, ShapeError

SCALES = st.sampled_from([0.2, 0.25, 1 / 3, 0.5, 2 / 3, 0.9, 1.0, 1.5, 2.0, 2.7, 3.0, 4.0])


def literal(image: np.ndarray, scale: float, antialias: bool = True) -> np.ndarray:
    """The definition, one output pixel at a time, 1-based as MATLAB counts."""

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    def axis(values: np.ndarray) -> np.ndarray:
        n, shrink = len(values), min(scale, 1.0) if antialias else 1.0
        mirror = np.concatenate([values, values[::-1]])
        result = []
        for x in range(1, int(np.ceil(n * scale - 1e-9)) + 1):
            u = x / scale + 0.5 * (1 - 1 / scale)
            places = np.arange(np.floor(u - 2 / shrink), np.floor(u + 2 / shrink) + 2)
            weights = np.array([kernel(shrink * (u - i)) for i in places])
            taps = np.stack([mirror[int(i - 1) % (2 * n)] for i in places])
            result.append((weights / weights.sum()) @ taps)
        return np.stack(result)

    return axis(axis(image).T).T


@settings(max_examples=40)
@given(height=st.integers(1, 21), width=st.integers(1, 21), scale=SCALES, antialias=st.booleans())
def test_resizing_is_its_definition(height, width, scale, antialias):
    image = np.random.default_rng(height).random((height, width))
    found = imresize(image, scale, antialias=antialias)
    np.testing.assert_allclose(found, literal(image, scale, antialias), atol=1e-12)


def test_halving_by_hand():
    indices, weights = resize_taps(8, 0.5)
    # the first output lies between inputs 0 and 1; kernel at 1/4, 3/4, 5/4, 7/4, halved
    kernel = np.array([-0.0234375, -0.0703125, 0.2265625, 0.8671875])
    np.testing.assert_allclose(weights[0], np.concatenate([kernel, kernel[::-1]]) / 2)
    assert indices[0].tolist() == [2, 1, 0, 0, 1, 2, 3, 4]
    assert indices[3].tolist() == [3, 4, 5, 6, 7, 7, 6, 5]


def test_doubling_by_hand():
    row = imresize(np.array([[0.0, 1.0, 0.0, 0.0]]), 2.0)[0]
    # outputs lie a quarter of a pixel beside the inputs: the kernel at 1/4, 3/4, 5/4 and 7/4
    np.testing.assert_allclose(row[1:7], [0.2265625, 0.8671875, 0.8671875, 0.2265625, -0.0703125, -0.0234375])


def test_shrinking_without_antialiasing_reads_four_neighbours():
    image = np.zeros((1, 16))
    image[0, 2] = 1
    # by 4: outputs at 1.5, 5.5, ...; input 2 lies half a pixel beside the first, 3.5 beside the second
    np.testing.assert_allclose(imresize(image, (1, 0.25), antialias=False)[0], [0.5625, 0, 0, 0], atol=1e-15)


@pytest.mark.parametrize(("side", "scale", "expected"), [(74, 1 / 3, 25), (75, 1 / 3, 25), (99, 0.2, 20), (7, 1.5, 11)])
def test_the_result_has_the_rounded_up_size(side, scale, expected):
    assert imresize(np.zeros((side, 3), np.float32), scale).shape[0] == expected


@settings(max_examples=20)
@given(side=st.integers(1, 40), scale=SCALES, value=st.floats(0, 1))
def test_a_flat_image_stays_flat(side, scale, value):
    np.testing.assert_allclose(imresize(np.full((side, 5), value), scale), value, atol=1e-14)


@settings(max_examples=20)
@given(height=st.integers(1, 30), width=st.integers(1, 30), scale=st.sampled_from([0.25, 1 / 3, 0.5, 2.0, 3.0, 4.0]))
def test_a_mirrored_image_gives_the_mirrored_result(height, width, scale):
    step = max(1, round(1 / scale))  # of whole periods: otherwise the sampling points differ
    image = np.random.default_rng(0).random((height * step, width * step))
    np.testing.assert_allclose(imresize(image[::-1, ::-1], scale), imresize(image, scale)[::-1, ::-1], atol=1e-13)
    np.testing.assert_allclose(imresize(image.T, scale), imresize(image, scale).T, atol=1e-13)


def test_arrays_and_tensors_agree():
    image = np.random.default_rng(0).random((37, 51, 3)).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for scale in (0.25, 1.7, 3.0):
        ours = imresize(tensor[None].expand(2, 3, 37, 51), scale)
        assert ours.dtype == torch.float32 and ours.shape[:2] == (2, 3)
        np.testing.assert_allclose(ours[1].permute(1, 2, 0).numpy(), imresize(image, scale), atol=1e-6)
        single = imresize(image.astype(np.float64), scale)
        assert single.dtype == np.float64
        np.testing.assert_allclose(imresize(image, scale), single, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_gradients(scale):
    image = torch.rand(2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale), image)


def test_matrices_first_used_in_inference_mode_serve_gradients_later():
    with torch.inference_mode():
        imresize(torch.rand(3, 23, 29), 0.5)
    image = torch.rand(3, 23, 29, requires_grad=True)
    imresize(image, 0.5).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    image = torch.rand(1, 16, 16).to(dtype)
    assert torch.equal(imresize(image, 0.5), imresize(image.float(), 0.5).to(dtype))


def test_autocast_does_not_cut_the_precision():
    image = torch.rand(3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = imresize(image, 2)
    assert inside.dtype == torch.float32 and torch.equal(inside, imresize(image, 2))


def test_rounding_halves_up_and_cuts():
    values = np.array([-0.2, 0.5 / 255, 1.5 / 255, 1.49 / 255, 1.2])
    np.testing.assert_allclose(eight_bit(values) * 255, [0, 1, 2, 1, 255])
    np.testing.assert_allclose(eight_bit(torch.from_numpy(values)).numpy() * 255, [0, 1, 2, 1, 255])


def test_rounding_after_each_pass():
    image = np.random.default_rng(1).integers(0, 256, (24, 24)) / 255
    rows = eight_bit(imresize(image, (0.5, 1)))
    np.testing.assert_array_equal(imresize(image, 0.5, rounding="passes"), eight_bit(imresize(rows, (1, 0.5))))
    np.testing.assert_array_equal(imresize(image, 0.5, rounding="output"), eight_bit(imresize(image, 0.5)))


def test_published_low_resolution_files_were_rounded_after_each_pass(shared):
    folder = shared / "data/Set5"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/Set5")
    for scale in (2, 3, 4):
        for name in ("bird", "butterfly"):
            stored = np.asarray(Image.open(folder / f"LR_bicubic/X{scale}/{name}x{scale}.png").convert("RGB"))
            full = np.asarray(Image.open(folder / f"HR/{name}.png").convert("RGB")) / 255
            full = full[: stored.shape[0] * scale, : stored.shape[1] * scale]
            same = np.round(imresize(full, 1 / scale, rounding="passes") * 255) == stored
            assert same.mean() > 0.965
            plain = np.abs(np.round(imresize(full, 1 / scale, rounding="output") * 255) - stored)
            assert plain.max() <= 12 and 0.8 < (plain == 0).mean() < same.mean()


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), (1, 2, 3)], ids=str)
def test_impossible_scales(scale):
    with pytest.raises(ConfigError, match=r"scale=.* must be a number above 0, or two of them"):
        imresize(np.zeros((4, 4)), scale)


def test_what_is_no_image():
    with pytest.raises(DataError, match=r"pixels of type uint8\. Divide 8-bit images by 255"):
        imresize(np.zeros((4, 4), np.uint8), 2)
    with pytest.raises(ShapeError, match=r"expected an image \[H, W\] or \[H, W, C\], got \[4\]"):
        imresize(np.zeros(4), 2)
    with pytest.raises(ShapeError, match=r"got \[3, 0, 4\]"):
        imresize(torch.zeros(3, 0, 4), 2)


def test_banded_matrices_are_plain_matrices():
    rng = np.random.default_rng(0)
    indices = np.arange(45)[:, None] // 2 + rng.integers(0, 5, (45, 3))
    weights = rng.standard_normal((45, 3))
    full = np.zeros((45, 27))
    np.add.at(full, (np.arange(45)[:, None], indices), weights)
    for rows in (1, 7, 64):
        matrix = BandedMatrix(indices, weights, rows)
        pixels = rng.standard_normal((2, 27, 27))
        np.testing.assert_allclose(matrix.along_rows(pixels), full @ pixels, atol=1e-13)
        np.testing.assert_allclose(matrix.along_columns(torch.from_numpy(pixels)).numpy(), pixels @ full.T, atol=1e-13)


def test_mirroring_repeats_the_edge_and_goes_on_for_ever():
    assert mirrored(np.arange(-4, 8), 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert mirrored(np.arange(-3, 4), 1).tolist() == [0] * 7
