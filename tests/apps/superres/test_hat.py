"""HAT: the network against the papers' formulas, its constructor's quirks, any size, kept biases, weights, export."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.superres.models import hat_attention
from apps.superres.models.config import MODELS
from apps.superres.models.hat import HAT, HybridBlock
from apps.superres.models.hat_attention import PositionBias
from apps.superres.models.hat_config import HATConfig
from apps.superres.models.info import ImageInfo
from backbones.attention import force
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from checkpoints.reading import read_weights
from graftwork.errors import ConfigError, ShapeError

SMALL = {"width": 12, "depths": (2, 1), "heads": (2, 3), "window": 4, "compress": 3, "squeeze": 4, "conv_scale": 0.3}


def small(scale=2, channels=3, dtype=torch.float64, **options) -> HAT:
    """A network of two groups whose numbers are all of some size."""
    torch.manual_seed(0)
    model = HATConfig(**(SMALL | options)).build(ImageInfo(scale=scale, channels=channels)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def images(height=8, width=12, batch=2, channels=3, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(height * 31 + width)
    return torch.rand(batch, channels, height, width, generator=generator, dtype=dtype)


# -- the network as the papers and the released code define it, on [B, H, W, D] and windows [B * windows, n, D] --------


def windows(x: Tensor, side: int) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
    return x.reshape(-1, side * side, channels)


def joined(x: Tensor, side: int, shape: torch.Size) -> Tensor:
    batch, height, width = shape[:3]
    x = x.view(batch, height // side, width // side, side, side, -1).transpose(2, 3)
    return x.reshape(batch, height, width, -1)


def attended(q, k, v, heads, bias, scale=None):
    """[windows, n, D], [windows, N, D] twice and [windows or 1, h, n, N] to [windows, n, D]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-2, -1) + bias
    return (torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2)


