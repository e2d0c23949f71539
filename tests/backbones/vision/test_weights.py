"""Weights into backbones and classifiers: our files, official names, other sizes, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from backbones.vision import create_backbone, create_classifier
from backbones.vision.create import without_initial_weights
from backbones.vision.variants import FAMILIES, Family
from backbones.vision.weights import adapt_channels, load_tensors
from graftwork.errors import WeightsError
from tests.backbones.vision.toy import NAME


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(7)
    return create_classifier(NAME, classes=5)


@pytest.fixture
def file(tmp_path):
    def write(state: dict, **container: dict) -> str:
        path = tmp_path / "weights.pth"
        torch.save(container or state, path)
        return str(path)

    return write


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_classifier_of_ours_is_read_into_both_kinds(trained, file, prefix):
    path = file({prefix + name: value for name, value in trained.state_dict().items()})
    classifier = create_classifier(NAME, classes=5, weights=path)
    backbone = create_backbone(NAME, weights=path)
    for name, value in trained.state_dict().items():
        assert torch.equal(classifier.state_dict()[name], value), name
        if name.startswith("backbone."):
            assert torch.equal(backbone.state_dict()[name.removeprefix("backbone.")], value), name


def test_a_bare_backbone_of_ours_is_read_into_a_classifier(trained, file):
    path = file({}, state_dict=dict(trained.backbone.state_dict()))
    classifier = create_classifier(NAME, classes=3, weights=path)
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(classifier.backbone.state_dict()[name], value), name


def test_official_names_go_through_the_key_map(trained, monkeypatch):
    maps = "tests.backbones.vision.toy:KEYMAPS"
    monkeypatch.setitem(FAMILIES, "toy", Family(title="", config="", source="", keymaps=maps))
    names = {"backbone.": "trunk.", "head.linear.": "fc.", "head.norm.": "last_norm."}
    official = {}
    for name, value in trained.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        official[names[ours] + name.removeprefix(ours)] = value
    classifier = create_classifier(NAME, classes=5)
    outcome = load_tensors(classifier, official, "toy")
    assert not outcome.left and len(outcome.loaded) == len(official)
    assert torch.equal(classifier.head.linear.weight, trained.head.linear.weight)


def test_a_head_of_other_classes_stays_as_initialised(trained, file):
    path = file(trained.state_dict())
    classifier = create_classifier(NAME, classes=9, weights=path)
    assert classifier.head.linear.weight.shape[0] == 9
    assert torch.equal(classifier.head.norm.weight, trained.head.norm.weight)
    assert torch.equal(classifier.backbone.stem[0].weight, trained.backbone.stem[0].weight)


def test_later_stages_and_heads_are_left_out(trained):
    backbone = create_backbone(NAME, out_indices=(0,), output_norms=True)
    outcome = load_tensors(backbone, trained.state_dict())
    assert any(name.startswith("backbone.stages.2") for name in outcome.ignored)
    assert outcome.left == ["backbone.output_norms.0.weight", "backbone.output_norms.0.bias"]


def test_output_norms_belong_to_their_level_whichever_are_returned():
    torch.manual_seed(3)
    dense = create_backbone(NAME, output_norms=True).eval()
    for norm in dense.output_norms.values():
        torch.nn.init.normal_(norm.weight)
    chosen = create_backbone(NAME, output_norms=True, out_indices=(2, 1)).eval()
    assert not load_tensors(chosen, dense.state_dict()).left
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(chosen(images), dense(images)[:0:-1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_other_image_channels_keep_the_response_to_grey(trained):
    grey = torch.rand(1, 1, 40, 40)
    expected = trained.eval()(grey.expand(1, 3, 40, 40))
    for channels in (1, 2, 4, 6):
        classifier = create_classifier(NAME, classes=5, in_channels=channels).eval()
        outcome = load_tensors(classifier, trained.state_dict())
        assert outcome.fitted == ["backbone.stem.0.weight"]
        if channels in (1, 6):  # each colour as often as the others
            torch.testing.assert_close(classifier(grey.expand(1, channels, 40, 40)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 6, 9])
def test_adapted_channels_sum_to_the_same(channels):
    weight = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(adapt_channels(weight, channels).sum(1), weight.sum(1))


@pytest.mark.parametrize(("channels", "share"), [(2, (1.5, 1.5, 0)), (4, (1.5, 0.75, 0.75)), (5, (1.2, 1.2, 0.6))])
def test_adapted_channels_count_colours_as_often_as_they_take_turns(channels, share):
    weight = torch.randn(4, 3, 2, 2)
    expected = torch.einsum("ochw,c->ohw", weight, torch.tensor(share))
    torch.testing.assert_close(adapt_channels(weight, channels).sum(1), expected)


def test_tables_of_other_sizes_are_interpolated_by_the_backbone(trained):
    state = dict(trained.state_dict())
    name = "backbone.stages.0.blocks.0.block.table"
    state[name] = torch.arange(9.0).repeat(8, 1)
    classifier = create_classifier(NAME, classes=5)
    assert load_tensors(classifier, state).fitted == [name]
    assert classifier.state_dict()[name].shape == (8, 5)


def test_weights_of_another_variant_name_what_differs_first(trained):
    state = dict(trained.state_dict())
    state["backbone.stages.1.blocks.0.block.norm.weight"] = torch.ones(24)
    del state["backbone.stages.2.downsample.bias"]
    classifier = create_classifier(NAME, classes=5)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    text = r"first difference: backbone.stages.1.blocks.0.block.norm.weight is \[24\] there, \[12\] in the model"
    with pytest.raises(WeightsError, match=text + "; and 1 more"):
        load_tensors(classifier, state, where="other.pth")
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def test_tensors_without_a_place_are_named(trained):
    state = {**trained.state_dict(), "backbone.stem.7.weight": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"stem.7.weight has no place in the model"):
        load_tensors(create_classifier(NAME, classes=5), state)


def test_missing_files_are_named():
    with pytest.raises(WeightsError, match=r"nowhere.pth: no such weights file"):
        create_backbone(NAME, weights="nowhere.pth")


def test_families_without_downloads_say_where_weights_are():
    with pytest.raises(WeightsError, match=r"no weights that timm could download"):
        create_backbone(NAME, pretrained=True)


def test_initial_weights_can_be_left_out():
    with without_initial_weights():
        create_backbone(NAME, weights="nowhere.pth")
