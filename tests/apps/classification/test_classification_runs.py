"""Whole runs: bit for bit the same after a break, with workers, from a teacher, from pretraining."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
import torch

from apps.classification.config import TASK
from apps.classification.metrics import ClassificationMetrics
from apps.classification.models.config import PositionsConfig
from apps.classification.module import ClassificationModule, create_module
from apps.classification.teaching import teach
from apps.core.checkpoints.read import WeightsMeta
from apps.core.inference.load import load
from apps.core.run.evaluate import evaluate
from apps.core.task import VerbOptions
from datamodules.classification.info import ClassificationInfo
from graftwork.errors import ConfigError, DataError, WeightsError
from tests.apps.classification.runs import LINEAR, results, run, small, weights
from tests.resume.runs import assert_same_run

EVERYTHING = {
    "data.augment.policy": "rand",
    "data.augment.erase": 0.5,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "smoothing": 0.1,
    "checkpoint.every_n_steps": 2,
}
POSITIONS = {"model.name": "positions", "data.image_size": 64, "trainer.max_epochs": 3}
FROZEN = "custom:tests.apps.classification.frozen_toy.FrozenToyConfig"


class PowerCutError(Exception):
    """Ends a run as abruptly as an exception can."""


def cut(
    folder: Path, batches: int, monkeypatch: pytest.MonkeyPatch, module: type = ClassificationModule, **changes
) -> None:
    """Fit until the loss of a batch, then end as if the power had gone."""
    loss, calls = module.training_loss, []

    def losing(self, batch):
        calls.append(1)
        if len(calls) > batches:
            raise PowerCutError
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "training_loss", losing)
        with pytest.raises(PowerCutError):
            run(folder, **changes)


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder, **EVERYTHING) == 0
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [3, 8])
def test_a_broken_run_ends_as_an_unbroken_one(whole, tmp_path, monkeypatch, workers, batches):
    words = {**EVERYTHING, "data.num_workers": workers}
    cut(tmp_path / "run", batches, monkeypatch, **words)
    assert run(tmp_path / "run", resume=True, **words) == 0
    assert_same_run(whole, tmp_path / "run")


def test_another_seed_is_another_run(whole, tmp_path):
    assert run(tmp_path / "run", **EVERYTHING, seed=1) == 0
    ours, other = weights(whole), weights(tmp_path / "run")
    assert not all(torch.equal(ours[name], other[name]) for name in ours)


def test_scores_do_not_depend_on_the_batch_size(whole, tmp_path):
    found = []
    for size in (5, 60):
        config = small(
            tmp_path / str(size), **EVERYTHING, **{"data.eval_batch_size": size, "run.dir": str(tmp_path / f"{size}")}
        )
        assert evaluate(TASK, config, VerbOptions(weights=str(whole), argv=("test",)), "test") == 0
        found.append({name: row["value"] for name, row in results(tmp_path / str(size)).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx({name: row["value"] for name, row in results(whole).items()}, rel=1e-6)


def test_a_run_learns_and_stands_beside_its_baseline(tmp_path):
    assert run(tmp_path / "run", **{**LINEAR, "optim.lr": 5e-4, "trainer.max_epochs": 4}) == 0
    rows = results(tmp_path / "run")
    assert rows["top1"]["value"] > rows["top1"]["baseline"] == pytest.approx(25.0)
    assert rows["loss"]["value"] < rows["loss"]["baseline"]
    losses = column(tmp_path / "run", "train/loss")
    assert losses[-1] < losses[0]


def test_majority_scores_as_the_baseline(tmp_path):
    words = {"model.name": "majority", "model.backbone": None, "model.backbone.drop_path": None}
    assert run(tmp_path / "run", **words) == 0
    rows = results(tmp_path / "run")
    for name in ("top1", "mean_class_accuracy", "loss"):
        assert rows[name]["value"] == pytest.approx(rows[name]["baseline"], rel=1e-5), name
    assert rows["ece"]["value"] == pytest.approx(0, abs=1e-4)


def test_corrupt_files_are_listed_in_the_run(tmp_path):
    from datamodules.classification.generated import write_generated

    config = small(tmp_path, **{"data.root": str(tmp_path / "data")})
    shapes = write_generated(config.data)
    victim = sorted(shapes.rglob("*.png"))[3]
    victim.write_bytes(b"")
    words = {
        **LINEAR,
        "data.name": "folder",
        "data.root": str(shapes),
        "data.image_size": 32,
        "data.images": None,
        "data.side": None,
    }
    with pytest.raises(DataError, match="is an empty file"):
        run(tmp_path / "stops", **words)
    assert run(tmp_path / "skips", **words, **{"data.on_corrupt": "skip"}) == 0
    assert str(victim) in (tmp_path / "skips/notes.json").read_text()


# -- from other weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    assert (
        run(folder, **{"model.name": "positions", "data.image_size": 64, "trainer.max_epochs": 3, "run.pictures": 2})
        == 0
    )
    return folder


def test_pretraining_on_positions_learns(pretrained):
    rows = results(pretrained)
    assert rows["position_accuracy"]["baseline"] == pytest.approx(100 / 16)
    losses = column(pretrained, "train/loss")
    assert losses[-1] < losses[0] < 3.0
    assert len(list((pretrained / "media").glob("*.png"))) == 6


def test_broken_pretraining_ends_as_an_unbroken_one(pretrained, tmp_path, monkeypatch):
    from apps.classification.pretraining import PositionsModule

    words = {**POSITIONS, "checkpoint.every_n_steps": 2}
    cut(tmp_path / "run", 7, monkeypatch, PositionsModule, **words)
    assert run(tmp_path / "run", resume=True, **words) == 0
    ours, other = weights(pretrained), weights(tmp_path / "run")
    assert all(torch.equal(ours[name], other[name]) for name in ours)


def test_a_classifier_starts_from_pretraining_and_then_needs_it_no_more(pretrained, tmp_path, caplog):
    path = tmp_path / "pretrained.ckpt"
    path.write_bytes((pretrained / "checkpoints/best.ckpt").read_bytes())
    words = {"model.backbone.weights": str(path), "data.image_size": 64, "optim.lr": 1e-9, "trainer.max_epochs": 1}
    with caplog.at_level(logging.INFO, "graftwork.backbones"):
        assert run(tmp_path / "tuned", **words) == 0
    assert "as initialised: head.linear.weight, head.linear.bias" in caplog.text
    started, tuned = weights(pretrained, "best"), weights(tmp_path / "tuned")
    shared = [
        name for name in tuned if name.startswith("model.backbone.") and "running" not in name and "num_b" not in name
    ]
    assert shared and all(torch.allclose(started[name], tuned[name], atol=1e-6) for name in shared)
    path.unlink()
    guess = load("classification", tmp_path / "tuned")(torch.rand(20, 20, 3).numpy())
    assert guess.name in ("red_circle", "green_square", "blue_cross", "yellow_circle")


def test_another_scale_than_that_of_the_weights_is_said(pretrained, tmp_path, caplog):
    words = {"model.backbone.weights": str(pretrained / "checkpoints/best.ckpt"), "data.image_size": 64}
    words |= {"trainer.max_epochs": 1, "data.mean": "0.5,0.5,0.5", "data.std": "0.5,0.5,0.5"}
    assert run(tmp_path / "run", **words) == 0
    assert "expect --data.mean 0.485,0.456,0.406 --data.std 0.229,0.224,0.225" in caplog.text


def test_positions_cannot_be_predicted_or_exported(pretrained):
    with pytest.raises(ConfigError, match="Fine-tune it first"):
        load("classification", pretrained)
    config = small(Path("unused"), **POSITIONS)
    module = create_module(config, config.data.build(seed=0).info)
    with pytest.raises(ConfigError, match="Fine-tune it first"):
        module.export_spec()


INFO = ClassificationInfo(32, 3, ("a", "b", "c", "d"), (1,) * 4, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (["a", "b"], "was trained on 2 classes, these data have 4; 'c' is in one list alone"),
        (["a", "b", "c", "x"], "'x' is in one list alone. To start from its backbone: fit --model.backbone.weights"),
        (["b", "a", "c", "d"], "same classes in another order. Order them by a classes.txt"),
    ],
)
def test_weights_of_other_classes_are_refused(trained, message):
    module = ClassificationModule(small(Path("unused")), INFO)
    meta = WeightsMeta(Path("best.ckpt"), info={"classes": trained})
    with pytest.raises(WeightsError) as caught:
        module.load_weights(module.state_dict(), meta)
    assert "best.ckpt: " in str(caught.value) and message in str(caught.value)
    module.load_weights(module.state_dict(), WeightsMeta(Path("x"), info={"classes": list(INFO.classes)}))


def test_official_weights_load_through_the_family_and_need_a_head_that_fits():
    module = ClassificationModule(small(Path("unused")), INFO)
    state = {f"model.{name}": value + 1 for name, value in module.model.state_dict().items()}
    module.load_weights(state, WeightsMeta(Path("file.pth"), official=True))
    assert torch.equal(module.model.head.linear.weight, state["model.head.linear.weight"])
    state["model.head.linear.weight"] = torch.zeros(1000, 16)
    with pytest.raises(WeightsError, match="has no head for the 4 classes of these data"):
        module.load_weights(state, WeightsMeta(Path("file.pth"), official=True))


# -- from a teacher ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory, whole) -> Path:
    folder = tmp_path_factory.mktemp("store")
    list(teach(small(folder / "unused"), str(whole), folder / "store", epochs=2, top=4))
    return folder / "store"


def test_a_student_learns_from_a_store_and_goes_on_with_it(store, tmp_path, monkeypatch):
    words = {"distill.store": str(store), "trainer.max_epochs": 3, "checkpoint.every_n_steps": 2}
    assert run(tmp_path / "whole", **words) == 0
    for name in ("train/teacher_loss", "train/labels_loss", "train/teacher_top1", "train/agreement"):
        assert len(column(tmp_path / "whole", name)) == 3, name
    assert column(tmp_path / "whole", "train/loss") == column(tmp_path / "whole", "train/teacher_loss")
    cut(tmp_path / "cut", 12, monkeypatch, **words)
    assert run(tmp_path / "cut", resume=True, **words) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_in_any_epoch(store, whole, tmp_path, workers):
    """Five epochs over two stored ones: the images have to come again together with what was said of them."""
    words = {"distill.store": str(store), "optim.lr": 1e-12, "trainer.max_epochs": 5, "data.num_workers": workers}
    # running statistics, as the teacher in evaluation had them
    words |= {"model.backbone": FROZEN, "model.backbone.drop_path": 0.0}
    assert run(tmp_path / "run", weights=str(whole), **words) == 0
    assert column(tmp_path / "run", "train/teacher_loss") == pytest.approx([0.0] * 5, abs=1e-4)
    assert column(tmp_path / "run", "train/agreement") == [100.0] * 5


def test_weight_mixes_both_losses(store, tmp_path):
    assert run(tmp_path / "run", **{"distill.store": str(store), "distill.weight": 0.25, "trainer.max_epochs": 1}) == 0
    both, teacher, labels = (
        column(tmp_path / "run", f"train/{name}")[0] for name in ("loss", "teacher_loss", "labels_loss")
    )
    assert both == pytest.approx(0.25 * teacher + 0.75 * labels, rel=1e-4)


def test_a_store_for_other_images_is_refused_before_the_first_step(store, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.augment\.flip=0\.5, not 0\.2"):
        run(tmp_path / "run", **{"distill.store": str(store), "data.augment.flip": 0.2})
    with pytest.raises(ConfigError, match="seed=2023, not 1"):
        run(tmp_path / "run2", **{"distill.store": str(store)}, seed=1)
    with pytest.raises(DataError, match="holds no outputs of a teacher"):
        run(tmp_path / "run3", **{"distill.store": str(tmp_path / "nowhere")})
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_a_student_is_used_without_its_store(store, tmp_path):
    moved = tmp_path / "store"
    moved.mkdir()
    for path in store.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert run(tmp_path / "run", **{"distill.store": str(moved), "trainer.max_epochs": 1}) == 0
    for path in moved.iterdir():
        path.unlink()
    assert load("classification", tmp_path / "run").module.info.classes


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_activation_maps_speak_for_a_class():
    config = small(Path("unused"), **{"data.image_size": 64})
    module = ClassificationModule(config, INFO).eval()
    cells, name = module.activation(torch.randn(3, 64, 64))
    assert cells.shape == (4, 4) and cells.min() >= 0 and name in INFO.classes and not cells.requires_grad
    assert module.activation(torch.randn(3, 32, 32))[0].shape == (2, 2)


def test_activation_is_the_class_activation_map_of_a_linear_head():
    """With the norm taken out, the gradient of a logit is the weight of its class over the number of positions."""
    module = ClassificationModule(small(Path("unused")), INFO).eval()
    module.model.head.norm = torch.nn.Identity()
    image = torch.randn(3, 64, 64)
    cells, name = module.activation(image)
    with torch.no_grad():
        features = module.model.backbone(image[None])[-1][0]
        weight = module.model.head.linear.weight[INFO.classes.index(name)]
    wanted = torch.einsum("c,chw->hw", weight, features).relu() / 16
    torch.testing.assert_close(cells, wanted)


def test_pictures_of_a_sample_and_of_a_split():
    module = ClassificationModule(small(Path("unused"), **{"data.image_size": 64}), INFO)
    batch = module.example_batch(6)
    logits = module.eval().predict_batch(batch)
    sample = {key: value[0] for key, value in batch.items()}
    (picture,) = module.render(sample, module.unbatch(logits, 0))
    assert picture.name == "image_0" and picture.figure.axes and "Image 0 of the split" in picture.caption
    assert module.sample_pictures(sample)[0].name == "activation"
    assert module.summary_pictures() == []
    module.suites["test"] = suite = ClassificationMetrics(INFO)
    suite.update(batch, logits)
    assert module.summary_pictures()[0].name == "confusion"
    scores = module.sample_scores(batch, logits)
    torch.testing.assert_close(scores, 1 - logits.softmax(1)[torch.arange(6), batch["label"]])
    assert not module.training


def test_models_without_a_backbone_have_no_activation():
    module = ClassificationModule(small(Path("unused"), **LINEAR), INFO)
    assert module.activation(torch.randn(3, 32, 32)) is None
    assert not isinstance(module.config.model, PositionsConfig)
