"""MAXIM: blocks against the paper's formulas, published sizes, padding, supervision of all outputs, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apps.core.cli.resolve import resolve
from apps.superres.config import SuperresConfig
from apps.superres.losses import restoration_loss, supervised_loss
from apps.superres.models.config import MODELS
from apps.superres.models.info import ImageInfo
from apps.superres.models.maxim import MAXIM, shrunk
from apps.superres.models.maxim_blocks import (
    CrossGating,
    GatedMlp,
    MultiAxisBlock,
    ScaleMixing,
    SpatialLinear,
    SupervisedAttention,
    init_weights,
    resized,
)
from apps.superres.models.maxim_config import MAXIM2Config, MAXIM3Config, MAXIMConfig
from apps.superres.models.padding import before, pad_both_sides
from apps.superres.module import SuperresModule
from datamodules.superres.info import RestorationInfo
from graftwork.errors import ConfigError, ShapeError

SMALL = {"width": 4, "levels": 2, "supervised": 2, "groups": 1, "bottlenecks": 1, "high_side": 4, "low_side": 2}


def small(channels: int = 3, dtype: torch.dtype = torch.float64, **options: int) -> MAXIM:
    """A network whose numbers are all of some size."""
    torch.manual_seed(0)
    model = MAXIMConfig(**(SMALL | options)).build(ImageInfo(scale=1, channels=channels)).to(dtype)
    return randomised(model).eval()


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# -- the blocks as the paper defines them, position by position --------------------------------------------------------


def mixed(layer: SpatialLinear, x: Tensor) -> Tensor:
    """Every output position as a weighted sum of the input positions it is mixed with."""
    _, height, width, _ = x.shape
    side, weight, output = layer.side, layer.mix.weight, torch.zeros_like(x)
    rows, columns = height // side, width // side
    for h in range(height):
        for w in range(width):
            for i in range(side):
                for j in range(side):
                    if layer.grid:  # the same place in every cell of the grid
                        here = (h // rows) * side + w // columns
                        source = (i * rows + h % rows, j * columns + w % columns)
                    else:  # every place in the same block
                        here = (h % side) * side + w % side
                        source = (h // side * side + i, w // side * side + j)
                    output[:, h, w] += weight[here, i * side + j] * x[:, source[0], source[1]]
            output[:, h, w] += layer.mix.bias[here]
    return output


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gated(layer: GatedMlp, x: Tensor) -> Tensor:
    u, v = gelu(layer.expand(norm(layer.norm, x))).chunk(2, -1)
    return x + layer.out(u * (mixed(layer.mixing, norm(layer.gate_norm, v)) + 1))


@settings(max_examples=8)
@given(side=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3), grid=st.booleans())
def test_positions_are_mixed_as_in_the_paper(side, rows, columns, grid):
    torch.manual_seed(0)
    layer, x = SpatialLinear(side, grid).double(), maps(2, side * rows, side * columns, 3).requires_grad_()
    torch.testing.assert_close(layer(x), mixed(layer, x))
    torch.testing.assert_close(
        torch.autograd.grad(layer(x).sin().sum(), x), torch.autograd.grad(mixed(layer, x).sin().sum(), x)
    )


def test_the_multi_axis_block_by_formula():
    torch.manual_seed(0)
    block, x = randomised(MultiAxisBlock(4, 2, 3).double()), maps(2, 6, 12, 4)
    far, near = gelu(block.expand(norm(block.norm, x))).chunk(2, -1)
    y = torch.cat([gated(block.over_grid, far), gated(block.over_blocks, near)], -1)
    torch.testing.assert_close(block(x), x + block.out(y))


@pytest.mark.parametrize("enlarge", [False, True])
def test_maps_gate_each_other_by_formula(enlarge):
    torch.manual_seed(0)
    gating = randomised(CrossGating(5, 6, 4, 2, 3, enlarge=enlarge).double())
    x, y = maps(2, 6, 6, 5), maps(2, 3, 3, 6) if enlarge else maps(2, 6, 6, 6)

    def gates(layer, z):
        values = gelu(layer.before[1](norm(layer.before[0], z)))
        far, near = gelu(layer.expand(norm(layer.norm, values))).chunk(2, -1)
        return values, layer.out(torch.cat([mixed(layer.over_grid, far), mixed(layer.over_blocks, near)], -1))

    a, b = gating(x, y)
    if enlarge:
        y = F.conv_transpose2d(y.permute(0, 3, 1, 2), gating.up.weight, gating.up.bias, stride=2).permute(0, 2, 3, 1)
    x, y = gating.project_first(x), gating.project_second(y)
    (x_values, x_gates), (y_values, y_gates) = gates(gating.gates_first, x), gates(gating.gates_second, y)
    y = y + gating.out_second(y_values * x_gates)
    torch.testing.assert_close(b, y)
    torch.testing.assert_close(a, x + gating.out_first(x_values * y_gates) + y)


def test_levels_are_projected_at_their_new_size():
    torch.manual_seed(0)
    mixing, levels = ScaleMixing([2, 3, 4], 5).double(), [maps(1, 8, 4, 2), maps(1, 4, 2, 3), maps(1, 2, 1, 4)]
    expected = [project(resized(x, 4, 2)) for x, project in zip(levels, mixing.projections, strict=True)]
    torch.testing.assert_close(mixing(levels, 4, 2), torch.cat(expected, -1))


def test_shrinking_averages_with_a_triangle():
    x = maps(1, 8, 1, 2)
    middle = (x[:, 1] + 3 * x[:, 2] + 3 * x[:, 3] + x[:, 4]) / 8
    torch.testing.assert_close(resized(x, 4, 1)[:, 1], middle)
    assert resized(x.bfloat16(), 4, 1).dtype == torch.bfloat16
    assert resized(x, 8, 1) is x


def test_the_supervised_attention_gives_an_image_and_weighs_features_by_it():
    torch.manual_seed(0)
    attention, x, image = SupervisedAttention(4, 3).double(), maps(1, 5, 6, 4), maps(1, 5, 6, 3)
    features, restored = attention(x, image)
    first = lambda convolution, z: convolution(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # noqa: E731
    torch.testing.assert_close(restored, first(attention.image, x) + image)
    weights = torch.sigmoid(first(attention.attention, restored))
    torch.testing.assert_close(features, x + first(attention.features, x) * weights)


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "millions"), [("maxim_s2", 14.1), ("maxim_s3", 22.2)])
def test_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        model = MODELS.get(name)().build(ImageInfo(scale=1))
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert int(found * 10) / 10 == millions  # published with the second digit cut off
    assert model.tile_multiple == 64


@settings(max_examples=20)
@given(height=st.integers(1, 21), width=st.integers(1, 21), multiple=st.sampled_from([2, 8, 24]))
def test_padding_is_that_of_the_original_inference(height, width, multiple):
    x = torch.rand(1, 2, height, width)
    evened = np.pad(x.numpy(), [(0, 0), (0, 0), (0, height % 2), (0, width % 2)], mode="reflect")
    rows, columns = (-side % multiple // 2 for side in evened.shape[2:])
    expected = np.pad(evened, [(0, 0), (0, 0), (rows, rows), (columns, columns)], mode="reflect")
    padded = pad_both_sides(x, multiple)
    assert np.array_equal(padded.numpy(), expected)
    top, left = before(height, multiple), before(width, multiple)
    assert torch.equal(padded[..., top : top + height, left : left + width], x)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_images_of_any_size(stages):
    for channels in (1, 3):
        network = small(channels, torch.float32, stages=stages)
        for height, width in ((1, 1), (7, 33), (8, 8)):
            with torch.no_grad():
                assert network(torch.rand(2, channels, height, width)).shape == (2, channels, height, width)
        with pytest.raises(ShapeError, match=rf"expected \[batch, {channels}, height, width\]"):
            network(torch.rand(1, 2, 8, 8))


def test_the_result_is_the_last_stage_at_full_size():
    network, x = small(stages=2), torch.rand(1, 3, 10, 13, dtype=torch.float64)
    restored = network.restored(pad_both_sides(x, network.tile_multiple))
    assert network.tile_multiple == 8
    assert [[tuple(image.shape) for image in stage] for stage in restored] == [[(1, 3, 16, 16), (1, 3, 8, 8)]] * 2
    torch.testing.assert_close(network(x), restored[1][0][..., 3:13, 1:14])


def test_every_output_adds_its_own_size_of_the_image():
    network, x = small(stages=2), torch.rand(1, 3, 16, 8, dtype=torch.float64)
    with torch.no_grad():
        for stage in network.stages:
            for output in stage.outputs:
                image = getattr(output, "image", output)
                image.weight.zero_()
                image.bias.zero_()
        for stage in network.restored(x):
            assert torch.equal(stage[0], x)
            assert torch.equal(stage[1], x[..., 1::2, 1::2])
    torch.testing.assert_close(shrunk(x, 1), F.interpolate(x, scale_factor=0.5, mode="nearest-exact"))
    torch.testing.assert_close(shrunk(x, 2), F.interpolate(x, scale_factor=0.25, mode="nearest-exact"))


def test_training_compares_all_sizes_of_all_stages():
    network = small(stages=2).train()
    images, truth = torch.rand(2, 2, 3, 9, 8, dtype=torch.float64)
    pairs = network.supervised(images, truth)
    assert [tuple(restored.shape[2:]) for restored, _ in pairs] == [(16, 8), (8, 4)] * 2
    assert all(restored.shape == target.shape for restored, target in pairs)
    assert torch.equal(pairs[0][1][..., 3:12, :], truth)
    found = supervised_loss(pairs, "charbonnier", frequency_weight=0.1)
    parts = [restoration_loss(a.float(), b, "charbonnier", frequency_weight=0.1) for a, b in pairs]
    for name in ("loss", "charbonnier", "frequency"):
        torch.testing.assert_close(found[name], sum(part[name] for part in parts))
    found["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_stages_see_what_came_before():
    network, x = small(stages=2), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        result = network(x)
        network.stages[0].encoder.inputs[0].weight += 1
        assert not torch.allclose(network(x), result)


def test_blocks_are_computed_again_if_asked():
    x, found = torch.rand(1, 3, 8, 8, dtype=torch.float64), []
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing).train()
        network(x).square().mean().backward()
        found.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_mixed_precision(dtype, share):
    torch.manual_seed(0)
    network, x = MAXIM2Config(**(SMALL | {"width": 16})).build(ImageInfo(scale=1)).eval(), torch.rand(1, 3, 16, 16)
    randomised(network.stages[1].outputs)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", dtype):
            error = network(x).float() - expected
    assert 0 < error.std() < share * (expected - x).std()


def test_a_short_training_lowers_the_loss():
    torch.manual_seed(0)
    network = MAXIM2Config(**(SMALL | {"width": 8})).build(ImageInfo(scale=1)).train()
    clean = F.interpolate(torch.rand(2, 3, 4, 4), size=16, mode="bicubic")
    noisy = clean + 0.2 * torch.randn(2, 3, 16, 16)
    optimiser, losses = torch.optim.Adam(network.parameters(), lr=2e-3), []
    for _ in range(10):
        optimiser.zero_grad()
        loss = supervised_loss(network.supervised(noisy, clean), "charbonnier", frequency_weight=0.1)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.92 * losses[0]


def test_every_restored_image_begins_as_the_one_seen():
    torch.manual_seed(0)
    network, x = MAXIM3Config(**SMALL).build(ImageInfo(scale=1)), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x), x)
        decoded = network.stages[2].decoder.levels[0]
        found = []
        decoded.register_forward_hook(lambda module, inputs, output: found.append(output.std().item()))
        network(x)
    assert 0.1 < found[0] < 10  # features do not grow from stage to stage


def test_weights_begin_as_flax_begins():
    torch.manual_seed(0)
    for layer, inputs in (
        (nn.Linear(200, 300), 200),
        (nn.Conv2d(20, 300, 3), 180),
        (nn.ConvTranspose2d(100, 200, 2, 2), 400),
    ):
        init_weights(layer)
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.05)
        assert layer.weight.abs().max() < 2.3 * inputs**-0.5
        assert not layer.bias.any()


def test_bad_values_are_named():
    assert [config().stages for config in (MAXIMConfig, MAXIM2Config, MAXIM3Config)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="restores images at their own size and cannot give scale=2"):
        MAXIMConfig().build(ImageInfo(scale=2))
    with pytest.raises(ConfigError, match="supervised=4 must be at most levels=3"):
        MAXIMConfig(supervised=4).build(ImageInfo(scale=1))
    for name in ("width", "stages", "levels", "groups", "bottlenecks", "high_side", "low_side"):
        with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
            small(**{name: 0})


def test_the_app_trains_on_all_outputs():
    overrides = {"model.name": "maxim_s2", "data.degradation": "gaussian_noise", "loss.frequency_weight": 0.1}
    overrides |= {f"model.{name}": value for name, value in SMALL.items()}
    config = resolve(SuperresConfig, [], overrides)
    module = SuperresModule(config, RestorationInfo(scale=1, channels=3))
    batch = {"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 8, 8)}
    pairs = module.model.supervised(batch["lq"], batch["gt"])
    assert len(pairs) == 4
    torch.testing.assert_close(
        module.training_loss(batch)["loss"], supervised_loss(pairs, "l1", frequency_weight=0.1)["loss"]
    )
