"""Image files of any kind to pixels from 0 to 1, and what cannot be read."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from datamodules.guard import CorruptSample
from datamodules.superres.image import image_size, load_pixels, read_image

GREY = np.array([[0, 64, 1], [128, 255, 2]], dtype=np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (5, 7, 4), dtype=np.uint16)


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def bytes_of(path: Path) -> np.ndarray:
    found = read_image(path)
    assert found.pixels.dtype == np.float32 and found.bits == 8
    return np.rint(found.pixels * 255).astype(np.uint8)


def sixteen_bits_of(path: Path) -> np.ndarray:
    found = read_image(path)
    assert found.pixels.dtype == np.float32 and found.bits == 16
    return np.rint(found.pixels.astype(np.float64) * 65535).astype(np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "A.PNG"])
def test_colour_is_lossless(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(COLOUR), name)
    np.testing.assert_array_equal(bytes_of(path), COLOUR)
    assert read_image(path).mode == "RGB" and read_image(path).alpha is None


def test_grey_keeps_its_one_channel(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY), "a.png")
    np.testing.assert_array_equal(bytes_of(path)[..., 0], GREY)
    assert read_image(path).mode == "L"


def test_black_and_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY > 100), "a.png")
    assert bytes_of(path)[..., 0].tolist() == [[0, 0, 0], [255, 255, 0]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits(tmp_path, channels):
    values = DEEP[..., 0] if channels == 1 else DEEP[..., :channels]
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
    found = read_image(tmp_path / "a.png")
    colours = 3 if channels > 2 else 1
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "a.png"), DEEP[..., :colours])
    assert found.mode == {1: "L;16", 2: "LA;16", 3: "RGB;16", 4: "RGBA;16"}[channels]
    if channels in (2, 4):
        np.testing.assert_array_equal(np.rint(found.alpha.astype(float) * 65535), DEEP[..., channels - 1])
    else:
        assert found.alpha is None


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_sixteen_bits(tmp_path, compression, planar):
    values = DEEP[..., :3] if planar == "contig" else np.moveaxis(DEEP[..., :3], 2, 0)
    options = {"predictor": True} if compression else {}
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="rgb", planarconfig=planar, compression=compression, **options
    )
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "a.tif"), DEEP[..., :3])


def test_tiff_of_sixteen_bits_in_grey_and_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0], photometric="minisblack", byteorder=">")
    tifffile.imwrite(tmp_path / "b.tif", DEEP[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "a.tif")[..., 0], DEEP[..., 0])
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "b.tif")[..., 0], 65535 - DEEP[..., 0])


def test_tiff_with_opacity_plain_and_multiplied(tmp_path):
    opacity = np.full((5, 7), 32768, np.uint16)
    colours = DEEP[..., :3] // 2
    for name, kind in (("a.tif", "unassalpha"), ("b.tif", "assocalpha")):
        values = np.concatenate([colours, opacity[..., None]], axis=2)
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", extrasamples=[kind])
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "a.tif"), colours)
    np.testing.assert_allclose(sixteen_bits_of(tmp_path / "b.tif"), colours * (65535 / 32768), atol=0.51)
    np.testing.assert_allclose(read_image(tmp_path / "b.tif").alpha, 32768 / 65535, rtol=1e-6)


def test_sixteen_bits_of_other_formats(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 7 5 65535\n" + DEEP[..., 0].astype(">u2").tobytes())
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "a.pgm")[..., 0], DEEP[..., 0])


def test_palettes(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert bytes_of(saved(tmp_path, image, "a.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    found = read_image(saved(tmp_path, image, "b.png", transparency=0))
    assert found.alpha.tolist() == [[0.0, 1.0]] and found.mode == "P"


def test_transparent_colours_keep_their_values(tmp_path):
    rgba = np.dstack([COLOUR, GREY[:1, :1].repeat(5, 0).repeat(7, 1)])
    rgba[0, 0, 3] = 255
    found = read_image(saved(tmp_path, Image.fromarray(rgba), "a.png"))
    np.testing.assert_array_equal(np.rint(found.pixels * 255), COLOUR)
    assert found.alpha.shape == (5, 7) and found.alpha[0, 0] == 1 and found.alpha[1, 1] == 0
    grey = np.dstack([GREY, 255 - GREY])
    assert read_image(saved(tmp_path, Image.fromarray(grey), "b.png")).pixels.shape == (2, 3, 1)


def test_full_opacity_is_none(tmp_path):
    rgba = np.dstack([COLOUR, np.full((5, 7), 255, np.uint8)])
    assert read_image(saved(tmp_path, Image.fromarray(rgba), "a.png")).alpha is None


def test_a_transparent_colour_key(tmp_path):
    image = Image.fromarray(COLOUR)
    found = read_image(saved(tmp_path, image, "a.png", transparency=tuple(int(v) for v in COLOUR[0, 0])))
    assert found.alpha[0, 0] == 0 and found.alpha.sum() >= 30


def test_cmyk_with_and_without_a_profile(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for name, options in (("a.jpg", {}), ("b.jpg", {"icc_profile": b"broken"})):
        found = read_image(saved(tmp_path, red, name, quality=100, **options))
        assert found.pixels[4, 4, 0] > 0.94 and found.pixels[4, 4, 1:].max() < 0.06
        assert found.mode == "CMYK" and found.metadata.icc is None


def test_exif_orientation_turns_every_way(tmp_path):
    smooth = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 16, 0), 16, 1)
    expected = {
        1: smooth,
        2: smooth[:, ::-1],
        3: smooth[::-1, ::-1],
        4: smooth[::-1],
        5: smooth.T,
        6: np.rot90(smooth, -1),
        7: smooth[::-1, ::-1].T,
        8: np.rot90(smooth),
    }
    for orientation, upright in expected.items():
        exif = Image.Exif()
        exif[274] = orientation
        for suffix, options in ((".jpg", {"quality": 100}), (".png", {}), (".tif", {})):
            path = saved(tmp_path, Image.fromarray(smooth), f"{orientation}{suffix}", exif=exif, **options)
            found = bytes_of(path)[..., 0]
            assert image_size(path) == found.shape == upright.shape
            np.testing.assert_allclose(found.astype(int), upright, atol=3, err_msg=f"{orientation}{suffix}")


def test_sixteen_bits_are_turned_upright_too(tmp_path):
    values = np.ascontiguousarray(DEEP[..., 0])
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(sixteen_bits_of(tmp_path / "a.tif")[..., 0], np.rot90(values, -1))
    assert image_size(tmp_path / "a.tif") == (7, 5)


def test_one_pixel(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif"):
        assert read_image(saved(tmp_path, Image.new("RGB", (1, 1), (9, 9, 9)), name)).pixels.shape == (1, 1, 3)


# -- pixels for training ----------------------------------------------------------------------------------------------


def test_grey_files_become_three_equal_channels(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY), "a.png")
    assert load_pixels(path, 3).dtype == np.uint8
    np.testing.assert_array_equal(load_pixels(path, 3), GREY[..., None].repeat(3, 2))
    np.testing.assert_array_equal(load_pixels(path, 1), GREY[..., None])


def test_colour_becomes_grey_by_luma(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (1, 1), (100, 200, 50)), "a.png")
    assert load_pixels(path, 1).tolist() == [[[round(0.299 * 100 + 0.587 * 200 + 0.114 * 50)]]]


def test_transparent_parts_are_white_in_training(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 51, 255
    assert load_pixels(saved(tmp_path, Image.fromarray(rgba), "a.png"), 1).ravel().tolist() == [255, 204, 0]


def test_sixteen_bits_stay_so_in_training(tmp_path):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(DEEP[..., :3])))
    np.testing.assert_array_equal(load_pixels(tmp_path / "a.png", 3), DEEP[..., :3])


# -- what cannot be read ----------------------------------------------------------------------------------------------


def png_bytes(values: np.ndarray = COLOUR) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def tiff_bytes() -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, DEEP[..., :3], photometric="rgb")
    return stream.getvalue()


BROKEN = {
    "empty.png": (lambda: b"", "is an empty file"),
    "text.png": (lambda: b"no image", "cannot be decoded"),
    "short.png": (
        lambda: png_bytes(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[:3000],
        "cannot be decoded: .*truncated",
    ),
    "short16.png": (lambda: imagecodecs.png_encode(DEEP)[:200], "cannot be decoded"),
    "short16.tif": (lambda: tiff_bytes()[:-50], "cannot be decoded"),
    "head.png": (lambda: png_bytes()[:20], "cannot be decoded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    make, message = BROKEN[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(CorruptSample, match=message) as caught:
        read_image(tmp_path / name)
    assert caught.value.where == str(tmp_path / name) and "--data.on_corrupt skip" in caught.value.mend


def test_a_missing_file(tmp_path):
    with pytest.raises(CorruptSample, match="cannot be read: No such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(CorruptSample, match="cannot be read"):
        image_size(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animations_are_refused(tmp_path, name):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 128, 255)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(CorruptSample, match=r"is an animation of 3 pictures, expected a single one\. Save"):
        read_image(tmp_path / name)


def test_a_still_gif_and_the_first_page_of_several(tmp_path):
    assert read_image(saved(tmp_path, Image.fromarray(GREY), "a.gif")).pixels.shape[:2] == (2, 3)
    pages = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::2])]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(bytes_of(tmp_path / "a.tif"), COLOUR)


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit integers")])
def test_pixels_without_a_range(tmp_path, dtype, kind):
    path = saved(tmp_path, Image.fromarray(np.ones((4, 4), dtype)), "a.tif")
    with pytest.raises(CorruptSample, match=f"{kind}, which have no fixed range. Save it with 8 or 16 bits"):
        read_image(path)


def test_sixteen_bits_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(DEEP))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImportError, match=r"needs the package 'imagecodecs'.*graftwork\[vision\]"):
        read_image(tmp_path / "a.png")


def test_metadata(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[272], exif[315], exif[256] = 6, "Camera", "Someone", 999
    exif.get_ifd(34665)[33434] = 0.5
    exif.get_ifd(34665)[40962] = 999
    path = saved(tmp_path, Image.fromarray(COLOUR), "a.jpg", icc_profile=profile, exif=exif, dpi=(300, 150))
    found = read_image(path).metadata
    assert found.icc == profile and found.dpi == (300, 150)
    kept = Image.Exif()
    kept.load(found.exif)
    assert (kept[272], kept[315]) == ("Camera", "Someone") and 274 not in kept and 256 not in kept
    assert float(kept.get_ifd(34665)[33434]) == 0.5 and 40962 not in kept.get_ifd(34665)
    plain = read_image(saved(tmp_path, Image.fromarray(COLOUR), "b.png")).metadata
    assert (plain.icc, plain.exif, plain.dpi) == (None, None, None)