def self_bias(table, side):
    y, x = (places.flatten() for places in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    index = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    return table[index].permute(2, 0, 1)


def cross_bias(table, side, outer):
    """Key minus query, from ``side - outer + 1``: some indices are negative and count from the table's end."""
    y, x = (places.flatten() for places in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    v, u = (places.flatten() for places in torch.meshgrid(torch.arange(outer), torch.arange(outer), indexing="ij"))
    first = side - outer + 1
    index = (v - y[:, None] + first) * (side + outer - 1) + u - x[:, None] + first
    assert index.min() < 0 or side == outer
    return table[index].permute(2, 0, 1)


def shift_mask(height, width, side, shift):
    regions = torch.zeros(1, height, width, 1)
    parts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            regions[:, rows, columns] = 3 * i + j
    region = windows(regions, side).squeeze(-1)
    return torch.where(region[:, None] != region[:, :, None], -100.0, 0.0)[:, None]


def hybrid(block: HybridBlock, x: Tensor, config: HATConfig, heads: int, shift: int) -> Tensor:
    side, y = config.window, block.attention_norm(x)
    c = block.convolutions
    maps = c.expand(F.gelu(c.reduce(y.permute(0, 3, 1, 2))))
    weights = torch.sigmoid(c.excite(F.relu(c.squeeze(F.adaptive_avg_pool2d(maps, 1)))))
    rolled = y.roll((-shift, -shift), (1, 2))
    q, k, v = block.attention.qkv(windows(rolled, side)).chunk(3, -1)
    bias = self_bias(block.attention.position.table, side)[None]
    if shift:
        bias = bias + shift_mask(*x.shape[1:3], side, shift).repeat(len(x), 1, 1, 1).to(x)
    mixed = block.attention.out(attended(q, k, v, heads, bias, config.qk_scale))
    mixed = joined(mixed, side, x.shape).roll((shift, shift), (1, 2))
    x = x + mixed + config.conv_scale * (maps * weights).permute(0, 2, 3, 1)
    return x + block.mlp(block.mlp_norm(x))


def overlapping(block, x: Tensor, config: HATConfig, heads: int) -> Tensor:
    side, outer = config.window, config.key_window
    q, k, v = block.attention.qkv(block.attention_norm(x)).chunk(3, -1)
    cut = []
    for tensor in (k, v):
        unfolded = F.unfold(tensor.permute(0, 3, 1, 2), outer, stride=side, padding=(outer - side) // 2)
        cut.append(unfolded.unflatten(1, (x.shape[-1], -1)).permute(0, 3, 2, 1).flatten(0, 1))  # windows, N, D
    bias = cross_bias(block.attention.position.table, side, outer)[None]
    mixed = joined(attended(windows(q, side), *cut, heads, bias, config.qk_scale), side, x.shape)
    x = x + block.attention.out(mixed)
    return x + block.mlp(block.mlp_norm(x))


def by_formula(model: HAT, x: Tensor) -> Tensor:
    """For sides that are multiples of the window."""
    config = model.config
    mean = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None].to(x)
    first = model.shallow((x - mean) * config.image_range)
    tokens = model.patch_norm(first.permute(0, 2, 3, 1))
    if config.absolute_positions:
        tokens = (tokens.flatten(1, 2) + model.positions.table).view(tokens.shape)
    for group, heads in zip(model.groups, config.group_heads, strict=True):
        y = tokens
        for index, block in enumerate(group.blocks):
            y = hybrid(block, y, config, heads, config.window // 2 if index % 2 else 0)
        y = overlapping(group.overlapping, y, config, heads)
        tokens = tokens + group.convolution(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    features = first + model.after_body(model.norm(tokens).permute(0, 3, 1, 2))
    last = model.reconstruction
    y = F.leaky_relu(last.before(features), 0.01)
    for step in last.steps:
        y = step(y)
    return last.last(y) / config.image_range + mean


@settings(max_examples=6)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    scale=st.sampled_from([2, 3, 4]),
    options=st.sampled_from(
        [
            {},
            {"overlap": 1.0, "window": 2, "image_range": 2.0},
            {"overlap": 0.0, "heads": (4,), "qkv_bias": False},
            {"patch_norm": False, "group_convolution": False, "qk_scale": 0.7, "mlp_ratio": 1.5},
        ]
    ),
)
def test_formula_in_values_and_gradients(rows, columns, scale, options):
    model = small(scale=scale, **options)
    x = images(rows * model.config.window, columns * model.config.window)
    results = []
    for run in (model, lambda x: by_formula(model, x)):
        output = run(x)
        results.append([output, *torch.autograd.grad((output * output.detach().cos()).sum(), model.parameters())])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-9)


def test_absolute_positions_are_added_to_images_of_their_size_and_resized_for_others():
    model, x = small(absolute_positions=(8, 12)), images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_formula(model, x))
        model.positions.table.copy_(model.positions.table[:, :1].expand(1, 96, 12).clone())
        torch.testing.assert_close(small_with(model, (16, 4))(images(16, 4)), model(images(16, 4)))
    assert model.positions.table._no_weight_decay


def small_with(model: HAT, size: tuple[int, int]) -> HAT:
    """The same network whose vectors, which are all alike, lie on a map of another size."""
    other = small(absolute_positions=size)
    tensors = model.state_dict()
    tensors["positions.table"] = tensors["positions.table"][:, :1].expand(1, math.prod(size), -1).clone()
    other.load_state_dict(tensors)
    return other


def test_literal_attention_gives_the_same():
    model, x = small(), images(9, 14)
    with torch.no_grad():
        fast = model(x)
        with force("math"):
            torch.testing.assert_close(model(x), fast)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_scale_and_channels(scale, channels):
    model = small(scale=scale, channels=channels, dtype=torch.float32, window=8)
    with torch.no_grad():
        for height, width in ((1, 1), (5, 7), (17, 3), (8, 16)):
            output = model(images(height, width, channels=channels, dtype=torch.float32))
            assert output.shape == (2, channels, scale * height, scale * width)
            assert output.isfinite().all()


def test_images_are_mirrored_to_the_right_and_the_bottom():
    model, x = small(window=8), images(13, 11)
    with torch.no_grad():
        padded = model(F.pad(x, (0, 5, 0, 3), mode="reflect"))
        torch.testing.assert_close(model(x), padded[..., :26, :22])
        # 3 pixels have no 5 others to mirror
        tiny = images(3, 8)
        padded = model(F.pad(tiny, (0, 0, 0, 5), mode="replicate"))
        torch.testing.assert_close(model(tiny), padded[..., :6, :])


def test_scale_one_restores_by_a_correction_of_the_input():
    model, x = small(scale=1), images(6, 5)
    with torch.no_grad():
        model.reconstruction.last.weight.zero_()
        model.reconstruction.last.bias.zero_()
        torch.testing.assert_close(model(x), x)


def test_windows_as_large_as_training_images_do_not_shift():
    plain, unshifted = small(image_size=5), small(image_size=4)
    assert [block.attention.shift for block in plain.groups[0].blocks] == [0, 2]
    assert [block.attention.shift for block in unshifted.groups[0].blocks] == [0, 0]
    narrow = small(image_size=3)
    assert narrow.groups[0].blocks[0].attention.window == 3 and narrow.groups[0].overlapping.attention.window == 4
    assert narrow.groups[0].blocks[0].attention.position.table.shape == (25, 2)
    assert narrow.tile_multiple == 12 and narrow(images(5, 7)).shape == (2, 3, 10, 14)


def test_stochastic_depth_spares_the_convolutions():
    torch.manual_seed(0)
    config = HATConfig(**SMALL)
    block = HybridBlock(config, heads=2, shift=2, drop_path=1 - 1e-9).double().train()
    x = torch.rand(2, 8, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(block(x), x + block.convolutions(block.attention_norm(x)))


def test_stochastic_depth_grows_over_all_hybrid_blocks():
    model = HATConfig(**(SMALL | {"depths": (2, 3), "drop_path": 0.4})).build(ImageInfo(scale=2))
    rates = [block.drop_path.rate for group in model.groups for block in group.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("hat_s", (9_473_471, 9_658_111, 9_621_183)),
        ("hat", (20_624_795, 20_809_435, 20_772_507)),
        ("hat_l", (40_698_863, 40_883_503, 40_846_575)),
    ],
)
def test_published_numbers_of_parameters(monkeypatch, name, counts):
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **options: tensor)  # slow without numbers
    for scale, count in zip((2, 3, 4), counts, strict=True):
        with torch.device("meta"):
            model = MODELS.get(name)().build(ImageInfo(scale=scale))
        assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.tile_multiple == 16 and model.receptive_radius is None


