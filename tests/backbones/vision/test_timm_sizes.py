"""What images models of timm take: padding, surplus, one size only, other windows."""

from __future__ import annotations

import pytest
import torch

timm = pytest.importorskip("timm", reason="needs the extra 'vision'")

from backbones.vision import create_backbone, create_classifier  # noqa: E402
from backbones.vision.timm_models import Blueprint  # noqa: E402
from backbones.vision.timm_sizes import Sizes, explore, levels_of  # noqa: E402
from backbones.vision.variants import MORE_TRUNKS  # noqa: E402
from graftwork.errors import ConfigError, ShapeError  # noqa: E402


def found(name: str) -> tuple[Sizes | None, int]:
    blueprint = Blueprint(name)
    sizes, levels = explore(blueprint.outline().eval(), blueprint.native, 3)
    return sizes, len(levels)


def test_padding_goes_to_the_bottom_and_the_right():
    images = torch.ones(1, 1, 33, 64)
    padded = Sizes(multiple=(32, 32)).pad(images)
    assert padded.shape == (1, 1, 64, 64) and padded[:, :, :33].all() and not padded[:, :, 33:].any()
    assert Sizes(multiple=(4, 8)).padded(5, 8) == (8, 8)
    assert Sizes(multiple=(32, 32), surplus=64).padded(32, 33) == (96, 128)
    assert Sizes().pad(images) is images


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("test_resnet", Sizes()),
        ("test_convnext", Sizes(multiple=(32, 32))),
        ("test_vit", Sizes(multiple=(16, 16))),
        ("test_vit_relpos", Sizes(only=(160, 160))),
        pytest.param("inception_v3", Sizes(multiple=(32, 32), surplus=64), marks=pytest.mark.slow),
        pytest.param("crossvit_tiny_240", Sizes(only=(240, 240)), marks=pytest.mark.slow),
        pytest.param("twins_svt_small", Sizes(multiple=(32, 32)), marks=pytest.mark.slow),
    ],
)
def test_sizes_are_found_out_without_running(name, sizes):
    assert found(name)[0] == sizes


def test_a_declared_stride_that_timm_gets_wrong_is_measured():
    outline = Blueprint("tresnet_m").outline().eval()
    assert levels_of(outline)[0].stride == 2
    assert explore(outline, (224, 224), 3)[1][0].stride == 4


def test_families_with_known_needs():
    assert create_backbone("swin_tiny").sizes == Sizes(multiple=(4, 4))
    assert create_backbone("maxvit_pico").sizes == Sizes(multiple=(256, 256))
    assert create_backbone("maxvit_pico", window=2).sizes == Sizes(multiple=(64, 64))
    assert create_backbone("tiny_vit_5m").sizes == create_backbone("shvit_s1").sizes == Sizes()


def test_padding_changes_nothing_where_timm_pads_the_same():
    backbone = create_backbone("timm:test_convnext").eval()
    images = torch.randn(1, 3, 50, 70)
    whole = torch.nn.functional.pad(images, (0, 26, 0, 14))
    with torch.no_grad():
        for ours, theirs in zip(backbone(images), backbone.trunk.forward_intermediates(whole)[1], strict=True):
            assert torch.equal(ours, theirs[:, :, : ours.shape[2], : ours.shape[3]])


def test_models_bound_to_a_size_say_so_and_can_be_built_for_another():
    name = "timm:test_vit_relpos"
    backbone = create_backbone(name).eval()
    assert backbone(torch.randn(1, 3, 160, 160))[0].shape[2:] == (10, 10)
    with pytest.raises(ShapeError, match=r"test_vit_relpos: expected 160 x 160 pixels.*got 100 x 160.*\(112, 160\)"):
        backbone(torch.randn(1, 3, 100, 160))
    other = create_backbone(name, image_size=(112, 160)).eval()
    assert other(torch.randn(1, 3, 112, 160))[0].shape[2:] == (7, 10)
    logits = create_classifier(name, classes=3, image_size=(112, 160)).eval()(torch.randn(1, 3, 112, 160))
    assert logits.shape == (1, 3)
    with pytest.raises(ConfigError, match=r"image_size=\(100, 160\) does not suit timm's test_vit_relpos.*of 16"):
        create_backbone(name, image_size=(100, 160))


@pytest.mark.slow
def test_a_model_without_regular_maps_only_classifies():
    with pytest.raises(ConfigError, match=r"timm:crossvit_tiny_240 gives no maps .* Take create_classifier"):
        create_backbone("timm:crossvit_tiny_240")
    classifier = create_classifier("timm:crossvit_tiny_240", classes=3).eval()
    with pytest.raises(ShapeError, match=r"expected 240 x 240 pixels"):
        classifier(torch.randn(1, 3, 224, 224))
    with pytest.raises(ConfigError, match=r"checkpointing=true is not possible"):
        create_classifier("timm:crossvit_tiny_240", checkpointing=True)


@pytest.mark.parametrize(("name", "window"), [("swin_tiny", 4), ("tiny_vit_5m", 4), ("maxvit_pico", 2)])
def test_another_window_runs_and_keeps_the_levels(name, window):
    backbone = create_backbone(name, window=window).eval()
    usual = create_backbone(name)
    assert backbone.channels == usual.channels
    for level, stride in zip(backbone(torch.randn(1, 3, 70, 50)), backbone.strides, strict=True):
        assert level.shape[2:] == (-(-70 // stride), -(-50 // stride))
    sides = {
        name: tuple(p.shape) for name, p in backbone.named_parameters() if "relative_position" in name or "bias" in name
    }
    assert sides != {name: tuple(p.shape) for name, p in usual.named_parameters() if name in sides}


def test_swin_v2_keeps_measuring_distances_by_its_old_window():
    usual, larger = (Blueprint("swinv2_tiny_window8_256", window=w).outline() for w in (0, 16))
    attention = larger.layers[0].blocks[0].attn
    assert attention.window_size == (16, 16) and attention.pretrained_window_size == (8, 8)
    assert larger.layers[3].blocks[0].attn.window_size == (16, 16)
    assert {n: p.shape for n, p in usual.named_parameters()} == {n: p.shape for n, p in larger.named_parameters()}


def test_further_trunks_exist_in_timm():
    assert MORE_TRUNKS
    for name, sentence in MORE_TRUNKS.items():
        assert timm.is_model(name.removeprefix("timm:")) and sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_TRUNKS)
def test_further_trunks_keep_what_is_said_of_them(name):
    sentence = MORE_TRUNKS[name]
    if "classifies only" in sentence:
        assert create_classifier(name, classes=3).backbone.channels == ()
        return
    backbone = create_backbone(name).eval()
    assert ("any size" in sentence) == (backbone.sizes.only is None)
    assert f"strides {', '.join(map(str, backbone.strides))}" in sentence or f"stride {backbone.strides[0]}" in sentence
    height, width = backbone.sizes.only or (65, 47)
    assert backbone.sizes.only is None or f"{height} x {width}" in sentence
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, height, width))
    for level, stride in zip(maps, backbone.strides, strict=True):
        assert level.shape[2:] == (-(-height // stride), -(-width // stride))
