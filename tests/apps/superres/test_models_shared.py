"""What the restoration networks share: registry, range, padding, last layers, checkpointing of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apps.superres.models.config import MODELS
from apps.superres.models.config_checks import resolved_upsampler
from apps.superres.models.info import ImageInfo
from apps.superres.models.network import ResidualTrunk, run_block
from apps.superres.models.normalise import DIV2K_MEAN, ImageRange
from apps.superres.models.padding import pad_to_multiple
from apps.superres.models.upsample import (
    ClassicalReconstruction,
    LightReconstruction,
    ResidualReconstruction,
    channels_of,
    reach,
    reconstruction,
    scale_of,
    shuffle_factors,
)
from backbones.vision.config import config_class
from graftwork.errors import ConfigError

SMALLER = {
    "cfsr": {"width": 4, "depths": (1,), "kernel": 3},
    "hat": {"width": 4, "depths": (1,), "heads": (2,), "window": 4, "compress": 2, "squeeze": 2},
    "maxim": {"width": 4, "groups": 1, "bottlenecks": 1, "high_side": 4, "low_side": 2},
    "trunk": {"width": 8, "backbone": config_class("timm:test_convnext")()},
}
"""Sizes for tests, by the beginning of a name; a network without an entry is built as it is."""


def configured(name: str) -> Any:
    return MODELS.get(name)(**SMALLER.get(name.split("_")[0], {}))


def built(name: str, info: ImageInfo) -> nn.Module:
    return configured(name).build(info).eval()


def usual(name: str) -> ImageInfo:
    """Scale 2, or 1 for networks that only restore."""
    info = ImageInfo(scale=2)
    return ImageInfo(scale=1) if list(configured(name).info_problems(info)) else info


@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (2, 1), (3, 3), (4, 3)])
def test_every_network_keeps_the_contract(name, scale, channels):
    torch.manual_seed(0)
    info = ImageInfo(scale=scale, channels=channels)
    if problems := list(configured(name).info_problems(info)):
        with pytest.raises(ConfigError, match=f"scale={scale}"):
            built(name, info)
        assert scale > 1 and len(problems) == 1
        return
    network = built(name, info)
    assert (network.scale, network.channels) == (scale, channels)
    assert network.receptive_radius is None or network.receptive_radius >= 1
    assert network.tile_multiple >= 1
    for height, width in ((1, 1), (6, 9)):
        x = torch.rand(1, channels, height, width)
        before = x.clone()
        with torch.no_grad():
            output = network(x)
        assert output.shape == (1, channels, scale * height, scale * width)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", MODELS.names())
def test_every_network_can_be_trained_saved_and_loaded(name):
    torch.manual_seed(0)
    network, twin = (built(name, usual(name)) for _ in range(2))
    x = torch.rand(1, 3, 5, 6)
    network.train()
    outputs = [restored for restored, _ in network.supervised(x, x)] if hasattr(network, "supervised") else [network(x)]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(x), network.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS.names())
def test_every_network_runs_in_half_types(name, dtype):
    torch.manual_seed(0)
    network, x = built(name, usual(name)), torch.rand(1, 3, 6, 9)
    with torch.no_grad():
        expected = network(x)
        output = network.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.02)


def test_importing_the_configurations_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from apps.superres.models.config import MODELS as m; "
        "print([*map(m.get, m.names())] and 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("channels", "width"), [(3, 1.0), (3, 255.0), (1, 2.0), (4, 1.0)])
def test_range_centres_colours_on_the_mean_of_photographs(channels, width):
    image_range = ImageRange(channels, width).double()
    x = torch.rand(2, channels, 3, 3, dtype=torch.float64)
    mean = torch.tensor(DIV2K_MEAN if channels == 3 else [0.0] * channels).double()[:, None, None]
    torch.testing.assert_close(image_range.centre(x), (x - mean) * width)
    torch.testing.assert_close(image_range.restore(image_range.centre(x)), x)
    assert not image_range.state_dict()


def test_range_takes_another_mean():
    image_range = ImageRange(2, mean=(0.25, 0.5))
    assert torch.equal(image_range.centre(torch.full((1, 2, 1, 1), 0.5)).flatten(), torch.tensor([0.25, 0.0]))


def test_padding_mirrors_and_repeats_where_nothing_is_left_to_mirror():
    row = torch.tensor([1.0, 2.0, 3.0])
    assert pad_to_multiple(row.view(1, 1, 1, 3), 1).flatten().tolist() == [1, 2, 3]
    padded = pad_to_multiple(row.view(1, 1, 1, 3).expand(1, 1, 5, 3), 5)
    assert padded.shape == (1, 1, 5, 5) and padded[0, 0, 0].tolist() == [1, 2, 3, 2, 1]
    assert pad_to_multiple(row.view(1, 1, 3, 1), 7).flatten(2)[0, 0, ::7].tolist() == [1, 2, 3, 3, 3, 3, 3]
    assert pad_to_multiple(torch.ones(2, 3, 8, 16), 8).shape == (2, 3, 8, 16)


@pytest.mark.parametrize(("scale", "factors"), [(1, []), (2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_classical_layers_double_step_by_step(scale, factors):
    assert shuffle_factors(scale) == factors
    torch.manual_seed(0)
    layers, x = ClassicalReconstruction(5, scale, 3), torch.randn(2, 5, 4, 3)
    convolutions = [module for module in layers.steps if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [64 * factor**2 for factor in factors]
    y = F.leaky_relu(layers.before(x), 0.01)
    for convolution, factor in zip(convolutions, factors, strict=True):
        y = F.pixel_shuffle(convolution(y), factor)
    torch.testing.assert_close(layers(x), layers.last(y))
    assert layers(x).shape == (2, 3, 4 * scale, 3 * scale)


def test_pixels_are_shuffled_by_channel_then_row_then_column():
    layers = LightReconstruction(1, 2, 3)
    with torch.no_grad():
        layers.steps[0].weight.zero_()
        layers.steps[0].bias.copy_(torch.arange(12))
    output = layers(torch.zeros(1, 1, 1, 1))
    assert output[0, 1].tolist() == [[4, 5], [6, 7]]


def test_kinds_that_cannot_give_a_scale_are_named():
    assert isinstance(reconstruction("residual", 4, ImageInfo(scale=1)), ResidualReconstruction)
    assert resolved_upsampler("auto", "light", ImageInfo(scale=1)) == "residual"
    assert resolved_upsampler("auto", "light", ImageInfo(scale=2)) == "light"
    assert resolved_upsampler("classical", "light", ImageInfo(scale=1)) == "classical"
    unknown = (("residual", 2), ("nearest", 3), ("nearest", 1), ("bicubic", 2), ("classical", 6), ("classical", 0))
    for kind, scale in unknown:
        with pytest.raises(ConfigError, match=f"upsampler={kind} cannot give scale={scale}"):
            reconstruction(kind, 4, ImageInfo(scale=scale))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "scale"),
    [("light", 2), ("light", 3), ("light", 4), ("classical", 1), ("classical", 3), ("classical", 4), ("nearest", 2),
     ("nearest", 4), ("residual", 1)],
)  # fmt: skip
def test_weights_tell_scale_and_channels(kind, scale, channels):
    options = {**SMALLER["cfsr"], "upsampler": kind}
    tensors = MODELS.get("cfsr")(**options).build(ImageInfo(scale=scale, channels=channels)).state_dict()
    assert (scale_of(tensors), channels_of(tensors)) == (scale, channels)
    assert scale_of({}) is None and channels_of({}) is None


@pytest.mark.parametrize(("kind", "scale"), [("light", 3), ("classical", 4), ("nearest", 2), ("nearest", 4)])
def test_last_layers_see_as_far_as_they_say(kind, scale):
    torch.manual_seed(0)
    layers = reconstruction(kind, 2, ImageInfo(scale=scale, channels=1))
    for parameter in layers.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.0)  # nothing cancels, no unit is silent
    x = torch.rand(1, 2, 1, 15, requires_grad=True)
    seen = set()
    for column in range(7 * scale, 8 * scale):
        (gradient,) = torch.autograd.grad(layers(x)[0, 0, 0, column], x)
        seen |= {abs(place - 7) for place in gradient.abs().sum((0, 1, 2)).nonzero().flatten().tolist()}
    assert max(seen) == reach(kind, scale)


def test_a_trunk_without_layers_only_enlarges():
    class Empty(ResidualTrunk):
        def deep(self, shallow):
            return torch.zeros_like(shallow)

    torch.manual_seed(0)
    network = Empty(ImageInfo(scale=2), width=4, upsampler="light", shallow_bias=False, tile_multiple=4)
    assert network.shallow.bias is None
    x = torch.rand(1, 3, 5, 7)
    mean = network.range.mean
    padded = F.pad(x, (0, 1, 0, 3), mode="reflect")
    expected = network.reconstruction(network.shallow(padded - mean)) + mean
    torch.testing.assert_close(network(x), expected[..., :10, :14])


def test_blocks_are_computed_again_in_the_backward_pass_only_if_asked():
    calls = []

    class Block(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x.sin()

    x = torch.rand(3, requires_grad=True)
    for checkpointing, count in ((False, 1), (True, 2)):
        calls.clear()
        run_block(Block(), x, checkpointing).sum().backward()
        assert len(calls) == count
    with torch.no_grad():
        calls.clear()
        run_block(Block(), x, True)
    assert len(calls) == 1
