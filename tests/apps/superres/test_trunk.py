"""Trunks: every family of backbones restores images; levels, colours, padding, weights, training, options."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from apps.core.cli.layers import read_yaml
from apps.core.cli.resolve import resolve
from apps.superres.config import SuperresConfig
from apps.superres.models.info import ImageInfo
from apps.superres.models.trunk import LevelFusion, TrunkRestorer, chosen_levels
from apps.superres.models.trunk_config import TrunkConfig
from backbones.vision.config import config_class
from backbones.vision.create import create_backbone, without_initial_weights
from backbones.vision.variants import FAMILIES, VARIANTS
from graftwork.errors import ConfigError, ShapeError

ROOT = Path(__file__).resolve().parents[3]
TINY = "timm:test_convnext"
SMALLEST = {
    family: min(
        (name for name, variant in VARIANTS.items() if variant.family == family),
        key=lambda name: VARIANTS[name].parameters,
    )
    for family in FAMILIES
}
"""The variant of every family with the fewest parameters."""


def trunk(
    name: str = TINY, scale: int = 2, channels: int = 3, backbone: dict | None = None, **options
) -> TrunkRestorer:
    torch.manual_seed(0)
    config = TrunkConfig(backbone=config_class(name)(**(backbone or {})), **({"width": 8} | options))
    return config.build(ImageInfo(scale=scale, channels=channels)).eval()


@pytest.mark.parametrize("name", [*SMALLEST.values(), "timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_every_family_restores_and_trains(name):
    network = trunk(name)
    assert network.levels.strides[0] == 1
    x = torch.rand(1, 3, 16, 13)
    output = network.train()(x)
    assert output.shape == (1, 3, 32, 26)
    output.square().mean().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), part


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (2, 1), (3, 4), (4, 3)])
def test_images_of_any_size(stride, scale, channels):
    network = trunk(scale=scale, channels=channels, stride=stride)
    for height, width in ((1, 1), (2, 33), (19, 8)):
        with torch.no_grad():
            assert network(torch.rand(2, channels, height, width)).shape == (2, channels, scale * height, scale * width)
    with pytest.raises(ShapeError, match=rf"expected \[batch, {channels}, height, width\]"):
        network(torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("strides", "stride", "count", "indices", "pixels", "enlarge"),
    [
        ((4, 8, 16, 32), 1, 3, (0, 1, 2), (1, 2, 4), 4),
        ((4, 8, 16, 32), 2, 9, (0, 1, 2, 3), (2, 4, 8, 16), 2),
        ((4, 8, 16, 32), 4, 1, (0,), (4,), 1),
        ((2, 4, 8, 16, 32), 4, 2, (1, 2), (4, 8), 1),
        ((16,), 1, 3, (0,), (1,), 16),
        ((16, 16, 16), 2, 2, (0, 1), (2, 2), 8),
        ((14,), 2, 3, (0,), (2,), 7),
    ],
)
def test_levels_begin_at_the_wanted_stride(strides, stride, count, indices, pixels, enlarge):
    levels = chosen_levels(range(len(strides)), strides, stride, count)
    assert levels == (indices, pixels, enlarge)


def test_strides_that_no_level_can_have_are_named():
    with pytest.raises(ConfigError, match=r"model.stride=4 fits none .* \(14,\) .* Try --model.stride 2"):
        chosen_levels([0], [14], 4, 3)
    with pytest.raises(ConfigError, match=r"model\.stride=4 fits none"):
        chosen_levels([0], [2], 4, 3)


def test_the_network_is_what_its_description_says():
    network = trunk("timm:test_resnet", stride=2, image_skip=False).double()
    x = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    photographs = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None].double()
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (network.backbone.mean, network.backbone.std))
    assert network.levels == ((0, 1, 2), (2, 4, 8), 1)
    maps = network.backbone((x - mean) / std)
    total = 0
    for level, norm, align, factor in zip(maps, network.fusion.norms, network.fusion.aligned, (1, 2, 4), strict=True):
        y = F.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2], norm.weight, norm.bias).permute(0, 3, 1, 2)
        total = total + F.pixel_shuffle(F.conv2d(y, align[0].weight, align[0].bias), factor)
    spread = network.fusion.spread[0]
    deep = F.pixel_shuffle(F.conv2d(total, spread.weight, spread.bias, padding=1), 2)
    expected = network.reconstruction(network.shallow(x - photographs) + deep) + photographs
    torch.testing.assert_close(network(x), expected)


def test_at_scale_one_the_image_itself_is_added():
    network, x = trunk(scale=1), torch.rand(1, 3, 9, 10)
    with torch.no_grad():
        network.reconstruction.last.weight.zero_()
        network.reconstruction.last.bias.zero_()
        torch.testing.assert_close(network(x), x)


def test_training_starts_from_the_enlarged_image():
    network, x = trunk(scale=3, levels=2), torch.rand(1, 3, 32, 34)
    assert network.tile_multiple == 2
    with torch.no_grad():
        torch.testing.assert_close(network(x), F.interpolate(x, scale_factor=3, mode="bicubic"))
    network(x).square().sum().backward()
    assert network.reconstruction.last.weight.grad.any()


def test_grey_images_are_normalised_by_the_mean_of_the_colours():
    network = trunk(channels=1)
    torch.testing.assert_close(network.colour_mean.flatten(), torch.tensor(network.backbone.mean).mean()[None])
    assert not any(name.startswith("colour") for name in network.state_dict())


def test_coarse_levels_keep_their_place():
    fusion = LevelFusion((3,), (4,), 2)
    with torch.no_grad():
        x = torch.zeros(1, 3, 4, 4)
        before = fusion([x])
        x[0, 0, 2, 1] = 9.0
        changed = (fusion([x]) != before).any(1)[0].nonzero()
    assert changed.min(0).values.tolist() == [4, 0] and changed.max(0).values.tolist() == [15, 11]


def test_published_weights_fit_the_trunk(tmp_path):
    torch.manual_seed(1)
    whole = create_backbone("nat_mini")
    torch.save(whole.state_dict(), tmp_path / "nat.pt")
    network = trunk("nat_mini", backbone={"weights": str(tmp_path / "nat.pt")})
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    with without_initial_weights():
        other = trunk("nat_mini", backbone={"weights": str(tmp_path / "gone.pt")})
    assert other.backbone.state_dict().keys() == network.backbone.state_dict().keys()


def test_checkpointing_and_stochastic_depth_reach_the_trunk():
    x, gradients = torch.rand(2, 3, 8, 8), []
    for checkpointing in (False, True):
        network = trunk("nat_mini", backbone={"checkpointing": checkpointing}, levels=1, image_skip=False).train()
        network(x).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    network = trunk("nat_mini", backbone={"drop_path": 0.9}, image_skip=False)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        assert not torch.equal(network.train()(x), network(x))


@pytest.mark.parametrize("name", [TINY, "biformer_tiny"])
def test_a_short_training_lowers_the_loss(name):
    network, x = trunk(name, width=16, levels=2, image_skip=False).train(), torch.rand(2, 3, 8, 8)
    target = F.interpolate(x, scale_factor=2, mode="bicubic")
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = F.l1_loss(network(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_options_of_the_trunk_are_options_of_the_app():
    overrides = {
        "model.name": "trunk",
        "model.backbone": "dinat_tiny",
        "model.backbone.dilations": "auto",
        "model.backbone.drop_path": "0.1",
        "model.stride": "2",
    }
    config = resolve(SuperresConfig, [], overrides).model
    assert isinstance(config, TrunkConfig) and config.stride == 2
    assert (config.backbone.variant, config.backbone.dilations, config.backbone.drop_path) == (
        "dinat_tiny",
        "auto",
        0.1,
    )
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ConfigError, match="dilation"):
        resolve(SuperresConfig, [], overrides | {"model.backbone": "swin_tiny"})


def test_the_shipped_configuration_is_short_and_valid():
    path = ROOT / "configs/superres/trunk_tiny.yaml"
    assert len(path.read_text().splitlines()) <= 40
    config = resolve(SuperresConfig, [read_yaml(path)], {})
    assert isinstance(config.model.build(ImageInfo(scale=2)), TrunkRestorer)


def test_bad_values_are_named():
    for name, value in (("width", 0), ("levels", 0), ("stride", 3)):
        with pytest.raises(ConfigError, match=f"{name}={value} must be"):
            trunk(**{name: value})
    with pytest.raises(ConfigError, match="upsampler=residual"):
        trunk(upsampler="residual")
    with pytest.raises(ConfigError, match="takes images of 224 x 224 pixels only"):
        trunk("timm:efficientformer_l1")
