"""The metric suite of restoration: means over images, the baseline, tables, and what reaches it from loaders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.core.metrics.direction import higher_is_better
from apps.core.protocols import MetricSuite
from apps.superres import metrics
from apps.superres.metrics import CEILING, ImageScores, RestorationMetrics, trivial
from apps.superres.quality import psnr, psnr_b, ssim
from datamodules.superres.bicubic import imresize
from datamodules.superres.config import BenchmarkConfig, FolderConfig, GeneratedConfig
from datamodules.superres.degradations.config import BicubicConfig, JpegConfig, MosaicConfig
from datamodules.superres.generated import write_generated
from datamodules.superres.info import RestorationInfo

SR = RestorationInfo(scale=2, channels=3, colour="y", border=2)
DENOISING = RestorationInfo(scale=1, channels=3, degradation="gaussian_noise")


def batch(
    size: int = 1, side: int = 24, scale: int = 2, channels: int = 3, first: int = 0, seed: int = 0
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + first)
    return {
        "lq": torch.rand(size, channels, side // scale, side // scale, generator=generator),
        "gt": torch.rand(size, channels, side, side, generator=generator),
        "index": torch.arange(first, first + size),
        "name": [f"image {first + i}" for i in range(size)],
    }


def restored(sample: dict[str, Any], seed: int = 9) -> torch.Tensor:
    noise = torch.rand(sample["gt"].shape, generator=torch.Generator().manual_seed(seed))
    return sample["gt"] * 0.9 + 0.1 * noise


def test_scores_by_hand():
    suite = RestorationMetrics(RestorationInfo(scale=1, channels=1))
    truth = torch.zeros(2, 1, 16, 16)
    ours = truth.clone()
    ours[0] += 1 / 255
    ours[1] += 10 / 255
    suite.update({"lq": truth + 2 / 255, "gt": truth, "index": torch.tensor([0, 1])}, ours)
    peak = 20 * math.log10(255)
    assert suite.compute()["psnr"] == pytest.approx(peak - 10)  # errors 1 and 100: the mean of decibels, not of errors
    assert suite.baseline()["psnr"] == pytest.approx(peak - 10 * math.log10(4))
    assert suite.count() == 2 and isinstance(suite, MetricSuite)


def test_an_image_restored_exactly_leaves_the_means_finite():
    suite, sample = RestorationMetrics(DENOISING), batch(2, scale=1)
    sample["lq"] = sample["gt"].clone()
    ours = sample["gt"].clone()
    ours[1] *= 0.9
    suite.update(sample, ours)
    other = float(psnr(ours[1], sample["gt"][1]))
    assert suite.compute()["psnr"] == pytest.approx((CEILING + other) / 2) and suite.baseline()["psnr"] == CEILING
    first, second = suite.tables()["scores by image"]
    assert first["PSNR"] == second["PSNR of baseline"] == CEILING > second["PSNR"]


def test_an_image_in_place_of_a_corrupt_one_is_scored_once(tmp_path):
    photos = write_generated(GeneratedConfig(root=str(tmp_path), images=12, side=48))
    victim = sorted((photos / "test").rglob("*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:60])
    data = FolderConfig(root=str(photos), degradation=BicubicConfig(scale=2), on_corrupt="skip", cache="off").build(0)
    data.setup()
    suite, samples = RestorationMetrics(data.info), list(data.test_dataloader())
    for sample in samples:
        suite.update(sample, restored(sample))
    rows = suite.tables()["scores by image"]
    assert len(samples) == 3 and len({row["image"] for row in rows}) == len(rows) == suite.count() == 2
    assert suite.compute()["psnr"] == pytest.approx(np.mean([row["PSNR"] for row in rows]))


def test_super_resolution_scores_luma_without_its_border():
    suite, sample = RestorationMetrics(SR, thorough=True), batch(2)
    ours = restored(sample)
    suite.update(sample, ours)
    expected = {
        "psnr": psnr(ours, sample["gt"], border=2, colour="y"),
        "ssim": ssim(ours, sample["gt"], border=2, colour="y"),
        "psnr_rgb": psnr(ours, sample["gt"], border=2),
        "ssim_rgb": ssim(ours, sample["gt"], border=2),
    }
    assert suite.compute() == {name: pytest.approx(float(scores.mean())) for name, scores in expected.items()}
    enlarged = imresize(sample["lq"], 2)
    assert suite.baseline()["psnr"] == pytest.approx(float(psnr(enlarged, sample["gt"], border=2, colour="y").mean()))
    assert "ssim_rgb" not in RestorationMetrics(SR).columns
    assert all(higher_is_better(f"val/{name}") for name in suite.columns)


def test_restoration_scores_all_channels_beside_the_degraded_image():
    suite, sample = RestorationMetrics(DENOISING), batch(scale=1)
    suite.update(sample, restored(sample))
    assert set(suite.compute()) == {"psnr", "ssim"}
    assert suite.baseline()["psnr"] == pytest.approx(float(psnr(sample["lq"], sample["gt"])))


def test_jpeg_counts_blocking_too():
    data = GeneratedConfig(degradation=JpegConfig(quality=10)).build(0)
    data.setup()
    suite = RestorationMetrics(data.info)
    for sample in data.test_dataloader():
        suite.update(sample, sample["lq"])
    found = suite.compute()
    assert found == suite.baseline() and found["psnr_b"] < found["psnr"]
    values = [float(psnr_b(sample["lq"], sample["gt"])) for sample in data.test_dataloader()]
    assert found["psnr_b"] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_mosaics_are_compared_with_bilinear_interpolation(form):
    data = GeneratedConfig(degradation=MosaicConfig(pattern="quad", form=form), side=96).build(0)
    data.setup()
    suite = RestorationMetrics(data.info)
    for sample in data.test_dataloader():
        suite.update(sample, trivial(sample["lq"], data.info))
    assert suite.compute() == suite.baseline() and suite.compute()["psnr"] > 15


@settings(max_examples=15)
@given(images=st.integers(1, 7), size=st.integers(1, 7), seed=st.integers(0, 9))
def test_scores_depend_neither_on_batches_nor_on_their_order(images, size, seed):
    whole, parts = RestorationMetrics(SR), RestorationMetrics(SR)
    sample = batch(images, seed=seed)
    ours = restored(sample)
    whole.update(sample, ours)
    starts = list(range(0, images, size))
    for start in reversed(starts):
        rows = slice(start, start + size)
        parts.update({key: value[rows] for key, value in sample.items()}, ours[rows])
    assert parts.compute() == whole.compute() and parts.baseline() == whole.baseline()
    assert parts.tables() == whole.tables() and parts.count() == images


def test_the_table_has_a_row_for_each_image():
    suite, sample = RestorationMetrics(SR), batch(2)
    suite.update(sample, restored(sample))
    first, second = suite.tables()["scores by image"]
    assert (first["image"], second["image"]) == ("image 0", "image 1")
    assert list(first) == ["image", "PSNR", "SSIM", "PSNR (RGB)", "PSNR of baseline", "SSIM of baseline"]
    assert (first["PSNR"] + second["PSNR"]) / 2 == pytest.approx(suite.compute()["psnr"])
    assert RestorationMetrics(SR).tables() == {}


def test_of_many_images_the_table_shows_the_worst(monkeypatch):
    monkeypatch.setattr(metrics, "MOST_ROWS", 3)
    suite, sample = RestorationMetrics(DENOISING), batch(6, scale=1)
    strength = torch.tensor([1, 6, 2, 5, 3, 4]).view(6, 1, 1, 1) / 20
    suite.update(sample, sample["gt"] * (1 - strength))
    (rows,) = suite.tables().values()
    assert [row["image"] for row in rows] == ["image 1", "image 3", "image 5"]


def test_names_of_any_kind():
    suite = RestorationMetrics(DENOISING)
    names = ["größe/日本", "a" * 300]
    suite.update({**batch(2, scale=1), "name": names}, batch(2, scale=1)["gt"])
    assert [row["image"] for row in suite.tables()["scores by image"]] == [names[0], "a" * 96]
    nameless = batch(1, scale=1, first=5)
    del nameless["name"]
    suite.update(nameless, nameless["gt"])
    assert suite.tables()["scores by image"][2]["image"] == "5"


def test_a_reset_forgets_all_but_the_baseline(monkeypatch):
    suite, sample = RestorationMetrics(SR), batch(2)
    suite.update(sample, restored(sample))
    before = suite.compute(), suite.baseline()
    suite.reset()
    assert suite.count() == 0 and math.isnan(suite.compute()["psnr"])
    monkeypatch.setattr(metrics, "trivial", lambda *args: pytest.fail("computed again"))
    suite.update(sample, restored(sample, seed=1))
    assert suite.baseline() == before[1] and suite.compute() != before[0]


@pytest.mark.parametrize("side", [1, 2, 4, 10, 13])
def test_images_too_small_for_ssim_still_have_a_psnr(side):
    info = RestorationInfo(scale=1, channels=3, colour="y", border=2)
    suite, sample = RestorationMetrics(info), batch(1, side=side, scale=1)
    suite.update(sample, restored(sample))
    found = suite.compute()
    assert math.isfinite(found["psnr"]) and math.isnan(found["ssim"])
    assert suite.tables()["scores by image"][0]["SSIM"] is None
    large = batch(1, scale=1, first=1)
    suite.update(large, restored(large))
    assert math.isfinite(suite.compute()["ssim"])


@pytest.mark.parametrize(
    "info", [SR, DENOISING, RestorationInfo(scale=1, channels=3, degradation="mosaic", pattern="rggb")]
)
def test_scores_do_not_depend_on_mixed_precision(info):
    suites, sample = [RestorationMetrics(info), RestorationMetrics(info)], batch(scale=info.scale)
    ours = restored(sample)
    with torch.autocast("cpu", torch.bfloat16):
        suites[0].update(sample, ours)
    suites[1].update(sample, ours)
    assert suites[0].baseline() == suites[1].baseline() and suites[0].compute() == suites[1].compute()


def test_predictions_are_left_as_they_are():
    suite, sample = RestorationMetrics(SR), batch(1)
    ours = (restored(sample) * 2 - 0.5).half()
    before = ours.clone()
    suite.update(sample, ours)
    assert torch.equal(ours, before)


def test_scores_of_several_processes_come_together():
    one, other = ImageScores(1), ImageScores(1)
    one.update(torch.tensor([0, 2]), ["a", "c"], torch.tensor([[1.0], [3.0]]))
    other.update(torch.tensor([1]), ["b"], torch.tensor([[2.0]]))
    one.rows, one.names = (
        torch.cat([*one.rows, *other.rows]),
        torch.cat([*one.names, *other.names]),
    )  # what a gather leaves
    names, scores = one.compute()
    assert names == ["a", "b", "c"] and scores.flatten().tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("scale", "expected"), [(2, (33.679, 0.9304)), (3, (30.406, 0.8690)), (4, (28.432, 0.8113))])
def test_the_baseline_on_set5_is_the_published_one(shared, scale, expected):
    if not (shared / "data/Set5").is_dir():
        pytest.skip("needs ../shared/data/Set5")
    data = BenchmarkConfig(root=str(shared / "data/Set5"), degradation=BicubicConfig(scale=scale)).build(0)
    data.setup()
    suite = RestorationMetrics(data.info)
    for sample in data.test_dataloader():
        suite.update(sample, imresize(sample["lq"], scale))
    assert suite.compute() == suite.baseline()
    assert suite.baseline()["psnr"] == pytest.approx(expected[0], abs=6e-4)
    assert suite.baseline()["ssim"] == pytest.approx(expected[1], abs=6e-5)
    if scale == 4:
        rows = {row["image"]: row["PSNR"] for row in suite.tables()["scores by image"]}
        assert rows == {
            name: pytest.approx(value, abs=0.005)
            for name, value in {"baby": 31.79, "bird": 30.19, "butterfly": 22.10, "head": 31.62, "woman": 26.47}.items()
        }
