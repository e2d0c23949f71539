"""CFSR: its forms against the paper's formulas, published weights, any size, tiles, export."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.superres.models.cfsr import CFSR, EdgeConvolution
from apps.superres.models.cfsr_config import CFSRConfig
from apps.superres.models.info import ImageInfo
from apps.superres.quality import psnr
from apps.superres.tiles import restore_in_tiles
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from checkpoints.reading import read_weights
from datamodules.superres.image import load_pixels
from graftwork.errors import ConfigError, ShapeError, WeightsError

# row by row, from the published weights
SOBEL_X = torch.tensor([[0, 1, -1], [2, 0, -2], [1, 0, -1]])
SOBEL_Y = torch.tensor([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
LAPLACIAN = torch.tensor([[1, 0, 0], [1, -4, 1], [0, 1, 0]])
SET5 = {2: 38.0696, 3: 34.5018, 4: 32.3277}


def small(scale=2, channels=3, dtype=torch.float64, **options) -> CFSR:
    """A network of two layers whose numbers are all of some size."""
    options = {"width": 6, "depths": (2, 1), "kernel": 5, "upsampler": "auto"} | options
    torch.manual_seed(0)
    model = CFSRConfig(**options).build(ImageInfo(scale=scale, channels=channels)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model.eval()


def images(height=9, width=7, batch=2, channels=3, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(height * 31 + width)
    return torch.rand(batch, channels, height, width, generator=generator, dtype=dtype)


def norm(x, layer):
    mean = x.mean(1, keepdim=True)
    deviation = torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + 1e-6)
    return layer.weight[:, None, None] * (x - mean) / deviation + layer.bias[:, None, None]


def depthwise(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def edges(u, layer):
    """Four convolutions side by side."""
    total = depthwise(u, layer.weight, layer.bias)
    for mask, scale, bias in zip((SOBEL_X, SOBEL_Y, LAPLACIAN), layer.edge_scales, layer.edge_biases, strict=True):
        total = total + depthwise(u, scale[:, None, None, None] * mask, bias)
    return total


def by_formula(model: CFSR, x: Tensor) -> Tensor:
    mean = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None].to(x.dtype)
    first = z = model.shallow(x - mean)
    for layer in model.layers:
        for block in layer.blocks:
            m, f = block.modulation, block.feedforward
            y = norm(z, m.norm)
            weights = depthwise(F.gelu(m.gate(y)), m.depthwise.weight, m.depthwise.bias)
            z = z + block.modulation_scale[:, None, None] * m.out(weights * m.value(y))
            u = F.gelu(f.expand(norm(z, f.norm)))
            z = z + block.feedforward_scale[:, None, None] * f.contract(u + F.gelu(edges(u, f.edges)))
        z = z + layer.convolution(z)
    features = first + model.after_body(norm(z, model.norm))
    convolution = model.reconstruction.steps[0]
    return F.pixel_shuffle(convolution(features), model.scale) + mean


@settings(max_examples=5)
@given(height=st.integers(1, 9), width=st.integers(1, 9), kernel=st.sampled_from([1, 3, 9]), scale=st.integers(2, 4))
def test_formula_in_values_and_gradients(height, width, kernel, scale):
    model, x = small(scale=scale, kernel=kernel), images(height, width)
    results = []
    for run in (model, lambda x: by_formula(model, x)):
        output = run(x)
        results.append([output, *torch.autograd.grad((output * output.detach().cos()).sum(), model.parameters())])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-10)


@settings(max_examples=5)
@given(height=st.integers(1, 9), width=st.integers(1, 9), form=st.sampled_from(["branches", "merged"]))
def test_merged_network_is_the_same_function(height, width, form):
    model, x = small(edges=form, mlp_ratio=1.5), images(height, width)
    merged = model.merge()
    expected = model(x)
    torch.testing.assert_close(merged(x), expected, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), expected, rtol=1e-11, atol=1e-12)


def test_merging_leaves_the_network_alone_and_keeps_device_and_type():
    model = small(dtype=torch.float32).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = model.merge()
    assert not merged.training and model.training
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (merged.scale, merged.channels, merged.receptive_radius) == (2, 3, model.receptive_radius)
    x = images(16, 16, dtype=torch.float32)
    torch.testing.assert_close(merged(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_merged_network_leaves_its_input_alone_and_has_gradients():
    merged, x = small().merge(), images().requires_grad_()
    before = x.detach().clone()
    (gradient,) = torch.autograd.grad(merged(x).square().sum(), x)
    (expected,) = torch.autograd.grad(small()(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        merged(x)
    assert torch.equal(x, before)


def test_edge_branches_have_gradients_and_merged_edges_have_none():
    convolution = EdgeConvolution(4)
    convolution(torch.rand(1, 4, 5, 5)).sum().backward()
    assert convolution.edge_scales.grad is not None and convolution.edge_biases.grad is not None
    assert [name for name, _ in EdgeConvolution(4, branches=False).named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_scale_and_channels(scale, channels):
    model = small(scale=scale, channels=channels, dtype=torch.float32)
    with torch.no_grad():
        for network in (model, model.merge()):
            for height, width in ((1, 1), (5, 7), (16, 3)):
                output = network(images(height, width, channels=channels, dtype=torch.float32))
                assert output.shape == (2, channels, scale * height, scale * width)
                assert output.isfinite().all()


@pytest.mark.parametrize(("scale", "upsampler"), [(1, "auto"), (2, "light"), (3, "classical"), (4, "classical")])
def test_an_output_pixel_depends_on_the_pixels_within_the_radius(scale, upsampler):
    model = small(scale=scale, upsampler=upsampler, depths=(1,))
    side = 2 * model.receptive_radius + 5
    x = images(side, side, batch=1).requires_grad_()
    middle = side // 2
    cell = model(x)[..., middle * scale : (middle + 1) * scale, middle * scale : (middle + 1) * scale]
    (gradient,) = torch.autograd.grad(cell.sum(), x)
    rows = gradient.abs().amax((0, 1, 3)).nonzero().flatten()
    assert [int(rows[0]), int(rows[-1])] == [middle - model.receptive_radius, middle + model.receptive_radius]


def test_tiles_with_the_radius_as_margin_equal_one_pass():
    model, x = small(dtype=torch.float32), images(70, 45, batch=1, dtype=torch.float32)
    with torch.no_grad():
        whole = model(x)
        tiled = restore_in_tiles(model, x, 2, tile=2 * model.receptive_radius + 12, margin=model.receptive_radius)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "count"), [(2, 291_324), (3, 297_819), (4, 306_912)])
def test_published_number_of_parameters(scale, count):
    model = CFSRConfig(edges="merged").build(ImageInfo(scale=scale))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.receptive_radius == 63 and model.tile_multiple == 1


def test_new_networks_begin_near_their_convolutions():
    torch.manual_seed(0)
    model = CFSRConfig(width=8, depths=(1,)).build(ImageInfo(scale=2))
    block = model.layers[0].blocks[0]
    assert (block.modulation_scale == 1e-6).all() and (block.feedforward_scale == 1e-6).all()
    assert block.feedforward.edges.edge_scales.std() < 3e-3
    assert block.feedforward.edges.edge_biases.std() < 3e-3


def official(model: CFSR) -> dict[str, Tensor]:
    """The weights of a network without branches under their official names."""
    names = {
        "shallow.": "conv_first.",
        "after_body.": "conv_after_body.",
        "reconstruction.steps.": "upsample.",
        ".convolution.": ".conv.",
        "modulation_scale": "layer_scale_1",
        "feedforward_scale": "layer_scale_2",
        ".modulation.gate": ".attn.a.0",
        ".modulation.depthwise": ".attn.a.2.lkb_reparam",
        ".modulation.value": ".attn.v",
        ".modulation.out": ".attn.proj",
        ".modulation.norm": ".attn.norm",
        ".feedforward.norm": ".mlp.norm",
        ".feedforward.expand": ".mlp.fc1",
        ".feedforward.edges": ".mlp.pos",
        ".feedforward.contract": ".mlp.fc2",
    }
    found = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = tensor
    return found


def test_merging_is_computed_on_the_cpu(monkeypatch):
    """GPUs of Apple know no float64."""
    model, moved = small(), []
    monkeypatch.setattr(CFSR, "cpu", lambda network: moved.append(network) or network)
    merged = model.merge()
    assert len(moved) == 1 and moved[0] is not model
    torch.testing.assert_close(merged(images()), model(images()))


def test_weights_of_summed_edges_fit_both_forms():
    published = small(edges="merged")
    other = small(edges="merged", layer_scale=0.5)
    trainable = small(edges="branches")
    assert load_official(other, official(published), KEYMAPS["cfsr"]).fits
    assert load_official(trainable, official(published), KEYMAPS["cfsr"]).fits
    x = images()
    torch.testing.assert_close(other(x), published(x))
    torch.testing.assert_close(trainable(x), published(x))
    convolution = trainable.layers[0].blocks[0].feedforward.edges
    assert (convolution.edge_scales == 0).all()
    trainable(x).square().sum().backward()
    assert (convolution.edge_scales.grad != 0).any()


def test_weights_of_another_size_are_refused():
    with pytest.raises(WeightsError, match=r"shallow.weight: found \[6, 3, 3, 3\], the model has \[8, 3, 3, 3\]"):
        load_official(small(width=8), official(small(edges="merged")), KEYMAPS["cfsr"])


def test_checkpointing_changes_no_gradient():
    results = []
    for checkpointing in (False, True):
        model = small(checkpointing=checkpointing).train()
        model(images()).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-12)


def test_drop_path_leaves_branches_out_in_training_only():
    model, x = small(drop_path=0.9), images(batch=8)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(x), model(x))
    torch.testing.assert_close(model.eval()(x), small()(x))


def test_mixed_precision_stays_close():
    model, x = small(dtype=torch.float32), images(16, 16, dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        for network in (model, model.merge()):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = network(x)
            torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


def test_empty_batches_pass():
    assert small().merge()(images(batch=0)).shape == (0, 3, 18, 14)


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"expected \[batch, 3, height, width\].*got \[2, 1, 9, 7\]"):
        small()(images(channels=1))
    with pytest.raises(ShapeError, match=r"got \[2, 3, 0, 7\]"):
        small()(images(height=0))
    with pytest.raises(ShapeError, match=r"got \[3, 9, 7\]"):
        small()(images()[0])


def test_all_wrong_values_are_named():
    config = CFSRConfig(width=0, depths=(), kernel=4, drop_path=1.0, image_range=0)
    with pytest.raises(ConfigError) as caught:
        config.build(ImageInfo(scale=5, channels=0))
    for expected in ("width=0", "depths=()", "try kernel=5", "drop_path=1.0", "image_range=0", "channels=0"):
        assert expected in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_export_with_any_batch_and_size(merged):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = small(dtype=torch.float32, scale=3)
    model = model.merge() if merged else model
    axes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    file = io.BytesIO()
    example = images(9, 11, dtype=torch.float32)
    torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=(axes,), verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for x in (example, images(16, 5, batch=1, dtype=torch.float32)):
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SET5)
def test_published_weights_on_set5(shared: Path, scale: int):
    """PSNR of luma with a border of the scale, as measured with the official code."""
    low, high = shared / f"data/Set5/LR_bicubic/X{scale}", shared / "data/Set5/HR"
    weights = shared / f"data/cfsr_weights/CFSR_x{scale}.safetensors"
    if not (low.is_dir() and weights.is_file()):
        pytest.skip("needs Set5 and published weights in ../shared/data")
    model = CFSRConfig().build(ImageInfo(scale=scale))
    load_official(model, read_weights(weights), KEYMAPS["cfsr"])
    merged, scores = model.merge(), []
    for file in sorted(high.glob("*.png")):
        x = torch.from_numpy(load_pixels(low / f"{file.stem}x{scale}.png", 3)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            restored = merged(x)[0]
        original = torch.from_numpy(load_pixels(file, 3)).permute(2, 0, 1)
        original = original[:, : restored.shape[1], : restored.shape[2]]
        scores.append(float(psnr(restored, original, border=scale, colour="y")))
    assert sum(scores) / len(scores) == pytest.approx(SET5[scale], abs=0.001)


def test_with_an_image_skip_training_begins_at_the_interpolated_image():
    model = CFSRConfig(width=8, depths=(1,), image_skip=True).build(ImageInfo(scale=3, channels=3)).eval()
    images = torch.rand(2, 3, 6, 7)
    wanted = torch.nn.functional.interpolate(images, scale_factor=3, mode="bicubic")
    torch.testing.assert_close(model(images), wanted)
    torch.testing.assert_close(model.merge()(images), wanted)
    with torch.no_grad():
        model.reconstruction.steps[0].weight.normal_(std=0.1)
    assert not torch.allclose(model(images), wanted, atol=1e-3)
    torch.testing.assert_close(model.merge()(images), model(images), rtol=1e-4, atol=1e-5)
