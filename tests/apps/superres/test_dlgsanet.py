"""DLGSANet: the network against the paper's formulas, its blocks and crops, any size, weights, export."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.superres.models.config import MODELS
from apps.superres.models.dlgsanet import DLGSANet
from apps.superres.models.dlgsanet_attention import ChannelSelfAttention, DynamicAttention, crop_starts
from apps.superres.models.dlgsanet_config import DLGSANetConfig
from apps.superres.models.info import ImageInfo
from backbones.attention import force
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from checkpoints.reading import read_weights
from graftwork.errors import ConfigError, ShapeError

SMALL = {"width": 12, "depths": (2, 1), "kernel": 3, "group_width": 3, "heads": 2, "crop": 5}
BLOCKS = ("sparseedge", "edge", "idynamic", "restormer")
WEIGHTS = {"relu": torch.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "softmax": lambda x: torch.softmax(x, -1)}


def small(scale=2, channels=3, dtype=torch.float64, **options) -> DLGSANet:
    """A network of two groups whose numbers are all of some size."""
    torch.manual_seed(0)
    model = DLGSANetConfig(**(SMALL | options)).build(ImageInfo(scale=scale, channels=channels)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def images(height=7, width=11, batch=2, channels=3, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(height * 31 + width)
    return torch.rand(batch, channels, height, width, generator=generator, dtype=dtype)


# -- the network as the paper and the released code define it, on [B, D, H, W] and one image at a time -----------------


def normed(norm, x: Tensor) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def dynamic(attention, x: Tensor, config: DLGSANetConfig) -> Tensor:
    """Windows by shifting the padded map; a kernel for each position and group."""
    net, y = attention.convolution, attention.value(x)
    if not config.dynamic:
        return attention.out(F.conv2d(y, net.weight, net.bias, padding=config.kernel // 2, groups=config.width))
    kernels = net.kernels(net.depthwise(net.reduce(y)))
    kernels = kernels.unflatten(1, (-1, config.kernel, config.kernel))
    margin, (height, width) = config.kernel // 2, x.shape[2:]
    padded, out = F.pad(y, (margin,) * 4), []
    for channel in range(config.width):
        own = kernels[:, channel // config.group_width]
        out.append(
            sum(
                own[:, i, j] * padded[:, channel, i : i + height, j : j + width]
                for i in range(config.kernel)
                for j in range(config.kernel)
            )
        )
    return attention.out(torch.stack(out, 1))


def global_attention(attention, qkv: Tensor, config: DLGSANetConfig) -> Tensor:
    """Before the projection."""
    height, width = qkv.shape[2:]
    q, k, v = (part.unflatten(1, (config.heads, -1)).flatten(3) for part in qkv.chunk(3, 1))
    cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    weights = WEIGHTS[config.global_activation](cosines * attention.temperature)
    return (weights @ v).flatten(1, 2).unflatten(2, (height, width))


def in_crops(attention, qkv: Tensor, config: DLGSANetConfig) -> Tensor:
    """As the released code goes: row by row until a crop reaches the border."""
    (height, width), side = qkv.shape[2:], config.crop
    sides = (min(height, side), min(width, side))
    steps = []
    for length, crop in zip((height, width), sides, strict=True):
        number = (length - 1) // crop + 1
        steps.append(crop if number == 1 else math.ceil((length - crop) / (number - 1) - 1e-8))
    total, count = torch.zeros_like(qkv[:, : config.width]), torch.zeros(height, width, dtype=qkv.dtype)
    top = 0
    while True:
        top, left = min(top, height - sides[0]), 0
        while True:
            left = min(left, width - sides[1])
            place = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
            total[place] = total[place] + global_attention(attention, qkv[place], config)
            count[place] += 1
            if left == width - sides[1]:
                break
            left += steps[1]
        if top == height - sides[0]:
            return total / count
        top += steps[0]


def gated(mlp, x: Tensor) -> Tensor:
    first, second = mlp.depthwise(mlp.expand(x)).chunk(2, 1)
    return mlp.contract(F.gelu(first) * second)


def by_formula(model: DLGSANet, images: Tensor, cut: bool) -> Tensor:
    config = model.config
    mean = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None].to(images)
    first = model.shallow((images - mean) * config.image_range)
    x, modules = first, list(model.body)
    if config.body_norm:
        x, modules, last_norm = normed(modules[0], x), modules[1:-1], modules[-1]
    for group in modules:
        y = x
        for layer in group.layers:
            own = normed(layer.attention_norm, y)
            if isinstance(layer.attention, DynamicAttention):
                y = y + dynamic(layer.attention, own, config)
            else:
                qkv = layer.attention.qkv_depthwise(layer.attention.qkv(own))
                mix = in_crops if cut else global_attention
                y = y + layer.attention.out(mix(layer.attention, qkv, config))
            y = y + gated(layer.mlp, normed(layer.mlp_norm, y))
        x = x + group.convolution(y)
    if config.body_norm:
        x = normed(last_norm, x)
    return model.reconstruction(first + model.after_body(x)) / config.image_range + mean


@settings(max_examples=8)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    training=st.booleans(),
    options=st.sampled_from(
        [
            {},
            {"activation": "gelu", "crop": 3, "image_range": 2.0},
            {"activation": "sigmoid", "kernel": 5, "group_width": 12, "body_norm": True},
            {"block": "edge", "global_mlp_ratio": 1.5, "group_width": 1},
            {"block": "edge", "local_crops": True, "crop": 4},
            {"block": "idynamic", "kernel": 1, "squeeze": 3},
            {"block": "restormer", "heads": 4},
            {"local_crops": False, "mlp_ratio": 1.0},
            {"dynamic": False, "group_width": 5, "kernel": 5},
        ]
    ),
)
def test_formula_in_values_and_gradients(height, width, training, options):
    model = small(**options).train(training)
    x, config = images(height, width), model.config
    cut = not training and (
        config.local_crops is True or (config.local_crops == "auto" and config.block == "sparseedge")
    )
    results = []
    for run in (model, lambda x: by_formula(model, x, cut)):
        output = run(x)
        results.append([output, *torch.autograd.grad((output * output.detach().cos()).sum(), model.parameters())])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-8, atol=1e-8)


def test_literal_operators_give_the_same():
    model, x = small(), images()
    with torch.no_grad():
        fast = model(x)
        with force("math"):
            torch.testing.assert_close(model(x), fast)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_scale_and_channels(scale, channels):
    model = small(scale=scale, channels=channels, dtype=torch.float32, kernel=7)
    assert model.tile_multiple == 1 and model.receptive_radius is None
    with torch.no_grad():
        for height, width in ((1, 1), (2, 7), (17, 3)):
            output = model(images(height, width, channels=channels, dtype=torch.float32))
            assert output.shape == (2, channels, scale * height, scale * width)
            assert output.isfinite().all()


def test_scale_one_restores_by_a_correction_of_the_input():
    model, x = small(scale=1), images(6, 5)
    with torch.no_grad():
        model.reconstruction.last.weight.zero_()
        model.reconstruction.last.bias.zero_()
        torch.testing.assert_close(model(x), x)


# -- crops -------------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 300), side=st.integers(1, 120))
def test_crops_cover_an_axis_at_equal_steps(length, side):
    side = min(side, length)
    starts = crop_starts(length, side)
    assert len(starts) == math.ceil(length / side) and starts[0] == 0 and starts[-1] == length - side
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < step <= side for step in steps)
    assert len(set(steps[:-1])) <= 1 and (not steps[:-1] or steps[-1] <= steps[0])


def test_images_of_a_batch_do_not_meet_in_crops():
    model, x = small(), images(13, 9, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image) for image in x.split(1)]))


def test_crops_are_for_evaluation_and_for_images_larger_than_they_are():
    cut, whole = small(), small(local_crops=False)
    with torch.no_grad():
        torch.testing.assert_close(cut(images(5, 4)), whole(images(5, 4)))
        assert not torch.allclose(cut(images(5, 6)), whole(images(5, 6)))
        torch.testing.assert_close(cut.train()(images(5, 6)), whole(images(5, 6)))


@pytest.mark.parametrize(
    ("options", "crops"),
    [
        ({}, (96, 96, 72, 48, 48)),
        ({"crop": 64}, (64,) * 5),
        ({"local_crops": False, "crop": 64}, (None,) * 5),
        ({"block": "edge"}, (None,) * 5),
        ({"block": "restormer", "local_crops": True}, (96, 96, 72, 48, 48)),
    ],
)
def test_published_sides_of_crops(options, crops):
    config = DLGSANetConfig(**options)
    assert tuple(config.resolved_crop(scale) for scale in (1, 2, 3, 4, 8)) == crops
    if config.has_global_layers:
        model = DLGSANetConfig(**(SMALL | {"crop": None} | options)).build(ImageInfo(scale=3, channels=3))
        found = {module.crop for module in model.modules() if isinstance(module, ChannelSelfAttention)}
        assert found == {crops[2]}


# -- sizes, types, files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dlgsanet_tiny", (565_710, 572_205, 581_298)),
        ("dlgsanet_light", (745_188, 751_683, 760_776)),
        ("dlgsanet", (4_733_724, 4_745_889, 4_762_920)),
    ],
)
def test_published_numbers_of_parameters(name, counts):
    for scale, count in zip((2, 3, 4), counts, strict=True):
        with torch.device("meta"):
            model = MODELS.get(name)().build(ImageInfo(scale=scale, channels=3))
        assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("block", BLOCKS)
def test_layers_of_blocks(block):
    layers = small(block=block, depths=(2,)).body[0].layers
    kinds = [type(layer.attention) for layer in layers]
    expected = {"idynamic": [DynamicAttention], "restormer": [ChannelSelfAttention]}
    assert kinds == 2 * expected.get(block, [DynamicAttention, ChannelSelfAttention])


def test_mixed_precision_stays_close():
    model, x = small(dtype=torch.float32), images(dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(x)
    error = (output.float() - expected).abs()
    assert error.mean() < 0.02 * expected.std() and error.max() < 0.2 * expected.std()


def test_half_types():
    model, x = small(dtype=torch.float32), images(dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        output = model.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().mean() < 0.05 * expected.std()


def test_checkpointing_changes_no_gradient():
    results = []
    for checkpointing in (False, True):
        model = small(checkpointing=checkpointing).train()
        model(images()).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-12)


def test_empty_batches_pass():
    assert small()(images(batch=0)).shape == (0, 3, 14, 22)


def test_compiled_without_a_break():
    model, x = small(dtype=torch.float32, depths=(1,)), images(dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def official(model: DLGSANet) -> dict[str, Tensor]:
    """The weights of a network under their official names."""
    names = {
        ".attention.convolution.weight": ".IDynamicDWConv.conv.weight",
        ".attention.convolution.bias": ".IDynamicDWConv.conv.bias",
        ".attention.convolution.reduce.": ".IDynamicDWConv.conv.conv1.0.",
        ".attention.convolution.depthwise.": ".IDynamicDWConv.conv.conv1.1.",
        ".attention.convolution.kernels.": ".IDynamicDWConv.conv.conv2.0.",
        ".attention.value.": ".IDynamicDWConv.conv0.",
        ".attention.qkv_depthwise.": ".restormer_attn.qkv_dwconv.",
        ".mlp.expand.": "ffn.project_in.",
        ".mlp.depthwise.": "ffn.dwconv.",
        ".mlp.contract.": "ffn.project_out.",
        "shallow.": "overlap_embed.0.proj.",
        "reconstruction.steps.": "upsample.",
        "after_body.": f"deep_feature_extraction.{len(model.body)}.",
    }
    found = {}
    for key, tensor in model.state_dict().items():
        local = ".layers." in key and isinstance(
            model.get_submodule(".".join(key.split(".")[:4])).attention, DynamicAttention
        )
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        key = key.replace(".attention.out.", ".IDynamicDWConv.conv1." if local else ".restormer_attn.project_out.")
        key = key.replace(".attention.", ".restormer_attn.")
        key = key.replace("ffn.", ".IDynamic_ffn." if local else ".restormer_ffn.")
        key = key.replace(".attention_norm.", ".norm1.body." if local else ".norm3.body.")
        key = key.replace(".mlp_norm.", ".norm2.body." if local else ".norm4.body.")
        if key.startswith("body."):
            _, number, rest = key.split(".", 2)
            rest = rest.removeprefix("layers.")
            if rest.startswith("convolution."):
                rest = rest.replace("convolution", str(len(model.body[int(number)].layers)))
            key = f"deep_feature_extraction.{number}.body.{rest}"
        found[key] = tensor
    return found


@pytest.mark.parametrize(
    "options", [{}, {"body_norm": True}, {"block": "restormer"}, {"block": "idynamic"}, {"dynamic": False}]
)
def test_official_weights_are_read(tmp_path, options):
    source, model, x = small(**options), small(image_range=1.0, **options), images()
    averaged = official(source)
    assert all(key.startswith(("overlap_embed.", "deep_feature_extraction.", "upsample.0.")) for key in averaged)
    torch.save({"params": {key: 0 * t for key, t in averaged.items()}, "params_ema": averaged}, tmp_path / "net.pth")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = load_official(model, read_weights(tmp_path / "net.pth"), KEYMAPS["dlgsanet"])
    assert report.fits and not report.dropped
    torch.testing.assert_close(model(x), source(x))


@pytest.mark.slow
def test_export_with_any_batch():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, example = small(dtype=torch.float32, depths=(1,)), images(dtype=torch.float32)
    file = io.BytesIO()
    axes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=axes, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for x in (example, images(batch=3, dtype=torch.float32)):
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_export_with_any_size_where_whole_images_are_compared():
    model = small(dtype=torch.float32, depths=(1,), local_crops=False)
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    axes = {0: batch, 2: height, 3: width}
    exported = torch.export.export(model, (images(dtype=torch.float32),), dynamic_shapes=(axes,), strict=False)
    x = images(9, 6, batch=3, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, r"kernel=4 must be odd; try kernel=5"),
        ({"group_width": 5}, r"width=12 must be a multiple of group_width=5; try group_width=4"),
        ({"heads": 0}, r"width=12 must be a multiple of heads=0; try heads=1"),
        ({"squeeze": 13}, r"squeeze=13 leaves no features of width=12"),
        ({"global_mlp_ratio": 0.01}, r"global_mlp_ratio=0.01 leaves no features of width=12"),
        ({"crop": 0}, r"crop=0 must be at least 1; local_crops=false compares whole images"),
        ({"depths": ()}, r"depths=\(\) must be"),
        ({"upsampler": "residual"}, r"upsampler=residual keeps the size and cannot give scale=2; use light"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        DLGSANetConfig(**(SMALL | options)).build(ImageInfo(scale=2, channels=3))


def test_images_that_do_not_fit_are_named():
    with pytest.raises(
        ShapeError, match=r"images of DLGSANet: expected \[batch, 3, height, width\].*got \[2, 1, 7, 11\]"
    ):
        small()(images(channels=1))
