"""Bi-level routing attention: gathered, masked, sliced and full forms against the paper's steps, region by region."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import attention
from backbones.attention import routed
from backbones.attention.attend import attend
from backbones.attention.routed import padded_size, region_routes, routed_attention
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError


def inputs(batch=2, height=6, width=8, heads=2, channels=3, value_channels=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    last = (channels, channels, value_channels or channels)
    shapes = [(batch, height, width, heads, size) for size in last]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def blocks(x, rows, columns):
    """The regions of one map, row-major, with their positions flat: [H, W, ...] to a list of [positions, ...]."""
    return [piece.flatten(0, 1) for strip in x.chunk(rows, 0) for piece in strip.chunk(columns, 1)]


def by_region(q, k, v, rows, columns, topk):
    """One sample, [H, W, h, c]: means, affinities, the best regions, softmax over their positions, written out."""
    scale = (q.shape[2] * q.shape[3]) ** -0.5
    q_regions, k_regions, v_regions = (blocks(x, rows, columns) for x in (q, k, v))
    out = []
    for queries in q_regions:
        scores = torch.stack([(queries.mean(0) * keys.mean(0)).sum() * scale for keys in k_regions])
        chosen = scores.argsort(descending=True)[:topk].tolist()
        keys, values = (torch.cat([regions[i] for i in chosen]) for regions in (k_regions, v_regions))
        logits = torch.einsum("qhc,khc->hqk", queries, keys) * scale
        out.append(torch.einsum("hqk,khe->qhe", logits.softmax(-1), values))
    high, wide = q.shape[0] // rows, q.shape[1] // columns
    tiles = [piece.unflatten(0, (high, wide)) for piece in out]
    return torch.cat([torch.cat(tiles[row * columns : (row + 1) * columns], dim=1) for row in range(rows)])


def sliced(elements=50, copies=0):
    """Small bounds, so that small maps are gathered in slices and computed again in the backward pass."""
    bounds = {"SLICE_ELEMENTS": {"cpu": elements, "cuda": elements}, "KEPT_ELEMENTS": elements, "KEPT_COPIES": copies}
    return mock.patch.multiple(routed, **bounds, AFFINITIES=elements, MASKED_TOKENS=0)


def gathered():
    return mock.patch.multiple(routed, MASKED_TOKENS=0)


def gradients(leaves, **options):
    out = routed_attention(*leaves, **options)
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]


@pytest.mark.parametrize("regions", [(2, 4), (3, 1), (1, 1), (6, 8)])
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_follows_the_paper_region_by_region(regions, backend):
    leaves = inputs(value_channels=5)
    for topk in {1, 2, regions[0] * regions[1]}:
        if topk > regions[0] * regions[1]:
            continue
        found = routed_attention(*leaves, regions=regions, topk=topk, backend=backend)
        expected = torch.stack([by_region(*(x[b] for x in leaves), *regions, topk) for b in range(2)])
        torch.testing.assert_close(found, expected)


@settings(max_examples=60)
@given(data=st.data())
def test_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    rows, columns, high, wide = (draw(st.integers(1, 4)) for _ in range(4))
    topk = draw(st.integers(1, rows * columns))
    sizes = [draw(st.integers(1, 5)) for _ in range(3)]
    leaves = inputs(draw(st.integers(1, 2)), rows * high, columns * wide, *sizes, seed=topk)
    options = {"regions": (rows, columns), "topk": topk, "scale": draw(st.sampled_from([None, 0.7]))}
    literal = gradients(leaves, backend="math", **options)
    forms = {"as chosen": gradients(leaves, **options), "sdpa": gradients(leaves, backend="sdpa", **options)}
    with gathered():
        forms["gathered"] = gradients(leaves, **options)
    with sliced(draw(st.sampled_from([1, 50, 500]))):
        forms["sliced"] = gradients(leaves, **options)
    for form in forms.values():
        for fast, exact in zip(form, literal, strict=True):
            torch.testing.assert_close(fast, exact, rtol=1e-9, atol=1e-11)


def test_slices_do_not_change_the_result_without_gradients():
    leaves = [x.detach() for x in inputs(3, 12, 8)]
    whole = routed_attention(*leaves, regions=4, topk=5)
    with sliced(200):
        torch.testing.assert_close(routed_attention(*leaves, regions=4, topk=5), whole)


def test_the_choice_is_made_by_mean_queries_and_keys_over_all_heads():
    q, k, _ = inputs(2, 6, 6, 2, 4)

    def means(x):
        return torch.stack([torch.stack([piece.flatten(1).mean(0) for piece in blocks(sample, 3, 3)]) for sample in x])

    expected = (means(q) @ means(k).mT).topk(4, dim=-1).indices
    assert torch.equal(region_routes(q, k, 3, 4), expected)
    assert torch.equal(region_routes(q, k, (3, 3), 4, scale=3.0), expected)
    with sliced(1):
        assert torch.equal(region_routes(q, k, 3, 4), expected)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_the_order_of_routes_has_no_meaning(backend):
    q, k, v = inputs(2, 8, 8)
    routes = region_routes(q, k, 4, 5)
    expected = routed_attention(q, k, v, regions=4, topk=5, backend=backend)
    for same in (routes, routes.flip(-1), routes[..., torch.randperm(5)].int()):
        found = routed_attention(q, k, v, regions=4, topk=5, routes=same, backend=backend)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", [nullcontext, gathered, sliced])
def test_given_routes_are_followed(form):
    q, k, v = inputs(1, 4, 4)
    routes = torch.tensor([[[3], [2], [1], [0]]])
    with form():
        found = routed_attention(q, k, v, regions=2, topk=1, routes=routes)
    corner = attend(q[:, :2, :2].flatten(1, 2), k[:, 2:, 2:].flatten(1, 2), v[:, 2:, 2:].flatten(1, 2), scale=6**-0.5)
    torch.testing.assert_close(found[:, :2, :2].flatten(1, 2), corner)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_all_regions_are_full_attention(backend):
    q, k, v = inputs(2, 6, 9)
    full = attend(*(x.flatten(1, 2) for x in (q, k, v)), scale=6**-0.5).unflatten(1, (6, 9))
    torch.testing.assert_close(routed_attention(q, k, v, regions=3, topk=9, backend=backend), full)


def test_moving_regions_moves_the_result():
    """Regions have no order: swapping two columns of regions swaps the same columns of the output."""
    q, k, v = inputs(1, 6, 6)
    swap = torch.tensor([2, 3, 0, 1, 4, 5])
    moved = routed_attention(*(x[:, :, swap] for x in (q, k, v)), regions=3, topk=2)
    torch.testing.assert_close(moved, routed_attention(q, k, v, regions=3, topk=2)[:, :, swap])


def test_no_gradient_flows_through_the_choice():
    leaves = inputs(1, 6, 6)
    routes = region_routes(*leaves[:2], 3, 2)
    assert not routes.requires_grad
    fixed = gradients(leaves, regions=3, topk=2, routes=routes)
    for free, constant in zip(gradients(leaves, regions=3, topk=2), fixed, strict=True):
        torch.testing.assert_close(free, constant)


def test_unread_regions_get_no_gradient():
    leaves = inputs(1, 4, 4)
    routes = torch.zeros(1, 4, 1, dtype=torch.int64)
    for form in (gathered(), sliced(), nullcontext()):
        with form:
            _, _, grad_k, grad_v = gradients(leaves, regions=2, topk=1, routes=routes)
        for grad in (grad_k, grad_v):
            assert grad[:, :2, :2].abs().min() > 0
            assert grad[:, 2:].abs().max() == 0 and grad[:, :2, 2:].abs().max() == 0


def test_logits_are_scaled_by_the_width_of_all_heads():
    leaves = inputs(1, 4, 4, heads=4, channels=9)
    own = routed_attention(*leaves, regions=2, topk=2)
    torch.testing.assert_close(routed_attention(*leaves, regions=2, topk=2, scale=1 / 6), own)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_one_position_returns_its_value(backend):
    q, k, v = inputs(2, 1, 1)
    torch.testing.assert_close(routed_attention(q, k, v, regions=1, topk=1, backend=backend), v)


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("topk", [1, 4])
def test_empty_batch(backend, topk):
    leaves = inputs(0, 4, 4, value_channels=5)
    out, *grads = gradients(leaves, regions=2, topk=topk, backend=backend)
    assert out.shape == (0, 4, 4, 2, 5)
    assert [g.shape for g in grads] == [x.shape for x in leaves]
    with sliced(1):
        assert routed_attention(*leaves, regions=2, topk=topk).shape == (0, 4, 4, 2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [nullcontext, gathered, sliced])
def test_half_types(dtype, form):
    leaves = inputs(1, 12, 12, 2, 8, dtype=torch.float32)
    halves = [x.detach().to(dtype).requires_grad_() for x in leaves]
    rounded = [x.detach().float().requires_grad_() for x in halves]
    with form():
        found = gradients(halves, regions=3, topk=4)
    for ours, exact in zip(found, gradients(rounded, regions=3, topk=4, backend="math"), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("form", [nullcontext, sliced])
def test_autocast_chooses_the_same_regions(backend, form):
    leaves = inputs(1, 16, 16, 2, 8, dtype=torch.float32)
    exact = gradients(leaves, regions=4, topk=3, backend="math")
    with torch.autocast("cpu", torch.bfloat16), form():
        assert torch.equal(region_routes(*leaves[:2], 4, 3), region_routes(*(x.double() for x in leaves[:2]), 4, 3))
        out, *grads = gradients(leaves, regions=4, topk=3, backend=backend)
    assert out.dtype == torch.bfloat16
    for ours, theirs in zip((out.float(), *grads), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize(("topk", "form"), [(3, gathered), (6, lambda: sliced(1 << 14)), (1, gathered)])
def test_memory_is_linear_in_the_positions(topk, form):
    """At a fixed region size; the literal form of the larger map takes several times more."""

    def peak(side, backend="auto"):
        leaves = inputs(1, side, side, 2, 16, dtype=torch.float32)

        def step():
            routed_attention(*leaves, regions=side // 4, topk=topk, backend=backend).sum().backward()

        step()
        return peak_memory(step)

    with form(), mock.patch.object(routed, "AFFINITIES", 1 << 12):
        small, large = peak(32), peak(64)
    assert large / small < 4.4
    assert peak(64, "math") > 1.5 * large


def test_slices_bound_the_memory_of_inference():
    leaves = [x.detach() for x in inputs(1, 64, 64, 2, 16, dtype=torch.float32)]

    def call():
        routed_attention(*leaves, regions=8, topk=16)

    with gathered():
        whole = peak_memory(call)
    with sliced(1 << 15, copies=64):  # copies count in training only
        parts = peak_memory(call)
    assert parts < whole / 3


def test_scores_of_regions_are_bounded():
    """A thousand regions have a million pairs, of 4 bytes each."""
    q, k, _ = (x.detach() for x in inputs(1, 32, 32, 1, 4, dtype=torch.float32))
    with mock.patch.object(routed, "AFFINITIES", 1 << 14):
        assert peak_memory(lambda: region_routes(q, k, 32, 2)) < 1 << 18


def test_the_choice_of_a_backend_reaches_the_slices():
    leaves = inputs(1, 8, 8)
    attention.reset_used()
    with sliced(), attention.force("sdpa"):
        out = routed_attention(*leaves, regions=4, topk=2)
    with attention.force("math"):
        out.sum().backward()  # what was forced forward serves backward, whatever holds then
    used = attention.used()
    assert {choice["backend"] for choice in used["attend"]} == {"sdpa"}
    assert {choice["backend"] for choice in used["routed_attention"]} == {"fast"}
    with attention.force("math"):
        routed_attention(*leaves, regions=4, topk=2)
    assert attention.used()["routed_attention"][-1]["backend"] == "math"


def test_sizes_without_numbers():
    leaves = [x.to("meta") for x in inputs(2, 28, 28, value_channels=5, dtype=torch.float32)]
    for topk in (1, 16, 49):
        assert routed_attention(*leaves, regions=7, topk=topk).shape == (2, 28, 28, 2, 5)


@pytest.mark.parametrize("topk", [2, 16])
def test_traces_into_a_graph(topk):
    class Operator(torch.nn.Module):
        def forward(self, q, k, v):
            return routed_attention(q, k, v, regions=4, topk=topk)

    leaves = tuple(x.detach() for x in inputs(1, 8, 12, dtype=torch.float32))
    graph = torch.export.export(Operator(), leaves).module()
    others = tuple(x.detach() for x in inputs(1, 8, 12, dtype=torch.float32, seed=1))
    torch.testing.assert_close(graph(*others), Operator()(*others))


def test_compiles_into_one_graph():
    leaves = inputs(1, 8, 8, dtype=torch.float32)
    compiled = torch.compile(lambda *x: routed_attention(*x, regions=4, topk=2), backend="aot_eager", fullgraph=True)
    expected = gradients(leaves, regions=4, topk=2)
    out = compiled(*leaves)
    found = [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact)


def test_padded_size():
    assert padded_size(18, 26, 4) == (20, 28)
    assert padded_size(2, 3, (7, 1)) == (7, 3)
    assert padded_size(8, 8, 4) == (8, 8)


def test_wrong_inputs_are_named():
    q, k, v = inputs(1, 6, 8)
    with pytest.raises(ShapeError, match=r"a map of 6 x 8 cannot be cut into 4 x 4 equal regions. Pad it to 8 x 8"):
        routed_attention(q, k, v, regions=4, topk=1)
    with pytest.raises(ShapeError, match=r"q: expected \[batch, height, width, heads, channels\], got \[6, 8, 2, 3\]"):
        routed_attention(q[0], k, v, regions=2, topk=1)
    with pytest.raises(ShapeError, match=r"k: expected \[1, 6, 8, 2, 3\] as q, got \[1, 6, 7, 2, 3\]"):
        routed_attention(q, k[:, :, :7], v, regions=2, topk=1)
    with pytest.raises(ShapeError, match=r"v: expected \[1, 6, 8, 2, channels\] to fit q .*, got \[1, 6, 8, 1, 3\]"):
        routed_attention(q, k, v[:, :, :, :1], regions=2, topk=1)
    with pytest.raises(ShapeError, match=r"a map needs at least one position, got \[1, 0, 8, 2, 3\]"):
        routed_attention(q[:, :0], k[:, :0], v[:, :0], regions=2, topk=1)
    with pytest.raises(ConfigError, match=r"topk=5 must be between 1 and the 4 regions of 2 x 2"):
        routed_attention(q, k, v, regions=2, topk=5)
    with pytest.raises(ConfigError, match=r"topk=0 must be between 1"):
        region_routes(q, k, 2, 0)
    with pytest.raises(ConfigError, match=r"regions=\(0, 2\) must be at least 1"):
        routed_attention(q, k, v, regions=(0, 2), topk=1)
    with pytest.raises(ConfigError, match="backend"):
        routed_attention(q, k, v, regions=2, topk=1, backend="quick")


def test_wrong_routes_are_named():
    q, k, v = inputs(1, 6, 8)

    def call(routes):
        routed_attention(q, k, v, regions=2, topk=2, routes=torch.as_tensor(routes))

    good = [[[0, 1], [1, 2], [2, 3], [3, 0]]]
    call(good)
    with pytest.raises(ShapeError, match=r"routes: expected integers \[1, 4, 2\], got torch.int64 \[1, 3, 2\]"):
        call([good[0][:3]])
    with pytest.raises(ShapeError, match=r"routes: expected integers \[1, 4, 2\], got torch.float32"):
        call(torch.tensor(good).float())
    with pytest.raises(ConfigError, match="routes must name regions from 0 to 3"):
        call([[[0, 1], [1, 2], [2, 4], [3, 0]]])
    with pytest.raises(ConfigError, match="routes must name regions from 0 to 3"):
        call([[[0, 1], [1, 2], [2, -1], [3, 0]]])
    with pytest.raises(ConfigError, match="different regions in every row"):
        call([[[0, 1], [1, 2], [2, 2], [3, 0]]])
