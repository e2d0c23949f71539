"""Whole runs: bit for bit the same after a break, and what a run leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from apps.core.run.evaluate import evaluate
from apps.core.task import VerbOptions
from apps.segmentation.config import TASK
from apps.segmentation.module import SegmentationModule
from datamodules.segmentation.config import GeneratedConfig
from graftwork.errors import ConfigError, WeightsError
from tests.apps.segmentation.runs import SMALL_MASKS, results, run, small, weights
from tests.resume.runs import assert_same_run

EVERYTHING = {"data.balance": 0.5, "model.class_weights": "sqrt", "checkpoint.every_n_steps": 1}
OBJECTS = {"model.head": "mask2former", "model.head.channels": None} | {
    f"model.head.{name}": value for name, value in SMALL_MASKS.items()
}


class PowerCutError(Exception):
    """Ends a run as abruptly as an exception can."""


def cut(folder: Path, batches: int, monkeypatch: pytest.MonkeyPatch, **changes) -> None:
    """Fit until the loss of a batch, then end as if the power had gone."""
    loss, calls = SegmentationModule.training_loss, []

    def losing(self, batch):
        calls.append(1)
        if len(calls) > batches:
            raise PowerCutError
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "training_loss", losing)
        with pytest.raises(PowerCutError):
            run(folder, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder, **EVERYTHING) == 0
    return folder


@pytest.mark.parametrize(("workers", "batches"), [(0, 2), (2, 7)])
def test_a_broken_run_ends_as_an_unbroken_one(whole, tmp_path, monkeypatch, workers, batches):
    words = {**EVERYTHING, "data.num_workers": workers}
    cut(tmp_path / "run", batches, monkeypatch, **words)
    assert run(tmp_path / "run", resume=True, **words) == 0
    assert_same_run(whole, tmp_path / "run")


def test_random_points_of_the_loss_are_drawn_again_after_a_break(tmp_path, monkeypatch):
    words = {**OBJECTS, "trainer.max_epochs": 1, "checkpoint.every_n_steps": 1}
    assert run(tmp_path / "whole", **words) == 0
    cut(tmp_path / "run", 3, monkeypatch, **words)
    assert run(tmp_path / "run", resume=True, **words) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_learns_and_stands_beside_the_most_frequent_class(tmp_path):
    assert run(tmp_path / "run", **{"trainer.max_epochs": 12, "data.augment.scale": [1.0, 1.0]}) == 0
    rows = results(tmp_path / "run")
    assert {"miou", "macc", "aacc", "fscore", "boundary_iou"} == set(rows)
    assert rows["miou"]["value"] > 2 * rows["miou"]["baseline"]
    with (tmp_path / "run/metrics.csv").open(newline="") as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]
    assert losses[-1] < 0.8 * losses[0]


def test_heads_that_tell_objects_apart_are_scored_for_it(tmp_path):
    assert run(tmp_path / "run", **OBJECTS, **{"trainer.max_epochs": 1}) == 0
    assert {"pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ap50", "ap75"} <= set(results(tmp_path / "run"))
    assert run(tmp_path / "plain", **OBJECTS, **{"trainer.max_epochs": 1, "data.panoptic": False}) == 0
    assert "pq" not in results(tmp_path / "plain") and "miou" in results(tmp_path / "plain")


def test_windows_and_views_are_scored_too(whole, tmp_path):
    found = []
    for name, words in {
        "whole": {},
        "views": {"inference.scales": [0.75, 1.25], "inference.flip": True},
        "slide": {"inference.mode": "slide", "inference.stride": 16},
    }.items():
        config = small(tmp_path / name, **words)
        assert evaluate(TASK, config, VerbOptions(weights=str(whole), argv=("test",)), "test") == 0
        found.append(results(tmp_path / name)["aacc"]["value"])
    assert len(set(found)) == 3
    assert found == pytest.approx([found[0]] * 3, abs=25)


@pytest.mark.parametrize("kind", ["base", "ea"])
def test_a_student_learns_from_a_teacher_and_goes_on_after_a_break(whole, tmp_path, monkeypatch, kind):
    words = {"distill.kind": kind, "distill.teacher": str(whole), "checkpoint.every_n_steps": 1}
    words |= {"trainer.max_epochs": 1, "distill.width": 8}
    assert run(tmp_path / "whole", **words) == 0
    head = (tmp_path / "whole/metrics.csv").read_text().splitlines()[0]
    assert "train/teacher_features" in head and "train/teacher_embeddings" in head
    cut(tmp_path / "run", 3, monkeypatch, **words)
    assert run(tmp_path / "run", resume=True, **words) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    # alone, the student needs no teacher
    config = small(tmp_path / "test")
    assert evaluate(TASK, config, VerbOptions(weights=str(tmp_path / "run"), argv=("test",)), "test") == 0


def test_corrupted_images_are_scored_beside(whole, tmp_path):
    words = {"corruptions.names": "noise,fog", "corruptions.images": 3, "run.pictures": 1}
    config = small(tmp_path / "run", **words)
    assert evaluate(TASK, config, VerbOptions(weights=str(whole), argv=("test",)), "test") == 0
    tables = json.loads((tmp_path / "run/notes.json").read_text())["tables"]
    rows = tables["mean IoU under corruptions"]
    assert [row["corruption"] for row in rows] == ["none", "gaussian_noise", "shot_noise", "impulse_noise", "fog"]
    for row in rows[1:]:
        assert row["mean"] == pytest.approx(sum(row[str(severity)] for severity in range(1, 6)) / 5)
        assert row["kept %"] == pytest.approx(100 * row["mean"] / rows[0]["mean"])
    assert (tmp_path / "run/media/summary_corruptions.png").is_file()


def test_corruptions_are_named_by_kind_once():
    from apps.segmentation.config import CORRUPTION_GROUPS, CorruptionConfig
    from apps.segmentation.corruptions import CORRUPTIONS

    assert set(CorruptionConfig(names="all").chosen) == set(CORRUPTIONS)
    assert CorruptionConfig(names="blur, zoom_blur").chosen == CORRUPTION_GROUPS["blur"]
    assert CorruptionConfig().chosen == ()
    (problem,) = CorruptionConfig(names="fogg").problems()
    assert "'fogg', which is no corruption" in problem


def test_weights_of_other_classes_are_refused(whole, tmp_path):
    module = SegmentationModule(small(tmp_path / "run"), GeneratedConfig().build(0).info)
    state = weights(whole)
    from apps.core.checkpoints.read import WeightsMeta

    meta = WeightsMeta(path=whole, info={"classes": ["cat", "dog"]})
    with pytest.raises(WeightsError, match=r"2 classes \(cat, dog"):
        module.load_weights(state, meta)


def test_class_weights_are_those_of_median_frequency_balancing(tmp_path):
    from apps.segmentation.models.segmenter import class_weights
    from datamodules.segmentation.info import SegmentationInfo

    palette = ((0, 0, 0),) * 4
    info = SegmentationInfo(tuple("abcd"), palette, pixels=(60, 30, 10, 0), present=(100, 100, 50, 0))
    # shares .6, .3, .2 and none: their median is .3
    assert class_weights("median", info) == pytest.approx((0.5, 1.0, 1.5, 1.0))
    assert class_weights("sqrt", info) == pytest.approx((0.5**0.5, 1.0, 1.5**0.5, 1.0))
    assert class_weights("none", info) == ()
    with pytest.raises(ConfigError, match="did not count"):
        class_weights("median", SegmentationInfo(tuple("abcd"), palette))


def test_segments_of_targets_are_those_of_the_data_without_crowds():
    from apps.segmentation.targets import targets_of

    mask = torch.tensor([[[0, 0, 1, 255]]])
    semantic = targets_of({"mask": mask}).segments[0]
    assert semantic.classes.tolist() == [0, 1]
    assert semantic.masks.int().tolist() == [[[1, 1, 0, 0]], [[0, 0, 1, 0]]]
    batch = {
        "mask": mask,
        "segments": torch.tensor([[[0, 1, 2, -1]]], dtype=torch.int32),
        "segment_classes": torch.tensor([[0, 0, 1, 1, -1]]),
        "segment_crowd": torch.tensor([[False, True, False, False, False]]),
    }
    found = targets_of(batch).segments[0]
    # the crowd is left out, and so is a segment that no pixel of the crop shows
    assert found.classes.tolist() == [0, 1] and found.masks.int().tolist() == [[[1, 0, 0, 0]], [[0, 0, 1, 0]]]
    assert targets_of(batch).labels.tolist() == [[[0, 255, 1, 255]]]  # nor does a classifier of pixels learn from it
    assert mask.tolist() == [[[0, 0, 1, 255]]]


@pytest.mark.parametrize("scales", [[1.0], [0.75, 1.0]])
def test_segments_are_found_at_the_wanted_side_and_given_at_the_images_own(tmp_path, scales):
    info = small(tmp_path, **OBJECTS).data.build(seed=0)
    info.setup()
    seen = []

    def found(**words):
        torch.manual_seed(0)
        module = SegmentationModule(small(tmp_path, **OBJECTS, **words), info.info).eval()
        module.finds_instances = True
        module.model.backbone.register_forward_hook(lambda _, images, __: seen.append(tuple(images[0].shape[2:])))
        batch = {
            **module.example_batch(2),
            "image": torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)),
        }
        batch |= {"mask": torch.zeros(2, 32, 48).long(), "segments": torch.zeros(2, 32, 48).int()}
        batch["size"] = torch.tensor([[32, 48]] * 2)
        with torch.no_grad():
            return module.predict_batch(batch)

    own = found(**{"inference.scales": scales})
    assert set(seen) == {(32, 48)} if scales == [1.0] else (32, 48) in seen
    seen.clear()
    large = found(**{"inference.scales": scales, "inference.shorter_side": 64})
    assert set(seen) == {(64, 96)} if scales == [1.0] else (64, 96) in seen
    assert large.labels.shape == large.segments.shape == own.segments.shape == (2, 32, 48)
    assert not torch.equal(own.detections.areas, large.detections.areas)
    assert large.detections.areas.max() <= 32 * 48
