"""New images: files, folders and arrays; depth, opacity and metadata stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.superres.module import SuperresModule
from apps.superres.predict import ImagePredictor
from datamodules.superres.bicubic import imresize
from datamodules.superres.degradations.mosaic import pattern_mask
from datamodules.superres.image import read_image
from datamodules.superres.info import RestorationInfo
from graftwork.errors import ConfigError, DataError, ShapeError, UserError
from tests.apps.superres.runs import small

RNG = np.random.default_rng(0)
MOSAIC = {"data.degradation": "mosaic", "data.degradation.scale": None, "model.image_skip": None}


def predictor(scale: int = 2, channels: int = 3, **changes: object) -> ImagePredictor:
    words: dict[str, object] = {"data.channels": channels, "data.degradation.scale": scale, **changes}
    config = small(Path("unused"), **words)
    torch.manual_seed(0)
    info = RestorationInfo.from_plain(config.data.build(0).info.plain())
    module = SuperresModule(config, info)
    with torch.no_grad():  # else the skip is all there is
        for parameter in module.model.reconstruction.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return ImagePredictor(module)


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def test_what_predicts_is_the_fast_form_of_what_was_trained():
    ours = predictor()
    image = pixels(13, 17, 3)
    direct = ours.module.model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(ours(image), direct.detach().numpy(), atol=2e-6)
    assert ours.restorer.model is not ours.module.model


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (5, 2), (24, 31)])
def test_any_size_is_enlarged(scale, sides):
    assert predictor(scale)(pixels(*sides, 3)).shape == (scale * sides[0], scale * sides[1], 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_every_kind_agree(channels):
    ours = predictor(channels=channels)
    image = pixels(9, 8, 3)
    wanted = ours(image)
    assert wanted.dtype == np.float32 and wanted.min() >= 0 and wanted.max() <= 1
    np.testing.assert_allclose(ours(image.astype(np.uint16) * 257), wanted, atol=1e-6)
    np.testing.assert_allclose(ours(image.astype(np.float64) / 255), wanted, atol=1e-6)
    assert ours(image[..., 0]).shape == ours(image[..., :1]).shape == (18, 16, 1)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (pixels(4, 4, 2), ShapeError, r"1 or 3 channels, got \[4, 4, 2\]"),
        (pixels(4), ShapeError, r"got \[4\]"),
        (pixels(0, 4, 3), ShapeError, r"got \[0, 4, 3\]"),
        (np.zeros((4, 4, 3), dtype=np.int32), DataError, "int32"),
        (np.full((4, 4), np.nan), DataError, "not finite"),
        (np.linspace(0, 255, 48).reshape(4, 4, 3), DataError, r"from 0 to 255\. Expected 0 to 1; divide by 255\?"),
        (np.full((4, 4), -128.0), DataError, "from -128 to -128"),
    ],
)
def test_arrays_that_are_no_images(image, error, message):
    with pytest.raises(error, match=message):
        predictor()(image)


def test_numbers_may_overshoot_as_those_of_filters_do():
    assert predictor()(np.linspace(-0.2, 1.3, 48).reshape(4, 4, 3)).max() <= 1


@pytest.mark.parametrize("pattern", ["rggb", "gbrg", "quad", "quad_events"])
def test_mosaics_of_one_channel_and_of_three_become_colour(tmp_path, pattern):
    ours = predictor(**MOSAIC, **{"data.degradation.pattern": pattern})
    mask = np.tile(pattern_mask(pattern), (4, 4, 1))[:8, :8]
    image = pixels(8, 8, 3)
    measured = torch.from_numpy(image / 255 * mask).float().permute(2, 0, 1)[None]
    wanted = ours.module.model(measured)[0].clamp(0, 1).permute(1, 2, 0).detach().numpy()
    raw = (image * mask).sum(2).astype(np.uint8)
    for given in (raw, image):
        np.testing.assert_allclose(ours(given), wanted, atol=2e-6)
    found = read_image(ours.predict_file(save(tmp_path / "raw.png", raw))[0])
    np.testing.assert_allclose(found.pixels, wanted, atol=0.51 / 255)
    assert ours(raw[:7, :5]).shape == (7, 5, 3)


def test_flips_of_a_mosaic_are_refused():
    with pytest.raises(ConfigError, match=r"tiles\.ensemble=True .*data\.degradation\.pattern=rggb"):
        predictor(**MOSAIC, **{"tiles.ensemble": True})


def test_a_grey_model_keeps_the_colours_of_a_file(tmp_path):
    ours = predictor(channels=1)
    ramp = np.linspace(80, 170, 16 * 16).reshape(16, 16)
    colours = np.stack([ramp, ramp.T, ramp[::-1]], axis=2).astype(np.uint8)
    found = read_image(ours.predict_file(save(tmp_path / "colour.png", colours))[0]).pixels
    assert found.shape == (32, 32, 3)
    enlarged = imresize((colours / 255).astype(np.float32), 2)
    inside = (found > 0) & (found < 1)
    both = inside[..., 0] & inside[..., 1]
    assert both.any()
    difference = (found[..., 0] - found[..., 1]) - (enlarged[..., 0] - enlarged[..., 1])
    np.testing.assert_allclose(difference[both], 0, atol=1.01 / 255)
    grey = read_image(ours.predict_file(save(tmp_path / "grey.png", ramp.astype(np.uint8)[..., None].repeat(3, 2)))[0])
    assert float(np.ptp(grey.pixels, axis=2).max()) <= 1.01 / 255


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def test_files_keep_their_depth(tmp_path):
    ours = predictor()
    low = save(tmp_path / "eight.png", pixels(10, 12, 3))
    (written,) = ours.predict_file(low)
    assert written == tmp_path / "eight_x2.png"
    found = read_image(written)
    assert found.bits == 8 and found.pixels.shape == (20, 24, 3)
    np.testing.assert_array_equal(np.rint(found.pixels * 255), np.rint(ours(np.asarray(Image.open(low))) * 255))
    deep = save(tmp_path / "deep.png", pixels(6, 5, dtype=np.uint16))
    found = read_image(ours.predict_file(deep)[0])
    assert found.bits == 16 and found.pixels.shape == (12, 10, 1)
    wanted = ours(np.asarray(Image.open(deep)).astype(np.uint16))
    np.testing.assert_allclose(found.pixels, wanted, atol=1 / 65535)


def test_opacity_is_enlarged_beside(tmp_path):
    image = pixels(8, 8, 4)
    image[..., 3] = np.repeat(np.where(np.arange(8) < 4, 0, 255)[:, None], 8, axis=1)
    found = read_image(predictor().predict_file(save(tmp_path / "clear.png", image))[0])
    assert found.alpha is not None and found.alpha.shape[:2] == (16, 16)
    assert float(found.alpha[:4].max()) < 0.02 and float(found.alpha[-4:].min()) > 0.98


def test_palettes_cmyk_and_grey(tmp_path):
    ours = predictor()
    colours = Image.fromarray(pixels(8, 8, 3))
    colours.quantize(16).save(tmp_path / "palette.png")
    colours.convert("CMYK").save(tmp_path / "print.jpg")
    colours.convert("L").save(tmp_path / "grey.jpg")
    written = [ours.predict_file(tmp_path / name)[0] for name in ("palette.png", "print.jpg", "grey.jpg")]
    assert [path.name for path in written] == ["palette_x2.png", "print_x2.png", "grey_x2.png"]
    assert [read_image(path).pixels.shape for path in written] == [(16, 16, 3), (16, 16, 3), (16, 16, 1)]


def test_exif_stays(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    written = predictor().predict_file(save(tmp_path / "cat.png", pixels(4, 4, 3), exif=exif, dpi=(300, 300)))[0]
    with Image.open(written) as image:
        assert image.getexif()[0x010E] == "a cat"


def test_a_folder_keeps_its_tree(tmp_path):
    save(tmp_path / "in/a.png", pixels(4, 4, 3))
    save(tmp_path / "in/more/b.jpg", pixels(4, 6, 3))
    written = predictor().predict_file(tmp_path / "in", tmp_path / "out")
    assert sorted(written) == [tmp_path / "out/a.png", tmp_path / "out/more/b.png"]
    assert predictor().predict_file(tmp_path / "in")[0].parent == tmp_path / "in_x2"


def test_restoration_keeps_size_and_is_named_so(tmp_path):
    words = {"data.degradation": "gaussian_noise", "data.degradation.scale": None, "model.image_skip": None}
    ours = predictor(**words)
    written = ours.predict_file(save(tmp_path / "noisy.png", pixels(5, 7, 3)))[0]
    assert written.name == "noisy_restored.png" and read_image(written).pixels.shape == (5, 7, 3)


def test_the_same_stem_twice_is_two_results(tmp_path):
    save(tmp_path / "in/a.jpg", pixels(4, 4, 3))
    save(tmp_path / "in/a.png", pixels(6, 6, 3))
    written = predictor().predict_file(tmp_path / "in", tmp_path / "out")
    assert [(path.name, read_image(path).pixels.shape) for path in written] == [
        ("a.jpg.png", (8, 8, 3)),
        ("a.png", (12, 12, 3)),
    ]


def mixed_folder(root: Path) -> Path:
    save(root / "a.png", pixels(4, 4, 3))
    (root / "b.png").write_bytes(b"")
    (root / "c.jpg").write_text("no image")
    save(root / "d.png", pixels(4, 4, 3))
    return root


def test_what_is_broken_does_not_stop_the_others(tmp_path):
    source = mixed_folder(tmp_path / "in")
    with pytest.raises(DataError) as caught:
        predictor().predict_file(source, tmp_path / "out")
    first, *listed = str(caught.value).splitlines()
    assert first.endswith("in: 2 of 4 images are left out, the others are written:")
    assert [line.partition(": ")[0] for line in listed] == [f"- {source / name}" for name in ("b.png", "c.jpg")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "d.png"]


def test_what_is_broken_is_a_warning_where_that_was_asked_for(tmp_path, caplog):
    source = mixed_folder(tmp_path / "in")
    ours = predictor(**{"data.on_corrupt": "skip"})
    assert [path.name for path in ours.predict_file(source, tmp_path / "out")] == ["a.png", "d.png"]
    assert "2 of 4 images are left out" in caplog.text and "b.png: is an empty file" in caplog.text
    for name in ("a.png", "d.png"):
        (source / name).unlink()
    with pytest.raises(DataError, match="2 of 2 images are left out, nothing is written"):
        ours.predict_file(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("target", "array", "message"),
    [
        ("a.xyz", pixels(4, 4, 3), r"'\.xyz' is that of no image format"),
        ("a.jpg", pixels(4, 4, dtype=np.uint16), "JPEG files cannot hold 16 bits"),
        ("a.bmp", np.zeros((4, 4, 4), np.uint8), "BMP files cannot hold opacity"),
        ("a.webp", pixels(1, 8192, 3), "a side of 16384 pixels is longer than 16383"),
    ],
)
def test_what_a_format_cannot_hold_is_told_before_the_work(tmp_path, monkeypatch, target, array, message):
    ours = predictor()
    monkeypatch.setattr(ours, "_restored", lambda _: pytest.fail("was restored"))
    with pytest.raises(DataError, match=message):
        ours.predict_file(save(tmp_path / "in.png", array), tmp_path / target)


def animated(path: Path) -> None:
    frames = [Image.fromarray(pixels(8, 8, 3)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def truncated(path: Path) -> None:
    save(path, pixels(64, 64, 3))
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("film.gif", animated, r"film\.gif: is an animation of 3"),
        ("cut.png", truncated, r"cut\.png"),
        (
            "text.png",
            lambda path: path.write_text("no image"),
            r"text\.png: cannot be decoded: it is no image of a known format\. Leave",
        ),
        ("empty.png", lambda path: path.write_bytes(b""), r"empty\.png: is an empty file"),
        ("folder", lambda path: path.mkdir(), r"folder: has no images; expected \.jpg"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        predictor().predict_file(tmp_path / name, tmp_path / "out.png")
    assert "on_corrupt" not in str(caught.value) and not (tmp_path / "out.png").exists()


def test_the_input_is_never_overwritten(tmp_path):
    path = save(tmp_path / "a.png", pixels(4, 4, 3))
    before = path.read_bytes()
    with pytest.raises(UserError, match="would overwrite its input"):
        predictor().predict_file(path, path)
    with pytest.raises(UserError, match="would overwrite its input"):
        predictor().predict_file(tmp_path, tmp_path)
    assert path.read_bytes() == before


def test_weights_that_give_no_numbers_are_told(tmp_path):
    ours = predictor()
    with torch.no_grad():
        ours.restorer.model.shallow.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        ours(pixels(4, 4, 3))
