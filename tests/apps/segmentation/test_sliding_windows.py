"""Windows are those of the protocol, views average probabilities, tiles equal the whole image at any size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from apps.segmentation import tiles
from apps.segmentation.config import InferenceConfig
from apps.segmentation.sources import ArraySource, PillowSource, TiffSource, label_file, open_image
from apps.segmentation.tiles import TileGrid, predict_labels, predict_tiles, read_at
from apps.segmentation.windows import Viewer, average_of_views, nearest, resized, slide, windows
from datamodules.guard import CorruptSample
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, DataError, ShapeError, UserError
from tests.apps.segmentation.runs import small

CLASSES = 4
INFO = SegmentationInfo(tuple("abcd"), ((0, 0, 0),) * CLASSES, crop=(48, 36))


class Local(nn.Module):
    """Scores from a neighbourhood and from the window's mean, so that windows matter; gives half the size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, CLASSES, 5, padding=2)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        scores = self.body(images - 0.5 * images.mean((2, 3), keepdim=True))
        return F.avg_pool2d(scores, 2, ceil_mode=True)


def literal(predict, images: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The protocol, window by window: scores and counts filled up to the image and summed."""
    height, width = images.shape[-2:]
    total, counts = torch.zeros(len(images), CLASSES, height, width).double(), torch.zeros(1, 1, height, width).double()
    for down in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for right in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, last = min(down * stride[0] + crop[0], height), min(right * stride[1] + crop[1], width)
            top, first = max(bottom - crop[0], 0), max(last - crop[1], 0)
            window = images[:, :, top:bottom, first:last]
            scores = F.interpolate(predict(window), size=window.shape[2:], mode="bilinear", align_corners=False)
            total += F.pad(scores, (first, width - last, top, height - bottom))
            counts[:, :, top:bottom, first:last] += 1
    return total / counts


@given(length=st.integers(1, 300), crop=st.integers(1, 90), share=st.floats(0.01, 1))
def test_windows_cover_an_axis_and_stay_inside(length, crop, share):
    stride = max(1, int(crop * share))
    found = windows(length, crop, stride)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(end - start == min(crop, length) for start, end in found)
    assert all(0 < after[0] - before[0] <= stride for before, after in pairwise(found))


def test_windows_by_hand():
    assert windows(112, 64, 42) == [(0, 64), (42, 106), (48, 112)]
    assert windows(106, 64, 42) == [(0, 64), (42, 106)]
    assert windows(30, 64, 42) == [(0, 30)]
    with pytest.raises(ConfigError, match=r"stride=65 must be from 1 to crop=64"):
        windows(112, 64, 65)


@settings(max_examples=12)
@given(
    height=st.integers(5, 70),
    width=st.integers(5, 70),
    crop=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    share=st.floats(0.3, 1),
    images=st.integers(1, 3),
    batch=st.integers(1, 7),
)
def test_sliding_equals_the_literal_protocol(height, width, crop, share, images, batch):
    model = Local().double()
    stride = max(1, int(crop[0] * share)), max(1, int(crop[1] * share))
    pixels = torch.randn(images, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        found = slide(model, pixels, crop, stride, batch=batch)
        torch.testing.assert_close(found, literal(model, pixels, crop, stride), rtol=1e-10, atol=1e-12)
    assert max(shape[0] for shape in model.seen) <= max(batch, images)


def test_blended_windows_average_and_leave_constants_alone():
    constant = slide(lambda x: torch.ones(len(x), 2, *x.shape[2:]), torch.zeros(1, 3, 50, 41), 16, 7, blend=True)
    torch.testing.assert_close(constant, torch.ones(1, 2, 50, 41))
    # each window says its own mean; where windows fade into each other, scores step by little
    ramp = torch.arange(64.0).expand(1, 1, 16, 64)
    steps = [
        slide(lambda x: x.mean((2, 3), keepdim=True).expand_as(x), ramp, 16, 8, blend=blend).diff(dim=-1).abs().max()
        for blend in (True, False)
    ]
    assert steps[0] < 0.5 * steps[1]


def test_half_precision_is_summed_in_float32():
    found = slide(lambda x: x.half(), torch.rand(1, 2, 40, 40), 16, 5)
    assert found.dtype == torch.float32


def test_images_must_have_four_axes():
    with pytest.raises(ShapeError, match=r"\[3, 8, 8\]"):
        slide(Local(), torch.rand(3, 8, 8), 4, 4)


def test_views_average_probabilities_of_scales_and_mirror_images():
    model, images = Local().double(), torch.randn(2, 3, 31, 44, dtype=torch.float64)
    softmax = lambda scores: scores.softmax(1)  # noqa: E731
    with torch.no_grad():
        found = average_of_views(model, softmax, images, (0.5, 1.0, 1.75), flip=True)
        expected = torch.zeros_like(found)
        for size in ((16, 22), (31, 44), (54, 77)):  # half up
            seen = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
            for turn in (lambda x: x, lambda x: x.flip(3)):
                scores = F.interpolate(turn(model(turn(seen))), size=(31, 44), mode="bilinear", align_corners=False)
                expected += scores.softmax(1) / 6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 31, 44, dtype=torch.float64))


def viewer(model: nn.Module, **options) -> Viewer:
    return Viewer(model, lambda scores: scores.softmax(1), INFO, InferenceConfig(**options))


def test_windows_are_the_training_images_by_default():
    model = Local()
    seen = viewer(model, mode="slide")
    assert (seen.crop, seen.stride) == ((48, 36), (32, 24))
    images = torch.randn(1, 3, 100, 90)
    with torch.no_grad():
        torch.testing.assert_close(
            seen.class_scores(images), literal(model, images, (48, 36), (32, 24)).float(), rtol=1e-4, atol=1e-5
        )
    assert viewer(model, mode="slide", crop=40, stride=9).stride == (9, 9)


def test_windows_fade_into_each_other_where_they_overlap_and_nowhere_else(monkeypatch):
    options = {"mode": "slide", "crop": (48, 40), "stride": (48, 30)}
    model, images = Local(), torch.randn(1, 3, 48, 100)
    with torch.no_grad():
        plain, blended = (viewer(model, **options, blend=blend).class_scores(images) for blend in (False, True))
        monkeypatch.setattr("apps.segmentation.windows.window_weights", lambda length, *_: torch.ones(length))
        equal = viewer(model, **options, blend=True).class_scores(images)
    both = torch.zeros(100, dtype=torch.bool)
    both[30:40] = both[60:70] = True  # windows begin at 0, 30 and 60
    torch.testing.assert_close(blended[..., ~both], plain[..., ~both])
    assert ((blended - plain)[..., both].abs() > 1e-4).float().mean() > 0.5
    torch.testing.assert_close(equal, plain)


def test_windows_have_one_side_or_two(tmp_path):
    config = small(tmp_path, **{"inference.crop": [32, 48], "inference.stride": "16,24"}).inference
    assert tuple(config.crop) == (32, 48) and tuple(config.stride) == (16, 24) and not list(config.problems())
    assert small(tmp_path, **{"inference.crop": 40}).inference.crop == 40
    for words, text in (
        ({"crop": (32, 64), "stride": (16, 65)}, r"stride=(16, 65) must be at most crop=(32, 64)"),
        ({"crop": 32, "stride": (16, 33)}, "stride=(16, 33) must be at most crop=32"),
        ({"crop": (0, 32)}, "crop=(0, 32) must be"),
        ({"stride": -1}, "stride=-1 must be"),
    ):
        (problem,) = InferenceConfig(**words).problems()
        assert text in problem


@pytest.mark.parametrize(
    "options", [{}, {"mode": "slide"}, {"scales": (0.75, 1.0), "flip": True}, {"max_pixels": 1024}]
)
def test_scores_do_not_depend_on_what_else_is_in_the_batch(options):
    seen, images = viewer(Local().double(), **options), torch.zeros(3, 3, 60, 50, dtype=torch.float64)
    sizes = torch.tensor([[60, 41], [33, 50], [60, 41]])
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    with torch.no_grad():
        together = seen.class_scores(images, sizes)
        for place, (height, width) in enumerate(sizes.tolist()):
            alone = seen.class_scores(images[place : place + 1, :, :height, :width])[0]
            torch.testing.assert_close(together[place, :, :height, :width], alone)
            assert not together[place, :, height:].any() and not together[place, :, :, width:].any()


@pytest.mark.parametrize("options", [{}, {"mode": "slide"}, {"flip": True}])
def test_probabilities_are_made_once(options):
    seen, images = viewer(Local(), **options), 9 * torch.randn(1, 3, 60, 50)
    with torch.no_grad():
        found, scores = seen.class_probabilities(images), seen.class_scores(images)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 60, 50))
    torch.testing.assert_close(found, scores if options.get("flip") else scores.softmax(1))
    assert torch.equal(found.argmax(1), seen.labels(images))


def test_images_smaller_than_backbones_take_are_filled_up():
    model = Local()
    with torch.no_grad():
        assert viewer(model).class_scores(torch.randn(1, 3, 7, 50)).shape == (1, CLASSES, 7, 50)
    assert model.seen == [(1, 3, 32, 50)]


def test_large_images_are_seen_in_tiles():
    model = Local()
    with torch.no_grad():
        viewer(model, max_pixels=64 * 64).class_scores(torch.randn(1, 3, 200, 130))
    assert {shape[2:] for shape in model.seen} == {(64, 64)}


@given(width=st.integers(1, 400), tile=st.integers(1, 60), share=st.floats(0.2, 1), most=st.integers(1, 200))
def test_strips_keep_every_column_once_with_all_tiles_that_reach_it(width, tile, share, most):
    grid = TileGrid((10, width), (tile, tile), (max(1, int(tile * share)),) * 2)
    expected = 0
    for (first, last), columns in grid.strips(most):
        assert first == expected and last > first
        assert columns == [column for column in grid.columns if column[0] < last and column[1] > first]
        assert columns[-1][1] - columns[0][0] <= max(most, 2 * tile)
        expected = last
    assert expected == width


@settings(max_examples=8)
@given(
    height=st.integers(3, 150),
    width=st.integers(3, 150),
    blend=st.booleans(),
    memory=st.sampled_from([1, 30_000, 1 << 28]),
    batch=st.integers(1, 4),
)
def test_tiles_equal_windows_over_the_whole_image(height, width, blend, memory, batch):
    model = Local().double()
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.full((height, width), 99, np.uint8)
    to_model = lambda part: torch.from_numpy(part.copy()).permute(2, 0, 1).double() / 255  # noqa: E731
    options = {"blend": blend, "memory": memory, "batch": batch}
    predict_tiles(model, ArraySource(pixels), labels, to_model, tile=(40, 32), stride=(30, 20), **options)
    with torch.no_grad():
        whole = slide(model, to_model(pixels)[None], (40, 32), (30, 20), blend=blend)[0]
    chosen = whole.gather(0, torch.from_numpy(labels).long()[None])[0]
    torch.testing.assert_close(chosen, whole.amax(0), rtol=0, atol=1e-6)  # equal scores may fall either way


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "slide"},
        {"mode": "slide", "blend": True, "crop": (40, 36), "stride": (30, 20)},
        {"flip": True, "max_pixels": 4096},
        {"max_pixels": 4096},
        {"shorter_side": 40},
    ],
)
def test_labels_of_a_file_are_those_of_the_image(tmp_path, options):
    seen, pixels = viewer(Local(), **options), np.random.default_rng(0).integers(0, 256, (130, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    steps: list[tuple[int, int]] = []
    with label_file(tmp_path / "labels.npy", 130, 150) as labels:
        predict_labels(seen, open_image(tmp_path / "image.png"), labels, progress=lambda *step: steps.append(step))
    found = np.load(tmp_path / "labels.npy")
    assert found.dtype == np.uint8 and found.max() < CLASSES and steps[-1][0] == steps[-1][1]
    if "flip" not in options:
        mean, std = (torch.tensor(values)[:, None, None] for values in (INFO.mean, INFO.std))
        images = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std
        assert (seen.labels(images)[0].numpy() == found).mean() > 0.9999


class Counting(ArraySource):
    """Remembers how many pixels were read at once."""

    most = 0

    def read(self, rows, columns):
        self.most = max(self.most, (rows[1] - rows[0]) * (columns[1] - columns[0]))
        return super().read(rows, columns)


def test_memory_does_not_grow_with_the_image():
    largest = []
    for side in (300, 900):
        model, source = Local(), Counting(np.zeros((side, side, 3), np.uint8))
        prepare = lambda part: torch.from_numpy(part.copy()).permute(2, 0, 1).float()  # noqa: E731
        options = {"tile": (64, 64), "stride": (48, 48), "memory": 64 * 64 * 4 * CLASSES * 3}
        predict_tiles(model, source, np.zeros((side, side), np.uint8), prepare, **options)
        largest.append(source.most)
        assert len(model.seen) <= 1.6 * len(windows(side, 64, 48)) ** 2 + 1  # tiles at strips are predicted twice
    assert largest[0] == largest[1]


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    at_once=st.sampled_from([1, 300, 1 << 22]),
)
def test_images_read_at_another_size_are_those_that_are_resized(size, wanted, at_once):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepare = lambda part: torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 255  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_READ_PIXELS", at_once)
        found = read_at(ArraySource(pixels), wanted, prepare)
    torch.testing.assert_close(found, resized(prepare(pixels)[None], wanted)[0], rtol=0, atol=1e-5)


def test_labels_of_images_that_were_made_small_come_in_strips(monkeypatch):
    seen, pixels = viewer(Local(), shorter_side=40), np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    whole, strips = np.zeros((90, 70), np.uint8), np.zeros((90, 70), np.uint8)
    predict_labels(seen, ArraySource(pixels), whole)
    monkeypatch.setattr(tiles, "SCORE_BYTES", 4 * CLASSES * 70 * 7)
    predict_labels(seen, ArraySource(pixels), strips)
    assert len(np.unique(whole)) > 1
    np.testing.assert_array_equal(strips, whole)


def test_tiles_that_are_not_finite_are_told():
    broken = lambda part: torch.full((len(part), 2, 8, 8), float("nan"))  # noqa: E731
    source, prepare = ArraySource(np.zeros((20, 30, 3), np.uint8)), torch.from_numpy
    with pytest.raises(DataError, match="not finite"):
        predict_tiles(broken, source, np.zeros((20, 30), np.uint8), prepare, tile=(8, 8), stride=(8, 8))


def test_labels_must_fit(tmp_path):
    source = ArraySource(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"\[20, 30\] as the image is, got \[20, 31\]"):
        predict_tiles(Local(), source, np.zeros((20, 31), np.uint8), torch.from_numpy, tile=(8, 8), stride=(8, 8))
    many = lambda x: torch.zeros(1, 256, 8, 8)  # noqa: E731
    with pytest.raises(ShapeError, match="256 classes do not fit"):
        predict_tiles(many, source, np.zeros((20, 30), np.uint8), torch.from_numpy, tile=(8, 8), stride=(8, 8))


KINDS = {
    "plain": {},
    "strips": {"compression": "zlib", "rowsperstrip": 7},
    "tiles": {"compression": "lzw", "tile": (32, 48), "predictor": True},
    "bigtiff": {"bigtiff": True, "tile": (16, 16)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(70, 101, 3), (70, 101, 4), (70, 101)])
def test_parts_of_tiff_files_are_those_of_the_whole(tmp_path, kind, shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    extra = {"extrasamples": ["unassalpha"]} if shape[-1] == 4 else {}
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "image.tif", pixels, photometric=photometric, **KINDS[kind], **extra)
    source = open_image(tmp_path / "image.tif")
    assert isinstance(source, TiffSource) and (source.height, source.width) == (70, 101)
    whole = PillowSource(tmp_path / "image.tif")
    for rows, columns in (((0, 70), (0, 101)), ((31, 33), (47, 49)), ((60, 70), (90, 101)), ((5, 40), (0, 100))):
        np.testing.assert_array_equal(source.read(rows, columns), whole.read(rows, columns))


def test_sixteen_bits_and_inverted_grey_are_read(tmp_path):
    values = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50
    tifffile.imwrite(tmp_path / "deep.tif", values, photometric="miniswhite", tile=(16, 16))
    found = open_image(tmp_path / "deep.tif", channels=1).read((3, 20), (5, 9))
    np.testing.assert_array_equal(found[..., 0], np.round((65535 - values[3:20, 5:9]) / 257))


def test_other_kinds_of_tiff_are_left_to_pillow(tmp_path):
    Image.fromarray(np.zeros((20, 30, 4), np.uint8), "CMYK").save(tmp_path / "print.tif")
    source = open_image(tmp_path / "print.tif")
    assert isinstance(source, PillowSource)
    np.testing.assert_array_equal(source.read((0, 2), (0, 2)), np.full((2, 2, 3), 255))


def test_damaged_files_are_named(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "cut.tif", pixels, compression="zlib", tile=(16, 16), photometric="rgb")
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:2000])
    with pytest.raises(CorruptSample, match=r"cut\.tif"):
        open_image(tmp_path / "cut.tif").read((0, 64), (0, 64))
    with pytest.raises(CorruptSample, match=r"nothing\.png"):
        open_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("name", ["labels.npy", "labels.tif"])
def test_label_files_appear_when_they_are_whole(tmp_path, name):
    with pytest.raises(RuntimeError), label_file(tmp_path / name, 5, 6) as labels:
        labels[:] = 1
        raise RuntimeError("stopped")
    assert not list(tmp_path.iterdir())
    with label_file(tmp_path / name, 5, 6) as labels:
        labels[2:4, 1:] = 7
    found = np.load(tmp_path / name) if name.endswith("npy") else tifffile.imread(tmp_path / name)
    assert found.sum() == 70 and [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(UserError, match=r"not \.jpg"), label_file(tmp_path / "labels.jpg", 5, 6):
        pass


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_the_shorter_side_is_brought_to_its_length_and_scores_back(scales):
    model = Local()
    config = InferenceConfig(shorter_side=64, scales=scales)
    viewer = Viewer(model, lambda scores: scores.softmax(1), INFO, config)
    images = torch.randn(1, 3, 40, 50)
    scores = viewer.class_scores(images)
    assert scores.shape == (1, CLASSES, 40, 50)
    assert {shape[2:] for shape in model.seen} == {(int(64 * scale), int(80 * scale)) for scale in scales}
    if scales == (1.0,):
        large = F.interpolate(images, size=(64, 80), mode="bilinear")
        full = F.interpolate(model(large), size=(64, 80), mode="bilinear")
        torch.testing.assert_close(scores, F.interpolate(full, size=(40, 50), mode="bilinear"))


def test_a_shorter_side_below_what_backbones_take_is_refused():
    (problem,) = InferenceConfig(shorter_side=16).problems()
    assert "shorter_side=16" in problem


def test_tiles_of_an_image_that_is_to_be_resized_are_refused():
    config = InferenceConfig(shorter_side=64, max_pixels=4096)
    viewer = Viewer(Local(), lambda scores: scores.softmax(1), INFO, config)
    with pytest.raises(ConfigError, match=r"shorter_side=64 makes 64 x 80 pixels of this image of 40 x 50"):
        predict_labels(viewer, ArraySource(np.zeros((40, 50, 3), dtype=np.uint8)), np.zeros((40, 50), dtype=np.uint8))


def test_nearest_takes_the_position_whose_middle_is_nearest():
    maps = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    assert nearest(maps, (2, 2)) is maps
    assert nearest(maps, (4, 3)).tolist() == [[1, 2, 2], [1, 2, 2], [3, 4, 4], [3, 4, 4]]
    assert nearest(maps > 1, (1, 2)).tolist() == [[True, True]]
    assert nearest(torch.zeros(0, 5, 7, dtype=torch.bool), (2, 3)).shape == (0, 2, 3)
    large = torch.arange(35).reshape(5, 7)
    expected = F.interpolate(large[None, None].double(), size=(8, 3), mode="nearest-exact")[0, 0]
    assert torch.equal(nearest(large, (8, 3)).double(), expected)
