"""Any image mode to 8-bit colour or grey, and what cannot be decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from datamodules.guard import CorruptSample
from datamodules.image_reading import from_array, read_image, upright_size
from graftwork.errors import DataError

GREY = np.array([[0, 64], [128, 255]], dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(path: Path, channels: int = 3) -> list[list[object]]:
    image = read_image(path, channels)
    assert image.mode == ("RGB" if channels == 3 else "L")
    return np.asarray(image).tolist()


def grey_of(values: list[list[object]]) -> list[list[int]]:
    assert all(r == g == b for row in values for r, g, b in row)
    return [[r for r, _, _ in row] for row in values]


def test_grey_files_become_three_equal_channels(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY), "a.png")
    assert grey_of(pixels(path)) == GREY.tolist()
    assert pixels(path, 1) == GREY.tolist()


def test_colour_becomes_grey_by_luminance(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (1, 1), (100, 200, 50)), "a.png")
    assert pixels(path, 1) == [[round(0.299 * 100 + 0.587 * 200 + 0.114 * 50)]]


def test_black_and_white_files(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY > 100), "a.png")
    assert pixels(path, 1) == [[0, 0], [255, 255]]


def test_sixteen_bits_keep_their_range(tmp_path):
    values = (GREY.astype(np.uint16)) * 257
    for name in ("a.png", "a.tif"):
        assert pixels(saved(tmp_path, Image.fromarray(values), name), 1) == GREY.tolist()
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535\n" + values.astype(">u2").tobytes())
    assert pixels(tmp_path / "a.pgm", 1) == GREY.tolist()


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert pixels(saved(tmp_path, image, "a.png")) == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(saved(tmp_path, image, "b.png", transparency=0)) == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white(tmp_path, mode):
    colour = (0, 0, 0) if mode == "RGBA" else (0,)
    image = Image.new(mode, (3, 1))
    for column, alpha in enumerate((0, 128, 255)):
        image.putpixel((column, 0), (*colour, alpha))
    (row,) = grey_of(pixels(saved(tmp_path, image, "a.png")))
    assert row == [255, pytest.approx(127, abs=1), 0]


def test_cmyk(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=100)
    red, green, blue = pixels(path)[4][4]
    assert red > 240 and green < 15 and blue < 15


def test_exif_orientation_turns_the_image_upright(tmp_path):
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8).repeat(16, 1).repeat(8, 0))  # left black, right white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    turned = np.asarray(read_image(saved(tmp_path, image, "a.jpg", exif=exif, quality=100), 1))
    assert turned.shape == (32, 8)
    assert turned[:12].max() < 40 and turned[-12:].min() > 215


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (40, 200)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert pixels(path, 1)[0][0] == 40


def jpeg(quality: int = 90) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


CORRUPT = {
    "empty": (b"", "is an empty file"),
    "text": (b"this is no image", "cannot be decoded: it is no image of a known format"),
    "cut short": (jpeg()[:-1500], "cannot be decoded: image file is truncated"),
    "png header alone": (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_damaged_files_are_named(tmp_path, name):
    content, message = CORRUPT[name]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(CorruptSample, match=message) as caught:
        read_image(path)
    assert caught.value.where == str(path) and "on_corrupt skip" in str(caught.value)


def test_missing_files_and_huge_ones(tmp_path, monkeypatch):
    with pytest.raises(CorruptSample, match=r"gone.png: cannot be read: No such file"):
        read_image(tmp_path / "gone.png")
    path = saved(tmp_path, Image.new("L", (64, 64)), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_image, upright_size):
        with pytest.raises(DataError, match=r"bomb\.png: has more than 2,000 pixels, the limit of Pillow") as caught:
            read(path)
        assert not isinstance(caught.value, CorruptSample)  # which would be skipped


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_range_are_refused(tmp_path, dtype):
    path = saved(tmp_path, Image.fromarray(np.zeros((4, 4), dtype)), "a.tif")
    with pytest.raises(CorruptSample, match=r"no fixed range\. Save it with 8 or 16 bits"):
        read_image(path)


# -- arrays -----------------------------------------------------------------------------------------------------------


ARRAYS = {
    "grey": GREY,
    "one channel": GREY[..., None],
    "colour": GREY[..., None].repeat(3, 2),
    "16 bits": GREY.astype(np.uint16) * 257,
    "double": GREY / 255,
    "float": (GREY / 255).astype(np.float32),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_kind(kind):
    array = ARRAYS[kind]
    assert np.asarray(from_array(array, 1)).tolist() == GREY.tolist()
    assert np.asarray(from_array(array, 3))[..., 0].tolist() == GREY.tolist()


def test_arrays_with_opacity_and_of_booleans():
    array = np.zeros((1, 2, 4), np.uint8)
    array[0, 1, 3] = 255
    assert np.asarray(from_array(array, 1)).tolist() == [[255, 0]]
    assert np.asarray(from_array(GREY > 100, 1)).tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \[5\] is no image.*\[H, W, C\]"),
        (np.zeros((3, 8, 8, 8)), r"shape \[3, 8, 8, 8\]"),
        (np.zeros((8, 8, 2)), r"shape \[8, 8, 2\]"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]"),
        (np.full((2, 2), 255.0), "pixels from 255 to 255.*divide by 255"),
        (np.full((2, 2), -0.1), "from -0.1 to -0.1"),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.zeros((2, 2), np.int64), "pixels of type int64"),
        (np.array([["a", "b"]]), "pixels of type <U1"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(DataError, match=message):
        from_array(array, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_file_is_that_of_its_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("a.jpg", "a.png", "a.tif"):
        path = saved(tmp_path, Image.new("RGB", (5, 3)), name, exif=exif)
        width, height = read_image(path).size
        assert upright_size(path) == (height, width) == ((5, 3) if orientation > 4 else (3, 5))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_no_pixel_is_decoded_for_the_size_of_a_file(tmp_path, monkeypatch, name):
    path = saved(tmp_path, Image.new("RGB", (5, 3)), name)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert upright_size(path) == (3, 5)


def test_the_size_of_no_image(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for name, text in (("text.png", "cannot be decoded"), ("none.png", "cannot be read")):
        with pytest.raises(CorruptSample, match=text):
            upright_size(tmp_path / name)
