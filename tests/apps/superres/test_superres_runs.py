"""Whole runs: bit for bit the same after a break, and what a run leaves."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from apps.core.run.evaluate import evaluate
from apps.core.task import VerbOptions
from apps.superres.config import TASK
from apps.superres.module import SuperresModule
from datamodules.superres.config import GeneratedConfig
from datamodules.superres.generated import write_generated
from graftwork.errors import DataError, UserError, WeightsError
from tests.apps.superres.runs import results, run, small, weights
from tests.resume.runs import assert_same_run

EVERYTHING = {
    "data.degradation": "gaussian_noise",
    "data.degradation.scale": None,
    "data.degradation.sigma_max": 50,
    "model.drop_path": 0.3,
    "model.image_skip": None,
    "loss.frequency_weight": 0.1,
    "trainer.ema_decay": 0.9,
    "checkpoint.every_n_steps": 1,
}


class PowerCutError(Exception):
    """Ends a run as abruptly as an exception can."""


def cut(folder: Path, batches: int, monkeypatch: pytest.MonkeyPatch, **changes) -> None:
    """Fit until the loss of a batch, then end as if the power had gone."""
    loss, calls = SuperresModule.training_loss, []

    def losing(self, batch):
        calls.append(1)
        if len(calls) > batches:
            raise PowerCutError
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SuperresModule, "training_loss", losing)
        with pytest.raises(PowerCutError):
            run(folder, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder, **EVERYTHING) == 0
    return folder


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("enlarged") / "run"
    assert run(folder) == 0
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [2, 6])
def test_a_broken_run_ends_as_an_unbroken_one(whole, tmp_path, monkeypatch, workers, batches):
    words = {**EVERYTHING, "data.num_workers": workers}
    cut(tmp_path / "run", batches, monkeypatch, **words)
    assert run(tmp_path / "run", resume=True, **words) == 0
    assert_same_run(whole, tmp_path / "run")


def test_another_seed_is_another_run(whole, tmp_path):
    assert run(tmp_path / "run", **EVERYTHING, seed=1) == 0
    ours, other = weights(whole), weights(tmp_path / "run")
    assert not all(torch.equal(ours[name], other[name]) for name in ours)


def test_a_run_learns_and_stands_beside_bicubic(tmp_path):
    assert run(tmp_path / "run", **{"trainer.max_epochs": 12, "data.images": 8}) == 0
    rows = results(tmp_path / "run")
    assert set(rows) == {"psnr", "ssim", "psnr_rgb", "ssim_rgb"}
    assert rows["psnr"]["value"] > rows["psnr"]["baseline"] + 0.1
    with (tmp_path / "run/metrics.csv").open(newline="") as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]
    assert losses[-1] < losses[0]


def test_scores_do_not_depend_on_batches_and_tiles(enlarged, tmp_path):
    found = []
    for name, words in {
        "one": {},
        "batch": {"data.eval_batch_size": 2, "data.images": 8},
        "tiles": {"tiles.size": 28, "tiles.margin": 8, "tiles.blend": 4, "data.images": 8},
    }.items():
        config = small(tmp_path / name, **{"data.images": 8, **words})
        assert evaluate(TASK, config, VerbOptions(weights=str(enlarged), argv=("test",)), "test") == 0
        found.append({metric: row["value"] for metric, row in results(tmp_path / name).items()})
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_corrupt_files_stop_or_are_listed_in_the_run(tmp_path):
    photos = write_generated(GeneratedConfig(root=str(tmp_path / "data"), images=4, side=48))
    victim = sorted((photos / "train").rglob("*.png"))[1]
    victim.write_bytes(victim.read_bytes()[:60])
    words = {"data.name": "folder", "data.root": str(photos), "data.images": None, "data.side": None}
    with pytest.raises(DataError, match=victim.name):
        run(tmp_path / "stops", **words)
    assert run(tmp_path / "skips", **words, **{"data.on_corrupt": "skip"}) == 0
    assert victim.name in (tmp_path / "skips/notes.json").read_text()


def test_weights_of_another_scale_name_both(enlarged, tmp_path):
    config = small(tmp_path / "run", **{"data.degradation.scale": 4})
    with pytest.raises(WeightsError, match="weights for scale 2, the model is built for scale 4"):
        evaluate(TASK, config, VerbOptions(weights=str(enlarged), argv=("test",)), "test")


def test_a_training_starts_from_weights_of_another_scale(enlarged, tmp_path):
    words = {"data.degradation.scale": 4, "optim.lr": 1e-12, "trainer.max_epochs": 1}
    assert run(tmp_path / "run", weights=str(enlarged), **words) == 0
    before, after = weights(enlarged, "best"), weights(tmp_path / "run")
    kept = [name for name in before if ".reconstruction." not in name]
    assert kept and all(torch.allclose(before[name], after[name], atol=1e-6) for name in kept)
    assert len(after["model.reconstruction.steps.0.weight"]) == 3 * 16
    rows = results(tmp_path / "run")
    # the last layers begin at zero, and what is added to the interpolated image with them
    assert rows["psnr"]["value"] == pytest.approx(rows["psnr"]["baseline"], abs=0.5)


def test_official_weights_of_another_scale_name_both(shared, tmp_path):
    words = {"model.width": None, "model.depths": None, "model.kernel": None, "model.image_skip": None}
    config = small(tmp_path / "run", **{**words, "model.edges": "merged"})
    path = shared / "data/cfsr_weights/CFSR_x4.safetensors"
    with pytest.raises(WeightsError, match="weights for scale 4, the model is built for scale 2"):
        evaluate(TASK, config, VerbOptions(weights=f"official:{path}", argv=("test",)), "test")


def test_packed_mosaics_have_no_network_here(tmp_path):
    words = {"data.degradation": "mosaic", "data.degradation.form": "packed", "data.degradation.scale": None}
    with pytest.raises(UserError, match="form masked"):
        run(tmp_path / "run", **words, **{"model.image_skip": None})
