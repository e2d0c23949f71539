"""Dynamic convolution: streamed, literal and traced forms against sums by hand, whole or projected kernels, memory."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import dynamic as module
from backbones.attention.__main__ import main
from backbones.attention.dynamic import dynamic_convolution, projected_dynamic_convolution
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError

BACKENDS = ["auto", "math"]


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def inputs(batch=2, groups=2, channels=3, side=3, height=5, width=4, **options):
    """A map and kernels."""
    return [
        random(batch, groups * channels, height, width, **options),
        random(batch, groups, side, side, height, width, **options),
    ]


def projected(batch=2, groups=2, channels=3, side=3, height=5, width=4, features=5, **options):
    """A map, features, weight and bias."""
    return [
        random(batch, groups * channels, height, width, **options),
        random(batch, features, height, width, **options),
        random(groups * side**2, features, **options),
        random(groups * side**2, **options),
    ]


def by_hand(x, kernels):
    """The definition, a product at a time."""
    (_, channels, height, width), (groups, side) = x.shape, kernels.shape[1:3]
    out = torch.zeros_like(x)
    for b, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in x.shape)).tolist():
        for u in range(side):
            for v in range(side):
                row, column = i + u - side // 2, j + v - side // 2
                if 0 <= row < height and 0 <= column < width:
                    out[b, c, i, j] += kernels[b, c // (channels // groups), u, v, i, j] * x[b, c, row, column]
    return out


def with_gradients(out, leaves):
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]


def results(leaves, backend="auto"):
    return with_gradients(dynamic_convolution(*leaves, backend=backend), leaves)


def projected_results(leaves, side=3, backend="auto"):
    return with_gradients(projected_dynamic_convolution(*leaves, kernel=side, backend=backend), leaves)


def assert_all_close(found, expected, **tolerances):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerances)


@pytest.mark.parametrize("backend", BACKENDS)
def test_definition(backend):
    x, kernels = (tensor.detach() for tensor in inputs(batch=2, side=5, height=3, width=4))
    torch.testing.assert_close(dynamic_convolution(x, kernels, backend=backend), by_hand(x, kernels))


sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "groups": st.integers(1, 3),
        "channels": st.integers(1, 5),
        "side": st.sampled_from([1, 3, 5, 7]),
        "height": st.integers(1, 9),
        "width": st.integers(1, 9),
    }
)


@settings(max_examples=50)
@given(size=sizes, numbers=st.sampled_from([1, 200, 3000, 1 << 20]))
def test_forms_agree_in_values_and_gradients_wherever_parts_end(size, numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NUMBERS", {"cpu": numbers})
        leaves = inputs(**size)
        assert_all_close(results(leaves), results(leaves, "math"), rtol=1e-11, atol=1e-11)
        leaves = projected(**size)
        ours, literal = (projected_results(leaves, size["side"], backend) for backend in BACKENDS)
        assert_all_close(ours, literal, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_those_of_a_convolution(backend):
    x, features, weight, bias = projected()
    kernels = F.conv2d(features, weight[:, :, None, None], bias).unflatten(1, (2, 3, 3))
    expected = dynamic_convolution(x, kernels, backend="math")
    for form in (weight, weight[:, :, None, None]):
        found = projected_dynamic_convolution(x, features, form, bias, kernel=3, backend=backend)
        torch.testing.assert_close(found, expected)
    without = projected_dynamic_convolution(x, features, weight, kernel=3, backend=backend)
    kernels = F.conv2d(features, weight[:, :, None, None]).unflatten(1, (2, 3, 3))
    torch.testing.assert_close(without, dynamic_convolution(x, kernels, backend="math"))


def test_the_same_kernel_everywhere_is_a_depthwise_convolution():
    x, kernel = random(2, 4, 6, 7), random(4, 1, 5, 5, seed=1)
    kernels = kernel[:, 0, :, :, None, None].expand(2, 4, 5, 5, 6, 7)
    torch.testing.assert_close(dynamic_convolution(x, kernels), F.conv2d(x, kernel, padding=2, groups=4))


def test_gradients_are_those_of_finite_differences():
    torch.autograd.gradcheck(dynamic_convolution, inputs(batch=1, height=3, width=2))
    torch.autograd.gradcheck(lambda *leaves: projected_dynamic_convolution(*leaves, kernel=3), projected(height=2))


@pytest.mark.parametrize("wanted", range(4))
def test_single_gradients(wanted):
    leaves = projected()
    expected = projected_results(leaves, backend="math")[1 + wanted]
    leaves = [leaf.detach().requires_grad_(index == wanted) for index, leaf in enumerate(leaves)]
    out = projected_dynamic_convolution(*leaves, kernel=3)
    (found,) = torch.autograd.grad((out * out.detach().cos()).sum(), leaves[wanted])
    torch.testing.assert_close(found, expected)


def test_memory_order_does_not_matter():
    leaves = [tensor.detach().requires_grad_() for tensor in inputs(height=6, width=5)]
    expected = results(leaves, "math")
    x = leaves[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    kernels = leaves[1].detach().permute(0, 4, 5, 1, 2, 3).contiguous().permute(0, 3, 4, 5, 1, 2).requires_grad_()
    assert not kernels.is_contiguous() and not x.is_contiguous()
    assert_all_close(results([x, kernels]), expected)


@pytest.mark.parametrize("shape", [{"batch": 0}, {"height": 0}, {"width": 0}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_inputs(shape, backend):
    if backend == "math" and "batch" not in shape:
        pytest.skip("torch unfolds no map without positions")
    leaves = inputs(**shape)
    out, *gradients = results(leaves, backend)
    assert out.shape == leaves[0].shape and [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
    leaves = projected(**shape)
    out, *gradients = projected_results(leaves, backend=backend)
    assert out.shape == leaves[0].shape and all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_summed_in_float32(dtype, backend):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs(side=7, height=9, width=9)]
    expected = results([tensor.detach().float().requires_grad_() for tensor in leaves], "math")
    found = results(leaves, backend)
    assert all(tensor.dtype == dtype for tensor in found)
    torch.testing.assert_close(found[0].float(), expected[0], rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_sums_alone(backend):
    leaves = projected(dtype=torch.float32)
    expected = projected_results(leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = projected_dynamic_convolution(*leaves, kernel=3, backend=backend)
        narrow = projected_dynamic_convolution(leaves[0].bfloat16(), *leaves[1:], kernel=3, backend=backend)
    assert narrow.dtype == torch.bfloat16
    assert_all_close(with_gradients(out, leaves), expected, rtol=1e-4, atol=1e-5)


def test_a_backward_pass_under_autocast_is_made_in_float32_too():
    leaves = projected(dtype=torch.float32)
    expected = projected_results(leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_all_close(projected_results(leaves), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("project", [False, True])
def test_memory_is_a_fifth_of_the_unfolded_form(train, project):
    """The published sizes on a quarter of a map of 320 x 180: both grow linearly with the positions."""
    size = {"batch": 1, "groups": 8, "channels": 6, "side": 7, "height": 90, "width": 80, "dtype": torch.float32}
    leaves = projected(**size, features=12) if project else inputs(**size)

    def forward(backend):
        if project:
            return projected_dynamic_convolution(*leaves, kernel=7, backend=backend)
        return dynamic_convolution(*leaves, backend=backend)

    def step(backend):
        with torch.set_grad_enabled(train):
            out = forward(backend)
        return with_gradients(out, leaves) if train else out

    fast, literal = (peak_memory(lambda backend=backend: step(backend)) for backend in BACKENDS)
    assert fast < literal / 5


def test_projected_kernels_never_exist_together():
    size = {"batch": 1, "groups": 8, "channels": 6, "side": 7, "height": 180, "width": 160, "dtype": torch.float32}
    leaves = projected(**size, features=12)
    kernels = 4 * 8 * 49 * 180 * 160
    assert peak_memory(lambda: projected_results(leaves, 7)) < kernels


def test_compiled_without_a_break():
    for leaves, call in (
        (inputs(dtype=torch.float32), dynamic_convolution),
        (projected(dtype=torch.float32), lambda *tensors: projected_dynamic_convolution(*tensors, kernel=3)),
    ):
        expected = with_gradients(call(*leaves), leaves)
        out = torch.compile(call, backend="aot_eager", fullgraph=True)(*leaves)
        assert_all_close(with_gradients(out, leaves), expected, rtol=1e-4, atol=1e-5)


def test_exported_graph_takes_other_sizes():
    class Layer(torch.nn.Module):
        def forward(self, x, features, weight, bias):
            return projected_dynamic_convolution(x, features, weight, bias, kernel=3)

    def arguments(**size):
        return tuple(tensor.detach() for tensor in projected(dtype=torch.float32, **size))

    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    axes = {0: batch, 2: height, 3: width}
    exported = torch.export.export(Layer(), arguments(), dynamic_shapes=(axes, axes, {}, {}), strict=False)
    other = arguments(batch=3, height=7, width=9)
    torch.testing.assert_close(exported.module()(*other), Layer()(*other), rtol=1e-4, atol=1e-5)


def test_transformed_calls_and_second_derivatives_of_the_literal_form():
    x, kernels = inputs()
    expected = results([x, kernels])[1]
    found = torch.func.grad(lambda x: (out := dynamic_convolution(x, kernels)).mul(out.detach().cos()).sum())(x)
    torch.testing.assert_close(found, expected)
    single = torch.func.vmap(lambda x, kernels: dynamic_convolution(x[None], kernels[None])[0])(x, kernels)
    torch.testing.assert_close(single, dynamic_convolution(x, kernels))
    torch.autograd.gradgradcheck(
        lambda *leaves: dynamic_convolution(*leaves, backend="math"), inputs(batch=1, groups=1, height=2, width=2)
    )


def test_meta_device():
    x, kernels = (tensor.detach().to("meta") for tensor in inputs())
    assert dynamic_convolution(x, kernels).shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 6, 5)}, r"x: expected \[batch, channels, height, width\], got \[2, 6, 5\]"),
        ({"kernels": (2, 18, 5, 4)}, r"kernels: expected \[batch, groups, k, k, .* got \[2, 18, 5, 4\]"),
        ({"kernels": (2, 2, 3, 5, 5, 4)}, r"k odd, got \[2, 2, 3, 5, 5, 4\]"),
        ({"kernels": (2, 2, 4, 4, 5, 4)}, r"k odd, got \[2, 2, 4, 4, 5, 4\]"),
        (
            {"kernels": (2, 2, 3, 3, 4, 5)},
            r"expected \[2, 2, 3, 3, 5, 4\] to fit x \[2, 6, 5, 4\], got \[2, 2, 3, 3, 4",
        ),
        ({"kernels": (2, 4, 3, 3, 5, 4)}, r"4 groups do not divide 6 channels of x \[2, 6, 5, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    shapes = {"x": (2, 6, 5, 4), "kernels": (2, 2, 3, 3, 5, 4), **change}
    with pytest.raises(ShapeError, match=message):
        dynamic_convolution(*(torch.zeros(shape) for shape in shapes.values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": (2, 5, 4, 5)}, r"features: expected \[2, features, 5, 4\] to fit x .* got \[2, 5, 4, 5\]"),
        ({"weight": (18, 4)}, r"weight: expected \[groups \* 9, 5\] .* got \[18, 4\]"),
        ({"weight": (18, 5, 3, 3)}, r"weight: expected .* got \[18, 5, 3, 3\]"),
        ({"weight": (17, 5)}, r"groups that divide 6 channels, got \[17, 5\]"),
        ({"weight": (36, 5)}, r"groups that divide 6 channels, got \[36, 5\]"),
        ({"bias": (9,)}, r"bias: expected \[18\] to fit weight \[18, 5\], got \[9\]"),
    ],
)
def test_projections_that_do_not_fit_are_named(change, message):
    shapes = {"x": (2, 6, 5, 4), "features": (2, 5, 5, 4), "weight": (18, 5), "bias": (18,), **change}
    with pytest.raises(ShapeError, match=message):
        projected_dynamic_convolution(*(torch.zeros(shape) for shape in shapes.values()), kernel=3)


def test_other_wrong_inputs_are_named():
    leaves = projected()
    with pytest.raises(ConfigError, match=r"kernel=4 must be odd and at least 1; try kernel=5"):
        projected_dynamic_convolution(*leaves, kernel=4)
    with pytest.raises(ConfigError, match=r"did you mean|one of"):
        dynamic_convolution(*inputs(), backend="maths")


def test_benchmark_tells_memory_of_both_passes(tmp_path, capsys):
    file = tmp_path / "rows.json"
    words = ["benchmark", "dynamic_convolution_projected", "--repeats", "1", "--memory", "--output", str(file)]
    assert main(words) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert 5 * row["forward_fast_bytes"] < row["forward_math_bytes"] < row["math_bytes"]
    assert 5 * row["fast_bytes"] < row["math_bytes"] and row["growth"] < 1.1
    assert "Peak memory of forward" in capsys.readouterr().out
