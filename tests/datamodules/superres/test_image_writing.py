"""Images written and read again: pixels, opacity, bits and metadata, and what a format cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from datamodules.superres.image import Metadata, read_image
from datamodules.superres.image_encoding import write_image
from graftwork.errors import DataError, ShapeError

RNG = np.random.default_rng(0)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif() -> bytes:
    made = Image.Exif()
    made[271], made[33432] = "Maker", "Owner"
    made.get_ifd(34665)[33434] = 0.25
    return made.tobytes()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".PNG"])
@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_what_was_written_is_read(tmp_path, bits, suffix, channels, transparent):
    deep, see_through = suffix.lower() in (".png", ".tif", ".tiff"), suffix.lower() not in (".bmp", ".ppm")
    if (bits == 16 and not deep) or (transparent and not see_through):
        with pytest.raises(DataError, match="cannot hold"):
            write_image(
                tmp_path / f"a{suffix}", np.zeros((2, 2)), alpha=np.zeros((2, 2)) if transparent else None, bits=bits
            )
        return
    full = 2**bits - 1
    pixels = RNG.integers(0, full + 1, (6, 5, channels) if channels else (6, 5)) / full
    alpha = RNG.integers(0, full + 1, (6, 5)) / full if transparent else None
    found = read_image(write_image(tmp_path / f"a{suffix}", pixels, alpha=alpha, bits=bits))
    expected = pixels if channels else pixels[..., None]
    if suffix == ".webp" and channels != 3:  # which is always colour
        expected = expected.repeat(3, axis=2)
    np.testing.assert_allclose(found.pixels, expected, atol=1e-6)
    assert found.bits == bits
    if transparent:
        np.testing.assert_allclose(found.alpha, alpha, atol=1e-6)
    else:
        assert found.alpha is None


@settings(max_examples=15)
@given(values=st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=6), bits=st.sampled_from([8, 16]))
def test_values_are_cut_and_rounded_to_even(tmp_path_factory, values, bits):
    path = tmp_path_factory.mktemp("image") / "a.png"
    full = 2**bits - 1
    found = read_image(write_image(path, np.array([values]), bits=bits))
    expected = np.rint(np.clip(np.array(values), 0, 1) * full)
    np.testing.assert_array_equal(np.rint(found.pixels[0, :, 0].astype(float) * full), expected)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a16.png", "a16.tif", "a.webp"])
def test_metadata_stays(tmp_path, name):
    metadata = Metadata(PROFILE, exif(), (300.0, 200.0))
    path = write_image(tmp_path / name, RNG.random((9, 9, 3)), bits=16 if "16" in name else 8, metadata=metadata)
    found = read_image(path)
    assert found.bits == (16 if "16" in name else 8) and found.metadata.icc == PROFILE
    if "webp" not in name:
        assert found.metadata.dpi == (pytest.approx(300, abs=0.02), pytest.approx(200, abs=0.02))
    kept = Image.Exif()
    kept.load(found.metadata.exif)
    assert (kept[271], kept[33432]) == ("Maker", "Owner")
    if name != "a16.tif":
        assert float(kept.get_ifd(34665)[33434]) == 0.25


def test_a_second_round_keeps_everything(tmp_path):
    first = read_image(
        write_image(
            tmp_path / "a.png",
            RNG.random((8, 8, 3)),
            alpha=RNG.random((8, 8)),
            bits=16,
            metadata=Metadata(PROFILE, exif(), (72.0, 72.0)),
        )
    )
    again = read_image(
        write_image(tmp_path / "b.png", first.pixels, alpha=first.alpha, bits=first.bits, metadata=first.metadata)
    )
    np.testing.assert_array_equal(again.pixels, first.pixels)
    np.testing.assert_array_equal(again.alpha, first.alpha)
    assert again.metadata == first.metadata and again.mode == first.mode == "RGBA;16"


def test_webp_loses_nothing(tmp_path):
    pixels = RNG.integers(0, 256, (32, 40, 3))
    alpha = np.zeros((32, 40))
    alpha[:, ::2] = 1  # the colours of what is transparent stay, too
    for opacity in (None, alpha):
        found = read_image(write_image(tmp_path / "a.webp", pixels / 255, alpha=opacity))
        np.testing.assert_array_equal(np.rint(found.pixels * 255), pixels)
        np.testing.assert_array_equal(found.alpha if opacity is not None else None, opacity)


def test_jpeg_is_close_and_keeps_grey(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(32)) / 62
    found = read_image(write_image(tmp_path / "a.jpg", smooth, quality=95))
    assert found.pixels.shape == (32, 32, 1) and np.abs(found.pixels[..., 0] - smooth).max() < 0.03


def test_folders_are_made_and_nothing_half_written_stays(tmp_path, monkeypatch):
    path = write_image(tmp_path / "new/folder/a.png", np.zeros((2, 2)))
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        write_image(tmp_path / "new/folder/b.png", np.zeros((2, 2)))
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_what_cannot_be_written(tmp_path):
    image = np.zeros((4, 4, 3))
    with pytest.raises(DataError, match=r"ending '\.xyz' is that of no image format\. Use one of \.png"):
        write_image(tmp_path / "a.xyz", image)
    with pytest.raises(DataError, match=r"JPEG files cannot hold 16 bits per channel\. Name it \.png or \.tif"):
        write_image(tmp_path / "a.jpg", image, bits=16)
    with pytest.raises(DataError, match="JPEG files cannot hold opacity"):
        write_image(tmp_path / "a.jpg", image, alpha=np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"cannot be written as JPEG: .* 65501 .*Name it \.png or \.tif"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 65501)))
    with pytest.raises(DataError, match=r"as WEBP: a side of 16384 pixels is longer than 16383\. Name it"):
        write_image(tmp_path / "a.webp", np.zeros((16384, 1)))
    with pytest.raises(DataError, match="bits=12 must be 8 or 16"):
        write_image(tmp_path / "a.png", image, bits=12)
    with pytest.raises(DataError, match="pixels of type uint8"):
        write_image(tmp_path / "a.png", image.astype(np.uint8))
    with pytest.raises(ShapeError, match=r"expected pixels .* got \[4, 4, 2\]"):
        write_image(tmp_path / "a.png", image[..., :2])
    with pytest.raises(ShapeError, match=r"opacity \[2, 2\] does not fit pixels \[4, 4\]"):
        write_image(tmp_path / "a.png", image, alpha=np.zeros((2, 2)))
