"""What all vision backbones promise, on a small one: levels, sizes, checkpointing, freezing, depth."""

from __future__ import annotations

import pickle

import pytest
import torch

from backbones.vision import BACKBONES, create_backbone
from backbones.vision.config import BackboneConfig
from graftwork.errors import ConfigError, ShapeError
from tests.backbones.vision.toy import CHANNELS, NAME


def images(batch: int = 2, channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (65, 47), (40, 100)])
@pytest.mark.parametrize("out_indices", [None, (0,), (2, 0), (-1,), (1, 2)])
def test_maps_are_the_ceiling_of_side_over_stride(height, width, out_indices):
    backbone = create_backbone(NAME, out_indices=out_indices).eval()
    maps = backbone(images(height=height, width=width))
    levels = range(3) if out_indices is None else [level % 3 for level in out_indices]
    assert backbone.channels == tuple(CHANNELS[level] for level in levels)
    for level, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert level.shape == (2, channels, -(-height // stride), -(-width // stride))


def test_stages_nobody_reads_are_not_built():
    assert len(create_backbone(NAME, out_indices=(0,)).stages) == 1
    assert len(create_backbone(NAME, out_indices=(-1,)).stages) == 3


@pytest.mark.parametrize("out_indices", [(), (3,), (-4,), (1, 1), (2, -1)])
def test_levels_that_do_not_exist_are_named(out_indices):
    with pytest.raises(ConfigError, match=r"must be different levels from 0 to 2.*out_indices=\(0, 1, 2\)"):
        create_backbone(NAME, out_indices=out_indices)


def test_small_images_and_other_channels_are_refused():
    backbone = create_backbone(NAME, in_channels=4)
    with pytest.raises(ShapeError, match=r"expected \[batch, 4, height, width\], got \[2, 3, 64, 64\]"):
        backbone(images())
    with pytest.raises(ShapeError, match=r"at least 32 pixels, got 31 x 64"):
        backbone(images(channels=4, height=31))
    with pytest.raises(ShapeError, match=r"got \[3, 64, 64\]"):
        backbone(images()[0])


def test_output_norms_are_per_level_and_do_not_flow_on():
    torch.manual_seed(0)
    plain = create_backbone(NAME).eval()
    normed = create_backbone(NAME, output_norms=True).eval()
    normed.load_state_dict(plain.state_dict(), strict=False)
    for raw, level in zip(plain(images()), normed(images()), strict=True):
        mean, deviation = raw.mean(1, keepdim=True), raw.var(1, unbiased=False, keepdim=True).add(1e-5).sqrt()
        torch.testing.assert_close(level, (raw - mean) / deviation, rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_equal_results_and_gradients():
    torch.manual_seed(0)
    plain = create_backbone(NAME, drop_path=0.5).train()
    saving = create_backbone(NAME, drop_path=0.5, checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for backbone in (plain, saving):
        torch.manual_seed(1)  # the same samples lose their branches
        sum(level.square().sum() for level in backbone(images(batch=4))).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("stages", "frozen"), [(1, {0}), (2, {0, 1}), (4, {0, 1, 2, 3}), (-1, {-1, 0, 1, 2, 3})])
def test_frozen_stages_keep_weights_and_statistics(stages, frozen):
    backbone = create_backbone(NAME, freeze=stages, output_norms=True).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (backbone.stage_of(name) not in frozen), name
    backbone(images())
    assert torch.equal(before["stem.1.running_mean"], backbone.state_dict()["stem.1.running_mean"])
    assert backbone.stages[2].training == (3 not in frozen)


def test_without_freezing_statistics_move():
    backbone = create_backbone(NAME).train()
    before = backbone.stem[1].running_mean.clone()
    backbone(images())
    assert not torch.equal(before, backbone.stem[1].running_mean)


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(ConfigError, match=r"freeze=5 is more than the 4 stages of Toy"):
        create_backbone(NAME, freeze=5)


def test_layers_count_from_the_stem_to_the_output_norms():
    backbone = create_backbone(NAME, output_norms=True)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers["stem.0.weight"] == 0
    assert layers["stages.0.blocks.0.block.table"] == 1
    assert layers["stages.1.downsample.weight"] == layers["stages.1.blocks.0.block.table"] == 2
    assert layers["stages.1.blocks.1.block.table"] == 3
    assert layers["stages.2.blocks.0.block.table"] == 4
    assert layers["output_norms.0.weight"] == 5 == backbone.depth - 1


def test_drop_path_grows_linearly_and_keeps_the_mean():
    backbone = create_backbone(NAME, drop_path=0.6)
    rates = [module.rate for module in backbone.modules() if hasattr(module, "rate")]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])
    dropping = backbone.stages[2].blocks[0].block.drop_path.train()
    torch.manual_seed(0)
    kept = dropping(torch.ones(4000, 2))
    assert set(kept.unique().tolist()) == {0.0, 2.5}
    assert kept.mean() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(kept[:, 0], kept[:, 1])


def test_unknown_names_and_options_bring_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown backbone 'swin_tniy'; did you mean swin_tiny"):
        create_backbone("swin_tniy")
    with pytest.raises(ConfigError, match=r"unknown option of backbone .* did you mean output_norms"):
        create_backbone(NAME, output_norm=True)
    with pytest.raises(ConfigError, match=r"drop_path=1.5 must be at least 0 and below 1"):
        create_backbone(NAME, drop_path=1.5)
    with pytest.raises(ConfigError, match=r"contradict each other"):
        create_backbone(NAME, pretrained=True, weights="there.pth")


def test_configurations_travel_to_other_processes():
    config = BACKBONES.get("dinat_tiny")(drop_path=0.2)
    again = pickle.loads(pickle.dumps(config))
    assert again == config and isinstance(again, BackboneConfig) and again.variant == "dinat_tiny"
    assert BACKBONES.name_of(BACKBONES.get("timm:resnet18")()) == "timm:resnet18"
