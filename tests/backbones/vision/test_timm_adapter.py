"""Models of timm behind the contract: equal to timm where it runs by itself, and what it leaves to others."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pytest
import torch
from torch import Tensor, nn

timm = pytest.importorskip("timm", reason="needs the extra 'vision'")

from backbones.vision import create_backbone, create_classifier  # noqa: E402
from backbones.vision.variants import VARIANTS  # noqa: E402
from backbones.vision.weights import load_tensors  # noqa: E402
from graftwork.errors import ConfigError, MissingPackageError, ShapeError  # noqa: E402

FAMILIES = [
    "swin_tiny",
    pytest.param("swinv2_tiny", marks=pytest.mark.slow),
    pytest.param("maxvit_tiny", marks=pytest.mark.slow),
    "maxvit_pico",
    "tiny_vit_5m",
    "shvit_s1",
    pytest.param("davit_tiny", marks=pytest.mark.slow),
    "timm:test_vit",
    "timm:test_convnext",
    "timm:test_vit_relpos",
    "timm:test_efficientnet",
    pytest.param("timm:crossvit_tiny_240", marks=pytest.mark.slow),
    pytest.param("timm:tnt_s_patch16_224", marks=pytest.mark.slow),
    pytest.param("timm:convit_tiny", marks=pytest.mark.slow),
    pytest.param("timm:efficientformer_l1", marks=pytest.mark.slow),
    pytest.param("timm:deit_tiny_distilled_patch16_224", marks=pytest.mark.slow),
    pytest.param("timm:levit_128s", marks=pytest.mark.slow),
    pytest.param("timm:efficientvim_m1", marks=pytest.mark.slow),
    pytest.param("timm:legacy_xception", marks=pytest.mark.slow),
]
QUICK = "timm:test_resnet"


def bare(name: str, classes: int = 5) -> nn.Module:
    """timm's own model with random weights in every place, those that begin at zero included."""
    model = timm.create_model(VARIANTS[name].values["model"] if name in VARIANTS else name[5:], num_classes=classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
                module.running_mean.normal_(std=0.1, generator=generator)
    return model.eval()


def native(model: nn.Module) -> Tensor:
    """Images of the size that a model was made for."""
    _, height, width = model.pretrained_cfg["input_size"]
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_logits_equal_timm_at_its_own_size(name):
    model = bare(name)
    images = native(model)
    classifier = create_classifier(name, classes=5).eval()
    outcome = load_tensors(classifier, model.state_dict(), "timm")
    assert not outcome.left and len(outcome.loaded) == len(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), model(images), rtol=1e-5, atol=1e-5)
    if not classifier.backbone.channels or classifier.backbone.sizes.surplus:
        return  # no maps, or more of them than timm gives
    backbone = create_backbone(name).eval()
    load_tensors(backbone, model.state_dict(), "timm")
    with torch.no_grad():
        maps = backbone(images)
        theirs = model.forward_intermediates(images, intermediates_only=True)
    theirs = [theirs[number] for number in backbone._taken]
    for ours, expected in zip(maps, theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_the_table_are_those_measured(shared):
    table = json.loads((shared / "goldens/backbones/timm_features.json").read_text())["models"]
    rows = {name: row for name, row in VARIANTS.items() if "model" in row.values}
    assert len(rows) == 24
    for name, row in rows.items():
        fact = table[row.values["model"].partition(".")[0]]
        assert fact["family"] == ("swinv2" if name.startswith("swinv2") else row.family)
        assert list(row.channels) == fact["features_only"]["channels"][-len(row.channels) :], name
        assert list(row.strides) == fact["features_only"]["reductions"][-len(row.strides) :], name
        assert row.image_size == fact["default_input_size"][1], name
        # where timm counts a head of ImageNet-22K, its columns are the difference
        more = (fact["params"] - row.parameters) / (fact["num_features"] + 1)
        assert more in (0, 21841 - 1000, 21843 - 1000), name
        head = fact["num_features"] * (1000 + more) / 1e9
        assert row.gmacs == pytest.approx(fact[f"gmacs_{row.image_size}"] - head, rel=5e-3), name


@pytest.mark.parametrize("name", ["tiny_vit_5m", "shvit_s1", "timm:test_vit", "timm:test_maxvit", "timm:test_convnext"])
@pytest.mark.parametrize("train", [False, True])
def test_any_size_gives_maps_as_promised(name, train):
    backbone = create_backbone(name).train(train)
    for height, width in ((64, 64), (65, 47), (33, 120)):
        maps = backbone(torch.randn(2, 3, height, width))
        for level, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
            assert level.shape == (2, channels, -(-height // stride), -(-width // stride))


def test_maxvit_leaves_out_its_stem():
    backbone = create_backbone("timm:test_maxvit")
    assert backbone.strides == (4, 8, 16, 32)
    assert list(backbone._taken) == [1, 2, 3, 4]


def test_models_of_one_resolution_give_their_last_three_blocks_or_any():
    backbone = create_backbone("timm:test_vit")
    depth = len(backbone.level_channels)
    assert backbone.out_indices == tuple(range(depth - 3, depth))
    assert backbone.strides == (16, 16, 16)
    first = create_backbone("timm:test_vit", out_indices=(0, -1))
    assert first.out_indices == (0, depth - 1)


def test_layers_after_the_last_level_are_not_there():
    whole, part = create_backbone(QUICK), create_backbone(QUICK, out_indices=(1, 0)).eval()
    names = {name for name, _ in part.named_parameters()}
    assert names < {name for name, _ in whole.named_parameters()}
    assert not any("layer2" in name or "fc" in name for name in names)
    maps = part(torch.randn(1, 3, 64, 64))
    assert [level.shape[1] for level in maps] == list(part.channels)
    assert part.strides == (4, 2)


def test_trained_parameters_all_matter():
    for name in ("timm:test_vit", QUICK, "timm:test_efficientnet", "timm:test_byobnet"):
        backbone = create_backbone(name).train()
        size = backbone.sizes.only or (96, 96)
        torch.stack([level.mean() for level in backbone(torch.randn(2, 3, *size))]).sum().backward()
        missing = [key for key, value in backbone.named_parameters() if value.requires_grad and value.grad is None]
        assert not missing


@pytest.mark.parametrize("name", ["timm:test_vit", "tiny_vit_5m", QUICK])
def test_checkpointing_changes_nothing_but_memory(name):
    results = []
    torch.manual_seed(0)
    start = create_backbone(name).state_dict()
    for checkpointing in (False, True):
        backbone = create_backbone(name, checkpointing=checkpointing).train()
        backbone.load_state_dict(start)
        torch.manual_seed(1)
        maps = backbone(torch.randn(2, 3, 64, 64))
        torch.stack([(level - 1).square().mean() for level in maps]).sum().backward()
        results.append({**backbone.state_dict(), **{f"{k}.grad": p.grad for k, p in backbone.named_parameters()}})
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, msg=key)


def test_drop_path_is_what_was_asked_for_and_zero_else():
    rates = [
        [m.drop_prob for m in create_backbone("swin_tiny", drop_path=rate).modules() if type(m).__name__ == "DropPath"]
        for rate in (0.0, 0.2)
    ]
    assert not any(rates[0])
    assert max(rates[1]) == pytest.approx(0.2) and len(rates[1]) == 2 * 11
    with pytest.raises(ConfigError, match=r"drop_path=0.1 is not possible: timm's shvit_s1.* has no stochastic depth"):
        create_backbone("shvit_s1", drop_path=0.1)


def test_depth_counts_blocks():
    backbone = create_backbone("swin_tiny", output_norms=True)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers["trunk.patch_embed.proj.weight"] == 0
    assert layers["trunk.layers.0.blocks.0.attn.qkv.weight"] == 1
    assert layers["trunk.layers.1.downsample.reduction.weight"] == layers["trunk.layers.1.blocks.0.norm1.bias"] == 3
    assert layers["trunk.layers.3.blocks.1.mlp.fc2.weight"] == 12
    assert layers["output_norms.0.weight"] == 13 == backbone.depth - 1
    assert [backbone.stage_of(f"trunk.layers.{stage}.blocks.0") for stage in range(4)] == [1, 2, 3, 4]
    assert backbone.stage_of("trunk.patch_embed") == 0
    assert backbone.stage_of("trunk") == backbone.stage_of("trunk.layers") == -1
    assert backbone.stage_of("trunk.layers.0.blocks.1.drop_path1") == 1


@pytest.mark.parametrize("name", ["timm:poolformer_s12", "timm:rdnet_tiny"])
def test_depth_of_models_that_timm_does_not_group(name):
    with torch.device("meta"):
        backbone = create_backbone(name)
    names = [name for name, _ in backbone.named_parameters()]
    layers, stages = [{number(name) for name in names} for number in (backbone.layer_of, backbone.stage_of)]
    assert layers == set(range(backbone.depth - 1)) and stages == set(range(len(stages)))
    assert backbone.layer_of(names[0]) == backbone.stage_of(names[0]) == 0


def test_frozen_stages_keep_their_statistics():
    backbone = create_backbone("shvit_s1", freeze=2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 128, 128))
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(("trunk.stages.1.", "trunk.stages.2.")) for name in moved)
    trained = {backbone.stage_of(name) for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {2, 3}


def test_other_channels_of_images():
    for channels in (1, 4):
        backbone = create_backbone(QUICK, in_channels=channels).eval()
        assert backbone(torch.randn(1, channels, 40, 40))[0].shape[2:] == (20, 20)
        with pytest.raises(ShapeError, match=rf"expected \[batch, {channels}, height, width\]"):
            backbone(torch.randn(1, 3, 40, 40))


def test_normalisation_is_that_of_the_weights():
    assert create_backbone(QUICK).mean == create_backbone(QUICK).std == (0.5, 0.5, 0.5)
    backbone = create_backbone("shvit_s1")
    assert (backbone.mean, backbone.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_copies_and_pickles_compute_the_same():
    backbone = create_backbone(QUICK, checkpointing=True, output_norms=True).eval()
    images = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        for ours, theirs in zip(twin(images), backbone(images), strict=True):
            assert torch.equal(ours, theirs)


def test_unknown_models_and_impossible_options_name_the_mend():
    with pytest.raises(ConfigError, match=r"unknown model of timm 'resnet5'; did you mean resnet50"):
        create_backbone("timm:resnet5")
    with pytest.raises(ConfigError, match=r"unknown weights of timm's resnet18 'a9_in1k'; did you mean a"):
        create_backbone("timm:resnet18.a9_in1k")
    with pytest.raises(ConfigError, match=r"window=8 is not possible .*Swin, MaxViT, TinyViT and DaViT take another"):
        create_backbone(QUICK, window=8)
    with pytest.raises(ConfigError, match=r"image_size=\(64, 64\) is not possible: swin_tiny.* is not bound to a size"):
        create_backbone("swin_tiny", image_size=64)
    with pytest.raises(ConfigError, match=r"image_size=16 must be a side"):
        create_backbone("timm:convit_tiny", image_size=16)
    with pytest.raises(ConfigError, match=r"must be different levels from 0 to 4"):
        create_backbone(QUICK, out_indices=(5,))


def test_the_unchanged_model_of_timm_is_at_hand_for_comparison():
    backbone = create_backbone("timm:test_maxvit")
    maps = backbone.bare_model(160, 160)(torch.randn(1, 3, 160, 160))
    assert [level.shape[1] for level in maps] == list(backbone.channels)
    with pytest.raises(
        ConfigError, match=r"timm's test_maxvit alone does not take 65 x 47 pixels. Compare at 160 x 160"
    ):
        backbone.bare_model(65, 47)


def test_without_timm_one_sentence_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("backbones.vision.timm_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError) as caught:
        create_backbone("swin_tiny")
    assert str(caught.value) == "swin_tiny needs the package 'timm'. Install it with: pip install 'graftwork[vision]'"
