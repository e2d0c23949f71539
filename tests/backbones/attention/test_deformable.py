"""Deformable attention: streamed and literal form against each other, and both against bilinear sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import deformable as module
from backbones.attention.deformable import deformable_attention, deformable_sampling
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError

LEVELS = ((5, 7), (3, 2), (1, 1))
BACKENDS = ["auto", "math"]


def inputs(batch=2, queries=6, heads=2, channels=4, points=3, shapes=LEVELS, spread=1.4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(queries * 31 + points)
    cells = sum(height * width for height, width in shapes)
    values = torch.randn(batch, cells, heads, channels, dtype=dtype, generator=generator)
    places = torch.rand(batch, queries, heads, len(shapes), points, 2, dtype=dtype, generator=generator)
    weights = torch.rand(batch, queries, heads, len(shapes), points, dtype=dtype, generator=generator)
    locations = (places - 0.5) * spread + 0.5
    return [tensor.requires_grad_() for tensor in (values, locations, weights)]


def by_hand(values, shapes, locations, weights):
    """The definition, a sample at a time: cells as unit squares with the value at their centre, zeros around."""
    out = torch.zeros(*locations.shape[:3], values.shape[-1], dtype=values.dtype)
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    for index in torch.cartesian_prod(*(torch.arange(size) for size in weights.shape)).tolist():
        b, q, h, level, p = index
        (height, width), (x, y) = shapes[level], locations[b, q, h, level, p].tolist()
        column, row = x * width - 0.5, y * height - 0.5
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(column), math.floor(column) + 1):
                if 0 <= i < height and 0 <= j < width:
                    share = (1 - abs(row - i)) * (1 - abs(column - j))
                    out[b, q, h] += weights[b, q, h, level, p] * share * values[b, starts[level] + i * width + j, h]
    return out


def results(backend, leaves, shapes):
    out = deformable_attention(leaves[0], shapes, *leaves[1:], backend=backend)
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_definition(backend):
    leaves = [tensor.detach() for tensor in inputs(batch=1, queries=5)]
    found = deformable_attention(leaves[0], LEVELS, *leaves[1:], backend=backend)
    torch.testing.assert_close(found, by_hand(leaves[0], LEVELS, *leaves[1:]))


@settings(max_examples=60)
@given(data=st.data())
def test_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    side = st.integers(1, 9)
    shapes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))
    sizes = [draw(st.integers(1, most)) for most in (2, 7, 3, 5, 4)]
    leaves = inputs(*sizes, shapes=shapes, spread=draw(st.sampled_from([0.9, 1.0, 1.5, 50.0])))
    with pytest.MonkeyPatch.context() as patch:  # blocks of several sizes, some smaller than a query
        patch.setitem(module.POINTS, "cpu", draw(st.integers(1, 64)))
        patch.setitem(module.NUMBERS, "cpu", draw(st.integers(1, 256)))
        fast = results("auto", leaves, shapes)
    for ours, literal in zip(fast, results("math", leaves, shapes), strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-10)


def test_numerical_gradients():
    leaves = inputs(1, 3, 2, 2, 2, spread=1.2)
    assert torch.autograd.gradcheck(lambda v, places, w: deformable_attention(v, LEVELS, places, w), leaves)


def test_gradients_of_single_inputs():
    """Frozen values, or locations that are given, leave the other gradients as they are."""
    leaves = inputs()
    whole = results("auto", leaves, LEVELS)[1:]
    for wanted in range(3):
        alone = [leaf.detach().requires_grad_(i == wanted) for i, leaf in enumerate(leaves)]
        out = deformable_attention(alone[0], LEVELS, *alone[1:])
        (gradient,) = torch.autograd.grad((out * out.detach().cos()).sum(), alone[wanted])
        torch.testing.assert_close(gradient, whole[wanted])


@pytest.mark.parametrize("backend", BACKENDS)
def test_centres_borders_and_outside(backend):
    image = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 2, 3, 1, 1)  # 1 2 3 / 4 5 6
    cases = {
        (0.5 / 3, 0.25): 1.0,  # the centre of the first cell
        (2.5 / 3, 0.75): 6.0,
        (1.0 / 3, 0.25): 1.5,  # between two cells
        (0.0, 0.25): 0.5,  # on the border half of the sample lies outside
        (1.0, 0.75): 3.0,
        (0.0, 0.0): 0.25,
        (-0.5 / 3, 0.25): 0.0,  # where the first cell is out of reach
        (1 + 0.5 / 3, 0.25): 0.0,
        (-40.0, 0.5): 0.0,
        (0.5, 1e30): 0.0,
        (-1e30, 0.5): 0.0,
    }
    locations = torch.tensor([list(cases)], dtype=torch.float64)[:, :, None, None]
    weights = torch.ones(locations.shape[:-1], dtype=torch.float64)
    found = deformable_sampling(image, locations, weights, backend=backend)
    torch.testing.assert_close(found.flatten(), torch.tensor(list(cases.values()), dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_map_of_a_single_cell_fades_towards_its_borders(backend):
    image = torch.full((1, 1, 1, 1, 1), 8.0, dtype=torch.float64)
    locations = torch.tensor([[0.5, 0.5], [0.0, 0.5], [1.0, 1.0], [1.5, 0.5]], dtype=torch.float64)
    weights = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    found = deformable_sampling(image, locations.view(1, 4, 1, 1, 2), weights, backend=backend)
    assert found.flatten().tolist() == [8.0, 4.0, 2.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_on_a_crease_is_that_of_one_side(backend):
    """Models start with offsets of whole cells from the centres of cells, where the surface has creases."""
    height, width = 6, 10
    values, locations, weights = inputs(1, height * width, 2, 4, 4, shapes=[(height, width)])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).view(1, -1, 1, 1, 1, 2)
    steps = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.0, 3.0], [-1.0, -1.0]]).double()
    locations = (centres + steps / torch.tensor([width, height])).expand_as(locations)

    def gradient(shift):
        moved = (locations + 1e-9 * torch.tensor(shift).double()).requires_grad_()
        return results(backend, [values, moved, weights], [(height, width)])[2]

    found = gradient([0, 0])
    sides = torch.stack([gradient([dx, dy]) for dx in (-1, 1) for dy in (-1, 1)])
    assert ((sides - found).abs() < 1e-5).any(0).all()


def test_locations_that_are_no_numbers_read_nothing():
    values, locations, weights = inputs()
    with torch.no_grad():
        locations[0, 0] = torch.nan
        locations[0, 1] = torch.inf
    out, *gradients = results("auto", [values, locations, weights], LEVELS)
    assert (out[0, :2] == 0).all()
    assert all(tensor.isfinite().all() for tensor in (out, *gradients))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}, {"points": 0}, {"heads": 1, "channels": 1}])
def test_empty_inputs_and_single_channels(backend, sizes):
    leaves = inputs(**sizes)
    out, *gradients = results(backend, leaves, LEVELS)
    assert out.shape == (*leaves[1].shape[:3], leaves[0].shape[-1])
    assert all(gradient.shape == leaf.shape for gradient, leaf in zip(gradients, leaves, strict=True))
    if not leaves[1].numel():
        assert (out == 0).all() and all((gradient == 0).all() for gradient in gradients)


def test_single_map_is_one_level():
    values, locations, weights = inputs(shapes=[(5, 7)])
    whole = deformable_attention(values, [(5, 7)], locations, weights)
    alone = deformable_sampling(values.unflatten(1, (5, 7)), locations[:, :, :, 0], weights[:, :, :, 0])
    assert torch.equal(whole, alone)


def test_values_that_are_no_rows_in_memory():
    values, locations, weights = inputs()
    strided = values.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for ours, theirs in zip(
        results("auto", [strided, locations, weights], LEVELS),
        results("auto", [values, locations, weights], LEVELS),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_sum_in_float32(backend, dtype):
    leaves = inputs(channels=13, points=40, dtype=torch.float32)
    halves = [leaf.detach().to(dtype) for leaf in leaves]
    expected = deformable_attention(halves[0].float(), LEVELS, *(half.float() for half in halves[1:]))
    found = deformable_attention(halves[0], LEVELS, *halves[1:], backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_autocast_does_not_round_the_locations():
    leaves = inputs(dtype=torch.float32)
    plain = results("auto", leaves, LEVELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = results("auto", leaves, LEVELS)
    for ours, theirs in zip(cast, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_memory_is_a_third_of_the_literal_form():
    shapes = [(32, 32), (16, 16), (8, 8)]
    leaves = inputs(1, 1344, 8, 32, 4, shapes=shapes, dtype=torch.float32)
    fast, literal = (peak_memory(lambda backend=backend: results(backend, leaves, shapes)) for backend in BACKENDS)
    assert fast < literal / 3


def test_compiled_without_a_break():
    leaves = inputs(dtype=torch.float32)

    def call(values, locations, weights):
        return deformable_attention(values, LEVELS, locations, weights)

    out = torch.compile(call, backend="aot_eager", fullgraph=True)(*leaves)
    found = [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]
    for ours, theirs in zip(found, results("auto", leaves, LEVELS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_exported_graph_takes_other_numbers_of_queries():
    class Layer(torch.nn.Module):
        def forward(self, values, locations, weights):
            return deformable_attention(values, LEVELS, locations, weights)

    def arguments(queries):
        return tuple(tensor.detach() for tensor in inputs(queries=queries, dtype=torch.float32))

    queries = torch.export.Dim("queries", min=2, max=64)
    exported = torch.export.export(Layer(), arguments(6), dynamic_shapes=({}, {1: queries}, {1: queries}), strict=False)
    torch.testing.assert_close(exported.module()(*arguments(11)), Layer()(*arguments(11)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"values": (2, 42, 2)}, r"deformable attention: expected values .* got \[2, 42, 2\]"),
        ({"values": (2, 43, 2, 4)}, r"values: expected 42 cells for levels .*, got \[2, 43, 2, 4\]"),
        ({"locations": (2, 6, 3, 3, 3, 2)}, r"locations: expected \[2, 6, 2, 3, 3, 2\] .* got \[2, 6, 3, 3, 3, 2\]"),
        ({"locations": (2, 6, 2, 3, 3, 3)}, r"locations: expected \[2, 6, 2, 3, 3, 2\] .* got \[2, 6, 2, 3, 3, 3\]"),
        ({"weights": (2, 6, 2, 9)}, r"weights: expected \[2, 6, 2, 3, 3\] to fit locations, got \[2, 6, 2, 9\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    given = {"values": (2, 42, 2, 4), "locations": (2, 6, 2, 3, 3, 2), "weights": (2, 6, 2, 3, 3), **change}
    tensors = {name: torch.zeros(shape) for name, shape in given.items()}
    with pytest.raises(ShapeError, match=message):
        deformable_attention(shapes=LEVELS, **tensors)


def test_other_wrong_inputs_are_named():
    values, locations, weights = inputs(shapes=[(5, 7)])
    with pytest.raises(ShapeError, match=r"values: expected \[batch, height, width, heads, channels\]"):
        deformable_sampling(values, locations[:, :, :, 0], weights[:, :, :, 0])
    with pytest.raises(ConfigError, match=r"did you mean|one of"):
        deformable_attention(values, [(5, 7)], locations, weights, backend="maths")
