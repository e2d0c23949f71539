"""CRAFT: the network against the paper's formulas, rectangles that wrap, kept biases, any size, weights, export."""

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

from apps.superres.models.config import MODELS
from apps.superres.models.craft import CRAFT
from apps.superres.models.craft_attention import PositionNetwork, RectangleAttention
from apps.superres.models.craft_config import CRAFTConfig
from apps.superres.models.info import ImageInfo
from backbones.attention import force
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from checkpoints.reading import read_weights
from graftwork.errors import ConfigError, ShapeError

SMALL = {"width": 64, "depths": (1,), "heads": (4,), "window": (2, 4)}


def small(scale=2, channels=3, dtype=torch.float64, **options) -> CRAFT:
    """A network whose numbers are all of some size."""
    torch.manual_seed(0)
    model = CRAFTConfig(**(SMALL | options)).build(ImageInfo(scale=scale, channels=channels)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def images(height=8, width=12, batch=2, channels=3, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(height * 31 + width)
    return torch.rand(batch, channels, height, width, generator=generator, dtype=dtype)


# -- the network as the paper and the released code define it ----------------------------------------------------------


def position_bias(network, sides):
    """[h, n, n], at every size, the published one included."""
    height, width = sides
    grid = [(float(y), float(x)) for y in range(1 - height, height) for x in range(1 - width, width)]
    logits = network.embed(torch.tensor(grid, dtype=network.embed.weight.dtype))
    for norm, _, linear in network.layers:
        logits = linear(F.relu(F.layer_norm(logits, logits.shape[-1:], norm.weight, norm.bias, 1e-5)))
    y, x = (places.flatten() for places in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    index = (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1
    return logits[index].permute(2, 0, 1)


def rectangles(q, k, v, sides, shift, heads, bias, scale):
    """Half the features, [B, H, W, D / 2] each."""
    batch, height, width, channels = q.shape
    rows, columns = height // sides[0], width // sides[1]

    def cut(x):
        x = x.roll((-shift[0], -shift[1]), (1, 2)).view(batch, rows, sides[0], columns, sides[1], heads, -1)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, sides[0] * sides[1], channels // heads)

    q, k, v = cut(q), cut(k), cut(v)
    weights = torch.softmax((q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-2, -1) + bias, -1)
    mixed = (weights @ v).view(batch, rows, columns, heads, *sides, -1).permute(0, 1, 4, 2, 5, 3, 6)
    return mixed.reshape(batch, height, width, channels).roll(shift, (1, 2))


def rectangle_block(block, x, config, heads, shifted):
    attention, (short, long) = block.attention, config.window
    q, k, v = attention.qkv(block.attention_norm(x)).chunk(3, -1)
    local = attention.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    halves = []
    for half, sides in enumerate([(short, long), (long, short)]):
        parts = [tensor.chunk(2, -1)[half] for tensor in (q, k, v)]
        shift = (sides[0] // 2, sides[1] // 2) if shifted else (0, 0)
        bias = position_bias(attention.positions[half], sides)
        halves.append(rectangles(*parts, sides, shift, heads // 2, bias, config.qk_scale))
    x = x + attention.out(torch.cat(halves, -1) + local)
    return x + block.mlp.contract(F.gelu(block.mlp.expand(block.mlp_norm(x))))


def frequency_block(block, x):
    first, second = x.chunk(2, 1)
    first = F.gelu(block.convolution(first))
    second = F.gelu(block.peaks(F.max_pool2d(second, 3, 1, 1)))
    return block.out(torch.cat([first, second], 1)) + x


def channel_norm(norm, x):
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight[:, None, None] + norm.bias[:, None, None]


def fusion_block(block, low, high, heads):
    attention, network = block.attention, block.mlp
    q = attention.q_depthwise(attention.q(high))
    k, v = attention.kv_depthwise(attention.kv(channel_norm(block.attention_norm, low))).chunk(2, 1)
    q, k, v = (tensor.reshape(len(q), heads, -1, q.shape[2] * q.shape[3]) for tensor in (q, k, v))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    mixed = torch.softmax(q @ k.transpose(-2, -1) * attention.temperature, -1) @ v
    x = low + attention.out(mixed.reshape(low.shape))
    gate, value = network.depthwise(network.expand(channel_norm(block.mlp_norm, x))).chunk(2, 1)
    return x + network.contract(F.gelu(gate) * value)


def by_formula(model: CRAFT, x: Tensor) -> Tensor:
    """For sides that are multiples of the rectangle's."""
    config = model.config
    mean = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None].to(x)
    first = model.shallow((x - mean) * config.image_range)
    y = first
    for group, heads in zip(model.groups, config.group_heads, strict=True):
        z = y
        for index, (frequencies, fusion) in enumerate(zip(group.frequencies, group.fusions, strict=True)):
            low = z.permute(0, 2, 3, 1)
            for shifted in (False, True):
                low = rectangle_block(group.rectangles[2 * index + shifted], low, config, heads, shifted)
            z = fusion_block(fusion, low.permute(0, 3, 1, 2), frequency_block(frequencies, z), heads)
        y = y + group.convolution(z)
    features = first + model.after_body(channel_norm(model.norm, y))
    return model.reconstruction.steps(features) / config.image_range + mean


@settings(max_examples=6)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 2),
    scale=st.sampled_from([2, 3, 4]),
    options=st.sampled_from(
        [
            {},
            {"width": 96, "window": (2, 3), "image_range": 2.0},
            {"width": 32, "heads": (2, 4), "depths": (1, 2), "qkv_bias": False},
            {"group_convolution": False, "qk_scale": 0.7, "mlp_ratio": 1.5, "gate_ratio": 1.3},
            {"width": 33 * 2, "heads": (6,), "window": (3, 1)},
        ]
    ),
)
def test_formula_in_values_and_gradients(rows, columns, scale, options):
    model = small(scale=scale, **options)
    x = images(rows * model.tile_multiple, columns * model.tile_multiple)
    results = []
    for run in (model, lambda x: by_formula(model, x)):
        output = run(x)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        results.append([output, *torch.autograd.grad((output * output.detach().cos()).sum(), learned)])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-8, atol=1e-8)


def test_published_size_equals_the_formula_with_its_biases():
    torch.manual_seed(0)
    model = CRAFTConfig(depths=(1,), heads=(6,)).build(ImageInfo(scale=4)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        torch.testing.assert_close(model(images(16, 32)), by_formula(model, images(16, 32)))


@pytest.mark.parametrize(("width", "heads"), [(6, 2), (16, 2), (20, 5), (24, 3), (48, 3)])
def test_narrow_networks_and_odd_heads_equal_the_formula(width, heads):
    model, x = small(width=width, heads=(heads,), depths=(2,)), images()
    assert model.groups[0].rectangles[0].attention.heads == heads // 2
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_formula(model, x))


def test_literal_attention_gives_the_same():
    model, x = small(), images(7, 10)
    with torch.no_grad():
        fast = model(x)
        with force("math"):
            torch.testing.assert_close(model(x), fast)


def test_shifted_rectangles_wrap_around_the_map():
    """Moving the map around itself moves the result, as far as it is a multiple of the rectangles' sides."""
    torch.manual_seed(0)
    attention = RectangleAttention(CRAFTConfig(**SMALL), heads=4, shifted=True).double().eval()
    torch.nn.init.zeros_(attention.local.weight)  # zeros around the map, which do not move
    x = torch.randn(1, 8, 8, 64, dtype=torch.float64)
    moved = attention(x.roll((4, 4), (1, 2)))
    torch.testing.assert_close(moved, attention(x).roll((4, 4), (1, 2)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_scale_and_channels(scale, channels):
    model = small(scale=scale, channels=channels, dtype=torch.float32, width=32, window=(4, 8))
    with torch.no_grad():
        for height, width in ((1, 1), (5, 7), (17, 3), (8, 16)):
            output = model(images(height, width, channels=channels, dtype=torch.float32))
            assert output.shape == (2, channels, scale * height, scale * width)
            assert output.isfinite().all()


def test_images_are_mirrored_to_common_multiples_of_both_sides():
    model, x = small(window=(2, 3)), images(11, 10)
    assert model.tile_multiple == 6 and model.receptive_radius is None
    with torch.no_grad():
        padded = model(F.pad(x, (0, 2, 0, 1), mode="reflect"))
        torch.testing.assert_close(model(x), padded[..., :22, :20])


def test_scale_one_restores_by_a_correction_of_the_input():
    model, x = small(scale=1), images(6, 5)
    with torch.no_grad():
        model.reconstruction.last.weight.zero_()
        model.reconstruction.last.bias.zero_()
        torch.testing.assert_close(model(x), x)


@pytest.mark.parametrize(("scale", "count"), [(2, 737_756), (3, 744_251), (4, 753_344)])
def test_published_numbers_of_parameters(scale, count):
    with torch.device("meta"):
        model = MODELS.get("craft")().build(ImageInfo(scale=scale))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.tile_multiple == 16 and model.receptive_radius is None


def test_first_values_are_the_papers():
    torch.manual_seed(0)
    model = CRAFTConfig(width=64, depths=(1,), heads=(4,)).build(ImageInfo(scale=2))
    block, fusion = model.groups[0].rectangles[0], model.groups[0].fusions[0]
    for tensor in (block.attention.qkv.weight, block.mlp.contract.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1) and abs(tensor.mean()) < 0.002
    assert (block.attention.qkv.bias == 0).all() and (fusion.attention.temperature == 1).all()
    bound = 1 / math.sqrt(64)  # torch's own, for convolutions
    assert fusion.attention.q.weight.abs().max().item() == pytest.approx(bound, rel=0.02)


# -- biases of positions -----------------------------------------------------------------------------------------------


def position(width=3, heads=2, window=(2, 3)) -> PositionNetwork:
    torch.manual_seed(0)
    network = PositionNetwork(width, heads, window).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


def test_a_network_on_one_feature_gives_every_offset_the_same():
    network = position(width=1)
    table = network.table()
    assert network.embed.weight.abs().sum() > 0
    assert torch.equal(table, table[:1].expand_as(table)) and network() is None
    assert not any(parameter.requires_grad for parameter in network.parameters())
    empty = position(width=0)
    (last,) = [parameter for name, parameter in empty.named_parameters() if name == "layers.2.2.bias"]
    assert torch.equal(empty.table(), last.expand(15, 2)) and empty() is None
    assert not any(parameter.requires_grad for parameter in empty.parameters())
    wider = position(width=8)
    assert all(parameter.requires_grad for parameter in wider.parameters())
    assert wider.table().std(0).min() > 0.01


@torch.no_grad()
def test_a_bias_is_made_once_while_nothing_changes():
    network = position()
    keys = set(network.state_dict())
    assert network() is network() and network().shape == (2, 6, 6)
    assert set(network.state_dict()) == keys
    torch.testing.assert_close(network(), position_bias(network, (2, 3)))


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.load_state_dict({k: t + 1 for k, t in network.state_dict().items()}),
        lambda network: network.load_state_dict({k: t + 1 for k, t in network.state_dict().items()}, assign=True),
        lambda network: network.layers[1][2].weight.data.mul_(2),
        lambda network: network.embed.weight.mul_(2),
        lambda network: network.double(),
        lambda network: network.bfloat16(),
    ],
    ids=["load", "assign", "data", "in place", "double", "bfloat16"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_kept_bias_follows_its_network(change, mode):
    network = position()
    with mode():
        before = network()
    with torch.no_grad():
        change(network)
    with mode():
        after = network()
        fresh = copy.deepcopy(network)
        fresh._kept = None
        assert after is not before
        assert after.dtype == network.embed.weight.dtype and torch.equal(after, fresh())


def test_training_and_gradients_never_see_a_kept_bias():
    network = position()
    with torch.no_grad():
        network()
    (gradient,) = torch.autograd.grad(network().sum(), network.layers[2][2].bias)
    assert gradient.tolist() == [36, 36]
    with torch.no_grad():
        kept = network()
        assert network.train()() is not kept and network._kept is None


def test_autocast_does_not_keep_a_coarser_bias():
    network = position()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = network()
        fine = network()
    assert coarse.dtype == torch.bfloat16 and fine.dtype == torch.float32
    torch.testing.assert_close(fine, position_bias(network, (2, 3)))


# -- types, devices, files ---------------------------------------------------------------------------------------------


def test_mixed_precision_stays_close():
    model, x = small(dtype=torch.float32, width=96), images(dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(x)
    error = (output.float() - expected).abs()
    assert error.mean() < 0.05 * expected.std() and error.max() < 0.3 * expected.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_types_stay_close(dtype):
    model, x = small(dtype=torch.float32, width=96), images(dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        output = model.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    error = (output.float() - expected).abs()
    assert error.mean() < 0.05 * expected.std() and error.max() < 0.3 * expected.std()


@pytest.mark.slow
def test_compiled_as_one_graph():
    model, x = small(dtype=torch.float32), images(9, 11, dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_checkpointing_changes_no_gradient():
    results = []
    for checkpointing in (False, True):
        model = small(checkpointing=checkpointing, depths=(2,)).train()
        model(images()).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-12)


def test_every_learned_parameter_of_the_published_size_gets_a_gradient():
    model = small(width=32, dtype=torch.float32).train()
    model(images(dtype=torch.float32)).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without and all(".positions." in name for name in without)


def test_empty_batches_pass():
    assert small()(images(batch=0)).shape == (0, 3, 16, 24)


def test_images_do_not_see_each_other():
    model, x = small(), images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def official(model: CRAFT) -> dict[str, Tensor]:
    """The weights of a network under their official names."""
    names = {
        "shallow.": "conv_first.",
        "after_body.": "conv_after_body.",
        "reconstruction.steps.": "upsample.",
        "groups.": "layers.",
        ".rectangles.": ".residual_group.srwa_blocks.",
        ".frequencies.": ".residual_group.hfer_blocks.",
        ".fusions.": ".residual_group.hf_blocks.",
        ".attention.positions.0.": ".attns.0.pos.",
        ".attention.positions.1.": ".attns.1.pos.",
        ".pos.embed.": ".pos.pos_proj.",
        ".pos.layers.0.": ".pos.pos1.",
        ".pos.layers.1.": ".pos.pos2.",
        ".pos.layers.2.": ".pos.pos3.",
        ".attention.q.": ".attn.q.",
        ".attention.q_depthwise.": ".attn.q_dwconv.",
        ".attention.kv.": ".attn.kv.",
        ".attention.kv_depthwise.": ".attn.kv_dwconv.",
        ".attention.temperature": ".attn.temperature",
        ".attention.qkv.": ".qkv.",
        ".attention.local.": ".get_v.",
    }
    found = {}
    for key, tensor in model.state_dict().items():
        fusion, frequency = ".fusions." in key, ".frequencies." in key
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if fusion:
            key = key.replace(".attention.out.", ".attn.project_out.").replace(".mlp.expand.", ".ffn.project_in.")
            key = key.replace(".mlp.depthwise.", ".ffn.dwconv.").replace(".mlp.contract.", ".ffn.project_out.")
            key = key.replace(".attention_norm.", ".norm1.body.").replace(".mlp_norm.", ".norm2.body.")
        elif frequency:
            key = key.replace(".convolution.", ".conv.").replace(".peaks.", ".fc.").replace(".out.", ".last_fc.")
        else:
            key = key.replace(".attention.out.", ".proj.").replace(".convolution.", ".conv.")
            key = key.replace(".mlp.expand.", ".mlp.fc1.").replace(".mlp.contract.", ".mlp.fc2.")
            key = key.replace(".attention_norm.", ".norm1.").replace(".mlp_norm.", ".norm2.")
        found["norm.body." + key[5:] if key.startswith("norm.") else key] = tensor
    return found


@pytest.mark.parametrize("options", [{}, {"width": 16, "heads": (2,)}, {"width": 24, "heads": (3,)}])
def test_weights_of_an_official_file_are_read(tmp_path, options):
    source, model, x = small(**options), small(**options), images()
    last = official(source)["layers.0.residual_group.srwa_blocks.0.attns.1.pos.pos3.2.weight"]
    assert last.shape == (source.config.heads[0] // 2, source.config.width // 32)
    buffers = {f"{name}_{half}": torch.zeros(8, 8) for name in ("relative_position_index", "biases") for half in "hv"}
    torch.save({"params": official(source) | buffers}, tmp_path / "craft.pth")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = load_official(model, read_weights(tmp_path / "craft.pth"), KEYMAPS["craft"])
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
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (6,)}, r"width=64 must be a multiple of heads=6; try heads=4"),
        ({"heads": (1,)}, r"heads=1 must be at least 2, .*; try heads=2"),
        ({"width": 30, "heads": (5,)}, r"half of it, rounded down, must divide 15, half of width=30; try heads=6"),
        ({"heads": (2, 4, 4)}, r"heads=\(2, 4, 4\) must be one number, or one for each of depths=\(1,\)"),
        ({"width": 33, "heads": (3,)}, r"width=33 must be even: each half of the features"),
        ({"window": (0, 4)}, r"window=\(0, 4\) must be height and width"),
        ({"gate_ratio": 0.01}, r"gate_ratio=0.01 leaves no features of width=64"),
        ({"upsampler": "residual"}, r"upsampler=residual keeps the size and cannot give scale=2; use light"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        CRAFTConfig(**(SMALL | options)).build(ImageInfo(scale=2))


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"images of CRAFT: expected \[batch, 3, height, width\].*got \[2, 1, 8, 12\]"):
        small()(images(channels=1))
