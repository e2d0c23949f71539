"""The contract over the whole registry: any size, batch, mode and precision gives maps as promised."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from backbones.vision import BACKBONES, create_backbone, create_classifier
from backbones.vision.base import VisionBackbone
from backbones.vision.measure import SMALL, count, parameters
from backbones.vision.variants import FAMILIES, VARIANTS
from graftwork.errors import ConfigError

pytest.importorskip("timm", reason="needs the extra 'vision'")

SIZES = ((64, 64), (65, 47), (224, 224), (360, 480))


def images(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@functools.cache
def small(name: str) -> VisionBackbone:
    torch.manual_seed(0)
    return create_backbone(name).eval()


def check_maps(backbone: VisionBackbone, maps: list[Tensor], inputs: Tensor) -> None:
    batch, _, height, width = inputs.shape
    assert len(maps) == len(backbone.channels) == len(backbone.strides)
    for level, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert level.shape == (batch, channels, -(-height // stride), -(-width // stride))


def test_every_family_has_a_small_variant_here():
    assert {VARIANTS[name].family for name in SMALL} == set(FAMILIES) - {"dinat_isotropic"}
    assert BACKBONES.names() == list(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_of_every_variant(name):
    with torch.device("meta"):
        backbone = create_backbone(name).eval()
        for height, width in ((65, 47), (360, 480)):
            inputs = torch.empty(2, 3, height, width)
            check_maps(backbone, backbone(inputs), inputs)
    assert backbone.channels == VARIANTS[name].channels
    assert backbone.strides == VARIANTS[name].strides


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_every_variant(name):
    assert parameters(name) == VARIANTS[name].parameters


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_products_of_every_variant(name):
    side = VARIANTS[name].image_size
    assert count(name, side, side) / 1e9 == pytest.approx(VARIANTS[name].gmacs, abs=0.00051)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SMALL)
def test_evaluation_at_every_size(name, size):
    inputs = images(*size)
    with torch.no_grad():
        maps = small(name)(inputs)
    check_maps(small(name), maps, inputs)
    assert all(level.isfinite().all() for level in maps)


@pytest.mark.parametrize("name", SMALL)
def test_an_image_is_read_alike_alone_and_in_a_batch(name):
    inputs = images(65, 47, batch=2)
    with torch.no_grad():
        together, alone = small(name)(inputs), small(name)(inputs[1:])
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[1:], theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_training_reaches_every_parameter_with_and_without_checkpointing(name):
    gradients = []
    for checkpointing in (False, True):
        backbone = create_backbone(name, checkpointing=checkpointing).train()
        backbone.load_state_dict(small(name).state_dict())
        torch.manual_seed(1)
        maps = backbone(images(65, 47, batch=2))
        check_maps(backbone, maps, images(65, 47, batch=2))
        torch.stack([(level - 1).square().mean() for level in maps]).sum().backward()
        gradients.append({key: value.grad for key, value in backbone.named_parameters()})
    missing = [key for key, value in gradients[0].items() if value is None]
    assert not missing
    for key, value in gradients[0].items():
        scale = max(float(value.abs().max()), 1e-6)
        torch.testing.assert_close(gradients[1][key] / scale, value / scale, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_stays_near_float32(name):
    inputs = images(65, 47)
    with torch.no_grad():
        exact = small(name)(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rough = small(name)(inputs)
    for ours, theirs in zip(rough, exact, strict=True):
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < 0.1, error


@pytest.mark.parametrize("name", SMALL)
def test_layers_and_stages_are_numbered(name):
    backbone = small(name)
    layers = {key: backbone.layer_of(key) for key, _ in backbone.named_parameters()}
    assert min(layers.values()) == 0 and max(layers.values()) < backbone.depth
    assert len(set(layers.values())) > 3
    stages = {backbone.stage_of(key) for key in layers}
    assert {0, 1} <= stages


@pytest.mark.parametrize("name", SMALL)
def test_classifiers_give_logits_and_round_trip(name, tmp_path):
    torch.manual_seed(0)
    classifier = create_classifier(name, classes=7).eval()
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    again = create_classifier(name, classes=7, weights=path).eval()
    inputs = images(224, 224)
    with torch.no_grad():
        logits = classifier(inputs)
        assert logits.shape == (1, 7)
        torch.testing.assert_close(again(inputs), logits)


@pytest.mark.parametrize("name", SMALL)
def test_options_every_backbone_has(name):
    backbone = create_backbone(
        name,
        out_indices=(-1, 0) if len(VARIANTS[name].channels) > 1 else None,
        freeze=1,
        in_channels=2,
        output_norms=True,
    )
    inputs = torch.randn(1, 2, 64, 64)
    check_maps(backbone, backbone.eval()(inputs), inputs)
    assert any(not parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_adapters_are_a_small_share(name):
    if name == "shvit_s1":
        with pytest.raises(ConfigError, match="no linear layer of TimmBackbone"):
            create_backbone(name, lora_rank=2)
        return
    adapted = create_backbone(name, lora_rank=2)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 0 < trained / sum(p.numel() for p in adapted.parameters()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs(name):
    inputs = images(65, 47, batch=2)
    backbone = create_backbone(name)
    for mode in (True, False):
        with torch.no_grad():
            maps = backbone.train(mode)(inputs)
        check_maps(backbone, maps, inputs)
        assert all(level.isfinite().all() for level in maps)
