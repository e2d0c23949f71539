"""The models: shapes, baselines, puzzles, and options that do not fit each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.classification.config import ClassificationConfig
from apps.classification.models.config import MODELS, ClassifierConfig, LinearConfig, MajorityConfig, PositionsConfig
from apps.classification.models.positions import Positions, inverse, orders, shuffled
from apps.classification.pretraining import _placed
from apps.core.cli.resolve import resolve
from backbones.vision.create import assemble_classifier
from datamodules.classification.info import ClassificationInfo
from graftwork.errors import ConfigError, ShapeError
from tests.backbones.vision.toy import NAME, ToyConfig


def info(size: int = 64, channels: int = 3, classes: int = 5) -> ClassificationInfo:
    names = tuple(f"class {number}" for number in range(classes))
    return ClassificationInfo(
        size, channels, names, (3, 1) + (2,) * (classes - 2), (0.0,) * channels, (1.0,) * channels
    )


@pytest.mark.parametrize("config", [ClassifierConfig(backbone=ToyConfig()), LinearConfig(), MajorityConfig()])
@pytest.mark.parametrize("channels", [1, 3])
def test_classifiers_give_logits(config, channels):
    model = config.build(info(channels=channels)).eval()
    assert model(torch.randn(2, channels, 64, 64)).shape == (2, 5)
    assert model(torch.randn(0, channels, 64, 64)).shape == (0, 5)


def test_linear_is_logistic_regression_on_shrunk_pixels():
    model = LinearConfig(side=2).build(info(size=4, channels=1, classes=2))
    assert not model(torch.randn(1, 1, 4, 4)).any()
    with torch.no_grad():
        model.linear.weight[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    image = torch.arange(16.0).reshape(1, 1, 4, 4)  # means of the quarters: 2.5, 4.5, 10.5, 12.5
    assert model(image).tolist() == [[0.0, 2.5 + 9.0 + 31.5 + 50.0]]


def test_linear_takes_larger_images_but_no_smaller_ones():
    model = LinearConfig(side=16).build(info(size=64))
    assert model(torch.randn(1, 3, 40, 70)).shape == (1, 5)
    for shape in ((1, 3, 15, 64), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(ShapeError, match=r"at least 16, got"):
            model(torch.randn(shape))


def test_majority_gives_the_frequencies_of_training():
    model = MajorityConfig().build(info(classes=2))
    probabilities = model(torch.randn(3, 3, 8, 8)).softmax(1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.75, 0.25]]).expand(3, -1))
    assert not list(model.parameters())


# -- positions --------------------------------------------------------------------------------------------------------


def test_shuffling_by_hand():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = shuffled(image, torch.tensor([[3, 0, 1, 2]]), patch=2)
    assert found[0, 0].tolist() == [[10, 11, 0, 1], [14, 15, 4, 5], [2, 3, 8, 9], [6, 7, 12, 13]]


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.integers(0, 2**31))
def test_the_inverse_order_gives_the_image_back(batch, patch, side, seed):
    images = torch.randn(batch, 2, side * patch, side * patch, generator=torch.Generator().manual_seed(seed))
    order = orders(torch.arange(batch), side**2, seed, epoch=3)
    mixed = shuffled(images, order, patch)
    assert torch.equal(shuffled(mixed, inverse(order), patch), images)
    assert torch.equal(_placed(mixed, order, patch), images)


def test_patches_put_nowhere_stay_dark():
    images = torch.arange(4.0).reshape(1, 1, 2, 2)
    found = _placed(images, torch.tensor([[0, 0, 3, 3]]), 1)
    assert found.flatten().tolist() == [1.0, -10.0, -10.0, 3.0]


def test_orders_are_permutations_that_depend_on_their_arguments_alone():
    indices = torch.tensor([5, 0, 123456789])
    first = orders(indices, 49, seed=7, epoch=2)
    assert torch.equal(first.sort(1).values, torch.arange(49).expand(3, -1))
    assert torch.equal(orders(indices[:1], 49, 7, 2)[0], first[0])
    others = [orders(indices, 49, 8, 2), orders(indices, 49, 7, 3), orders(indices + 1, 49, 7, 2)]
    assert not any(torch.equal(first, other) for other in others)
    assert len({tuple(row) for row in orders(torch.arange(300), 16, 0, 0).tolist()}) == 300


def test_every_position_is_equally_likely():
    counts = torch.zeros(9, 9)
    found = orders(torch.arange(3000), 9, 0, 0)
    for place in range(9):
        counts[place] = found[:, place].bincount(minlength=9)
    assert (counts - 3000 / 9).abs().max() < 5 * (3000 / 9) ** 0.5


def test_the_head_reads_the_cells_of_each_patch():
    model = PositionsConfig(backbone=ToyConfig(), patch=32).build(info(size=64)).eval()
    assert (model.side, model.patch, model.patches) == (2, 32, 4)
    features = torch.zeros(1, 16, 4, 4)
    features[:, :, :2, 2:] = torch.randn(16, 1, 1)  # the patch at the top right
    logits = model.head(features)
    assert logits.shape == (1, 4, 4)
    assert not torch.equal(logits[0, 1], logits[0, 0]) and torch.equal(logits[0, 2], logits[0, 0])


def test_positions_refuses_images_of_another_size():
    model = PositionsConfig(backbone=ToyConfig()).build(info(size=64))
    assert model.patch == 16 and model(torch.randn(2, 3, 64, 64)).shape == (2, 16, 16)
    with pytest.raises(ShapeError, match=r"expected \[batch, channels, 64, 64\] \(4 patches of 16 pixels"):
        model(torch.randn(2, 3, 80, 64))


def test_weights_of_positions_start_a_classifier(tmp_path):
    """The trunk and its last norm are taken over, the head of positions never is, even with as many classes."""
    pretrained = PositionsConfig(backbone=ToyConfig(), patch=32).build(info(size=64))
    with torch.no_grad():
        pretrained.head.norm.weight.fill_(3.0)
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {f"model.{key}": value for key, value in pretrained.state_dict().items()}}, path)
    torch.manual_seed(1)
    fresh = assemble_classifier(ToyConfig(), 4)
    torch.manual_seed(1)
    model = assemble_classifier(ToyConfig(weights=str(path)), 4)
    wanted, found = pretrained.state_dict(), model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in found if key.startswith("backbone."))
    assert torch.equal(found["head.norm.weight"], wanted["head.norm.weight"])
    assert torch.equal(found["head.linear.weight"], fresh.state_dict()["head.linear.weight"])
    assert not torch.equal(found["head.linear.weight"], wanted["head.position.weight"])


# -- options ----------------------------------------------------------------------------------------------------------

BASE = {"data.name": "generated", "model.backbone": NAME, "data.image_size": 64}
CLASHES = [
    ({"data.image_size": 16}, "data.image_size=16 is smaller than the 32 pixels"),
    ({"model.name": "positions", "data.image_size": 16}, "try --data.image_size 32"),
    ({"model.name": "positions", "model.patch": 24}, "must be a multiple of the backbone's last stride 16"),
    ({"model.name": "positions", "data.image_size": 72}, "data.image_size=72 must be a multiple of model.patch=16"),
    ({"model.name": "positions", "model.patch": 64}, "and at least twice that; try --data.image_size 128"),
    ({"model.name": "positions", "model.patch": -1}, "model.patch=-1 must be 0"),
    ({"model.name": "positions", "mix.mixup": 0.8}, "positions has no classes; leave mix and distill off"),
    ({"model.name": "positions", "checkpoint.monitor": "val/top1"}, "try --checkpoint.monitor val/position_accuracy"),
    ({"checkpoint.monitor": "val/position_accuracy"}, "not measured by model.name=classifier"),
    ({"model.name": "linear", "model.side": 0, "model.backbone": None}, "model.side=0 must be at least 1"),
    ({"distill.store": "x", "mix.cutmix": 1.0}, "distill.store=x holds outputs for images that are not mixed"),
    ({"distill.store": "x", "model.name": "majority", "model.backbone": None}, "majority has nothing to learn"),
    ({"distill.weight": 2.0}, "distill.weight=2.0 must be a share"),
    ({"distill.temperature": 0}, "distill.temperature=0.0 must be above 0"),
    ({"smoothing": 1.0}, "smoothing=1.0 must be at least 0 and below 1"),
    ({"top": 0}, "top=0 must be at least 1"),
    ({"mix.mixup": -1}, "mix.mixup=-1.0 must be 0"),
    ({"mix.switch": 2}, "mix.switch=2.0 must be a share"),
    ({"data.name": "folder", "data.labels": False}, "data.labels=false leaves nothing to classify"),
    ({"data.augment.flip": 2}, "data.augment.flip=2.0 must be a share"),
    ({"model.backbone.drop_path": 1.0}, "model.backbone.drop_path=1.0"),
]


@pytest.mark.parametrize(("changes", "message"), CLASHES, ids=[str(changes) for changes, _ in CLASHES])
def test_options_that_clash_are_named(changes, message):
    words = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        resolve(ClassificationConfig, [], words)
    assert message in str(caught.value)


def test_positions_bring_their_own_monitor():
    found = resolve(ClassificationConfig, [], {**BASE, "model.name": "positions"})
    assert (found.checkpoint.monitor, found.checkpoint.mode) == ("val/position_accuracy", "max")
    assert resolve(ClassificationConfig, [], BASE).checkpoint.monitor == ""
    kept = resolve(ClassificationConfig, [], {**BASE, "model.name": "positions", "checkpoint.monitor": "val/loss"})
    assert kept.checkpoint.monitor == "val/loss" and kept.checkpoint.mode == ""


def test_a_custom_backbone_of_unknown_stride_is_checked_when_it_is_built():
    with pytest.raises(ConfigError, match=r"model\.patch=20 must be a multiple of the backbone's last stride 16"):
        PositionsConfig(backbone=ToyConfig(), patch=20).build(info(size=80))


def test_every_model_is_registered_with_a_description():
    assert MODELS.names() == ["classifier", "linear", "majority", "positions"]
    assert all(MODELS.get(name).__doc__ for name in MODELS.names())
    assert isinstance(PositionsConfig(backbone=ToyConfig()).build(info()), Positions)