def test_first_values_are_the_papers():
    torch.manual_seed(0)
    model = HATConfig(width=48, depths=(2,), heads=(4,), window=8, squeeze=6).build(ImageInfo(scale=2))
    block = model.groups[0].blocks[0]
    for tensor in (block.attention.qkv.weight, block.mlp.contract.weight, block.attention.position.table):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.15) and abs(tensor.mean()) < 0.002
    assert (block.attention.qkv.bias == 0).all() and (block.mlp.expand.bias == 0).all()
    bound = 1 / math.sqrt(48 * 9)  # torch's own, for convolutions
    assert block.convolutions.reduce.weight.abs().max().item() == pytest.approx(bound, rel=0.02)


# -- biases that are kept ----------------------------------------------------------------------------------------------


def kept_bias(**options) -> PositionBias:
    torch.manual_seed(0)
    return PositionBias(window=3, heads=2, **options).eval()


@torch.no_grad()
def test_a_bias_is_gathered_once_while_nothing_changes():
    bias = kept_bias(key_window=5)
    assert bias() is bias() and bias().shape == (2, 9, 25)
    assert "_kept" not in bias.state_dict() and list(bias.state_dict()) == ["table"]


@pytest.mark.parametrize(
    "change",
    [
        lambda bias: bias.load_state_dict({"table": torch.ones_like(bias.table)}),
        lambda bias: bias.load_state_dict({"table": torch.ones_like(bias.table)}, assign=True),
        lambda bias: bias.table.data.mul_(2),
        lambda bias: setattr(bias.table, "data", torch.ones_like(bias.table)),
        lambda bias: bias.table.mul_(2),
        lambda bias: bias.double(),
        lambda bias: bias.bfloat16(),
    ],
    ids=["load", "assign", "data", "new data", "in place", "double", "bfloat16"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_kept_bias_follows_its_table(change, mode):
    bias = kept_bias()
    with mode():
        before = bias()
    with torch.no_grad():
        change(bias)
    with mode():
        after = bias()
        fresh = copy.deepcopy(bias)
        fresh._kept = None
        assert after is not before
        assert after.dtype == bias.table.dtype and torch.equal(after, fresh())


def test_training_and_gradients_never_see_a_kept_bias():
    bias = kept_bias()
    with torch.no_grad():
        bias()
    (gradient,) = torch.autograd.grad(bias().sum(), bias.table)
    assert gradient.sum() == 2 * 81
    with torch.no_grad():
        kept = bias()
        assert bias.train()() is not kept and bias._kept is None


def test_predictions_after_an_optimiser_step_are_those_of_the_new_weights():
    model, x = small(dtype=torch.float32), images(dtype=torch.float32)
    with torch.no_grad():
        model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().mean().backward()
    optimizer.step()
    fresh = small(dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), fresh(x))


# -- types, devices, files ---------------------------------------------------------------------------------------------


def test_channels_of_zeros_for_kernels_change_nothing(monkeypatch):
    model, x = small(), images()
    expected = model(x)
    monkeypatch.setattr(hat_attention, "ALIGNMENT", {"cpu": 8})
    torch.testing.assert_close(model(x), expected)


def test_mixed_precision_stays_close():
    model, x = small(dtype=torch.float32), images(dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(x)
    error = (output.float() - expected).abs()
    assert error.mean() < 0.02 * expected.std() and error.max() < 0.2 * expected.std()


def test_checkpointing_changes_no_gradient():
    results = []
    for checkpointing in (False, True):
        model = small(checkpointing=checkpointing, drop_path=0.0).train()
        model(images()).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-12)


def test_empty_batches_pass():
    assert small()(images(batch=0)).shape == (0, 3, 16, 24)


def official(model: HAT) -> dict[str, Tensor]:
    """The weights of a network under their official names."""
    names = {
        "shallow.": "conv_first.",
        "after_body.": "conv_after_body.",
        "patch_norm.": "patch_embed.norm.",
        "positions.table": "absolute_pos_embed",
        "reconstruction.before.": "conv_before_upsample.0.",
        "reconstruction.steps.": "upsample.",
        "reconstruction.last.": "conv_last.",
        "groups.": "layers.",
        ".overlapping.attention.position.table": ".residual_group.overlap_attn.relative_position_bias_table",
        ".overlapping.attention.out.": ".residual_group.overlap_attn.proj.",
        ".overlapping.attention.": ".residual_group.overlap_attn.",
        ".overlapping.": ".residual_group.overlap_attn.",
        ".blocks.": ".residual_group.blocks.",
        ".attention_norm.": ".norm1.",
        ".mlp_norm.": ".norm2.",
        ".attention.position.table": ".attn.relative_position_bias_table",
        ".attention.out.": ".attn.proj.",
        ".attention.": ".attn.",
        ".convolutions.reduce.": ".conv_block.cab.0.",
        ".convolutions.expand.": ".conv_block.cab.2.",
        ".convolutions.squeeze.": ".conv_block.cab.3.attention.1.",
        ".convolutions.excite.": ".conv_block.cab.3.attention.3.",
        ".convolution.": ".conv.",
        ".mlp.expand.": ".mlp.fc1.",
        ".mlp.contract.": ".mlp.fc2.",
    }
    found = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = tensor
    return found


def test_averaged_weights_of_an_official_file_are_read(tmp_path):
    source, model, x = small(), small(image_range=1.0), images()
    buffers = {"relative_position_index_SA": torch.zeros(16, 16), "relative_position_index_OCA": torch.zeros(16, 36)}
    averaged = official(source) | buffers
    torch.save({"params": {key: 0 * t for key, t in averaged.items()}, "params_ema": averaged}, tmp_path / "hat.pth")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = load_official(model, read_weights(tmp_path / "hat.pth"), KEYMAPS["hat"])
    assert report.fits and set(report.dropped) == set(buffers)
    torch.testing.assert_close(model(x), source(x))


@pytest.mark.slow
def test_export_with_any_batch():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, example = small(dtype=torch.float32), images(10, 13, dtype=torch.float32)
    file = io.BytesIO()
    axes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=axes, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for x in (example, images(10, 13, batch=3, dtype=torch.float32)):
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (5, 3)}, r"width=12 must be a multiple of heads=5; try heads=4"),
        ({"heads": (2, 3, 4)}, r"heads=\(2, 3, 4\) must be one number, or one for each of depths=\(2, 1\)"),
        ({"window": 6}, r"overlap=0.5 widens window=6 by 3, which must be even"),
        ({"overlap": -0.5}, r"not negative"),
        ({"compress": 13}, r"compress=13 leaves no features of width=12"),
        ({"image_size": 0}, r"image_size=0"),
        ({"absolute_positions": (0, 4)}, r"absolute_positions=\(0, 4\) must be height and width"),
        ({"upsampler": "residual"}, r"upsampler=residual keeps the size and cannot give scale=2; use classical"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        HATConfig(**(SMALL | options)).build(ImageInfo(scale=2))


def test_scales_that_no_shuffling_gives_are_named():
    with pytest.raises(ConfigError, match=r"upsampler=classical cannot give scale=6; use scale 1, 2, 3, 4, 8"):
        HATConfig(**SMALL).build(ImageInfo(scale=6))
    assert HATConfig(**SMALL, upsampler="light").build(ImageInfo(scale=6))(torch.rand(1, 3, 4, 4)).shape[-1] == 24


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"images of HAT: expected \[batch, 3, height, width\].*got \[2, 1, 8, 12\]"):
        small()(images(channels=1))
