"""Neighborhood attention: tiles and graphs against the literal gather, and that against the papers' rules by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import dispatch, force
from backbones.attention.attend import attend
from backbones.attention.backends import natten
from backbones.attention.flow import flow_attention
from backbones.attention.neighborhood import (
    NeighborhoodRequest,
    axis_neighbors,
    literal_attention,
    neighborhood_attention,
    padding,
)
from backbones.attention.neighborhood_fast import tiled_attention
from backbones.attention.neighborhood_tiles import axis_runs, groups
from backbones.attention.neighborhood_traced import traced_attention
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError


def inputs(batch=1, height=9, width=8, heads=2, channels=3, value_channels=None, kernel=(3, 3), dtype=torch.float64):
    generator = torch.Generator().manual_seed(height * 31 + width)
    shape = (batch, height, width, heads)
    shapes = [(*shape, channels)] * 2 + [(*shape, value_channels or channels)]
    shapes.append((heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1))
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def results(operator, leaves):
    """Output, and the gradients of an uneven function of it."""
    out = operator(*leaves)
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]


def same(found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, **tolerance)


def by_rule(length, kernel, dilation):
    """Keys and bias indices of every position, from the definition in words."""
    rows = []
    for position in range(length):
        peers = list(range(position % dilation, length, dilation))
        own = peers.index(position)
        start = min(max(own - kernel // 2, 0), len(peers) - kernel)
        rows.append([(peers[start + slot], start + slot - own + kernel - 1) for slot in range(kernel)])
    return torch.tensor(rows).unbind(-1)


def by_hand(q, k, v, bias, kernel, dilation, scale):
    """One query of one head at a time."""
    rows, columns = by_rule(q.shape[1], kernel[0], dilation[0]), by_rule(q.shape[2], kernel[1], dilation[1])
    out = torch.zeros(v.shape, dtype=v.dtype)
    for b, i, j, head in itertools.product(*map(range, q.shape[:4])):
        slots = list(itertools.product(range(kernel[0]), range(kernel[1])))
        places = [(rows[0][i, row], columns[0][j, column]) for row, column in slots]
        offsets = [bias[head, rows[1][i, row], columns[1][j, column]] for row, column in slots]
        logits = torch.stack([scale * q[b, i, j, head] @ k[b, y, x, head] for y, x in places]) + torch.stack(offsets)
        weights = logits.softmax(0)
        out[b, i, j, head] = sum(weight * v[b, y, x, head] for weight, (y, x) in zip(weights, places, strict=True))
    return out


@pytest.mark.parametrize(
    ("length", "kernel", "dilation"), [(7, 7, 1), (9, 3, 1), (13, 3, 3), (10, 3, 3), (16, 5, 3), (5, 1, 2), (8, 1, 8)]
)
def test_neighbors_of_an_axis(length, kernel, dilation):
    keys, relative = axis_neighbors(length, kernel, dilation)
    expected = by_rule(length, kernel, dilation)
    assert torch.equal(keys, expected[0]) and torch.equal(relative, expected[1])


@pytest.mark.parametrize(("length", "kernel"), [(7, 7), (8, 7), (20, 5)])
def test_neighbors_without_dilation_follow_the_closed_form(length, kernel):
    reach = kernel // 2
    keys, relative = axis_neighbors(length, kernel)
    for i in range(length):
        start = max(i - reach, 0) + (i + reach >= length) * (length - i - reach - 1)
        offset = reach + (i < reach) * (reach - i) + (i + reach >= length) * (length - i - 1 - reach)
        assert keys[i].tolist() == list(range(start, start + kernel))
        assert relative[i].tolist() == list(range(offset, offset + kernel))


@pytest.mark.parametrize(
    ("kernel", "dilation", "size"), [((3, 3), (1, 1), (5, 4)), ((3, 5), (2, 1), (7, 6)), ((1, 3), (1, 2), (3, 7))]
)
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_every_query_by_hand(kernel, dilation, size, backend):
    q, k, v, bias = inputs(2, *size, kernel=kernel, value_channels=2)
    found = neighborhood_attention(
        q, k, v, kernel_size=kernel, dilation=dilation, bias=bias, scale=0.7, backend=backend
    )
    torch.testing.assert_close(found, by_hand(q, k, v, bias, kernel, dilation, 0.7))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tiles_and_graphs_agree_with_the_gather_in_values_and_gradients(data):
    draw = data.draw
    kernel = (draw(st.sampled_from([1, 3, 5, 7])), draw(st.sampled_from([1, 3, 5, 7])))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    size = [side * step + draw(st.integers(0, 14)) for side, step in zip(kernel, dilation, strict=True)]
    sizes = [draw(st.integers(1, 2)), *size, draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))]
    leaves = inputs(*sizes, kernel=kernel)
    if not draw(st.booleans()):
        leaves = leaves[:3]
    forms = [
        results(lambda q, k, v, bias=None, form=form: form(q, k, v, bias, kernel, dilation, 0.5), leaves)
        for form in (literal_attention, tiled_attention, traced_attention)
    ]
    same(forms[1], forms[0], rtol=1e-9, atol=1e-11)
    same(forms[2], forms[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("size", "kernel", "dilation"), [((40, 33), 7, 1), ((29, 61), 3, 2), ((24, 24), 11, 2), ((23, 26), 3, 4)]
)
def test_larger_maps(size, kernel, dilation):
    leaves = inputs(1, *size, channels=4, kernel=(kernel, kernel))

    def operator(backend):
        return lambda q, k, v, bias: neighborhood_attention(
            q, k, v, kernel_size=kernel, dilation=dilation, bias=bias, backend=backend
        )

    same(results(operator("auto"), leaves), results(operator("math"), leaves), rtol=1e-9, atol=1e-11)


@settings(max_examples=200, deadline=None)
@given(kernel=st.sampled_from([1, 3, 5, 7, 9, 11, 13]), dilation=st.integers(1, 9), extra=st.integers(0, 100))
def test_runs_hold_every_query_once_and_every_window_whole(kernel, dilation, extra):
    length = kernel * dilation + extra
    keys, _ = axis_neighbors(length, kernel, dilation)
    seen = []
    for run in axis_runs(length, kernel, dilation):
        for residue, tile in itertools.product(range(run.residue, run.residue + run.residues), range(run.tiles)):
            starts = [first + tile * run.queries for first in (run.first_query, run.first_key)]
            queries = [residue + dilation * (starts[0] + step) for step in range(run.queries)]
            block = {residue + dilation * (starts[1] + step) for step in range(run.keys)}
            assert {int(key) for query in queries for key in keys[query]} == block
            seen += queries
    assert sorted(seen) == list(range(length))


def test_chunks_do_not_change_the_result(monkeypatch):
    leaves = inputs(3, 30, 17, kernel=(3, 3))
    operator = lambda q, k, v, bias: tiled_attention(q, k, v, bias, (3, 3), (2, 1), 0.5)  # noqa: E731
    whole = results(operator, leaves)
    for elements in (1, 3000):
        monkeypatch.setitem(tiled_attention.__globals__["CHUNK_ELEMENTS"], "cpu", elements)
        same(results(operator, leaves), whole)


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("size", [(4, 9), (9, 4), (1, 1), (5, 5)])
def test_small_maps_are_filled_with_zeros_and_cropped(size, backend):
    q, k, v, bias = inputs(2, *size, kernel=(3, 3))
    options = {"kernel_size": 3, "dilation": 2, "bias": bias, "backend": backend}
    below, right = padding(*size, 3, 2)
    assert (below, right) == (max(0, 6 - size[0]), max(0, 6 - size[1]))
    filled = [torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, right, 0, below)) for tensor in (q, k, v)]
    expected = neighborhood_attention(*filled, **options)[:, : size[0], : size[1]]
    torch.testing.assert_close(neighborhood_attention(q, k, v, **options), expected)


def test_one_table_serves_every_dilation():
    q, k, v, bias = inputs(1, 6, 6, kernel=(3, 3))
    spread = [torch.repeat_interleave(torch.repeat_interleave(x, 2, 1), 2, 2) for x in (q, k, v)]
    plain = neighborhood_attention(q, k, v, kernel_size=3, bias=bias)
    dilated = neighborhood_attention(*spread, kernel_size=3, dilation=2, bias=bias)
    torch.testing.assert_close(dilated[:, ::2, ::2], plain)
    torch.testing.assert_close(dilated[:, 1::2, 1::2], plain)


def test_minus_infinity_in_the_table_hides_neighbours():
    q, k, v, bias = inputs(1, 12, 11, kernel=(3, 3))
    causal = bias.detach().clone()
    causal[:, 3:] = -torch.inf
    causal[:, 2, 3:] = -torch.inf
    options = {"kernel_size": 3, "bias": causal}
    fast, literal = (neighborhood_attention(q, k, v, backend=name, **options) for name in ("auto", "math"))
    same([fast], [literal])
    changed = [torch.cat([x[:, :6], torch.randn_like(x[:, 6:])], dim=1) for x in (k, v)]
    torch.testing.assert_close(neighborhood_attention(q, *changed, **options)[:, 1:6], fast[:, 1:6])


def test_gradients_are_exact_twice():
    leaves = inputs(1, 5, 3, heads=1, channels=2, kernel=(3, 3))

    def operator(q, k, v, bias):
        return neighborhood_attention(q, k, v, kernel_size=3, bias=bias)

    assert torch.autograd.gradcheck(operator, leaves)
    assert torch.autograd.gradgradcheck(operator, leaves)


def test_only_wanted_gradients_are_given():
    q, k, v, bias = (tensor.detach() for tensor in inputs())
    for wanted in (q, bias):
        wanted.requires_grad_()
        neighborhood_attention(q, k, v, kernel_size=3, bias=bias).sum().backward()
        assert wanted.grad is not None and wanted.grad.abs().max() > 0
        wanted.requires_grad_(False)
    assert k.grad is None and v.grad is None


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("shape", [(0, 5, 6, 2, 4), (2, 1, 1, 1, 5), (1, 30, 1, 3, 1)])
def test_empty_batches_and_single_positions(shape, backend):
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    out = neighborhood_attention(q, k, v, kernel_size=1, backend=backend)
    torch.testing.assert_close(out, v)
    assert neighborhood_attention(q, k, v, kernel_size=3, backend=backend).shape == shape
    out.sum().backward()
    assert v.grad is not None and torch.equal(v.grad, torch.ones(shape))


def test_strided_and_expanded_inputs():
    packed = torch.randn(2, 10, 9, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    flipped = packed.transpose(1, 2)

    def operator(backend):
        out = neighborhood_attention(*flipped.unbind(3), kernel_size=3, dilation=2, backend=backend)
        return [out, *torch.autograd.grad(out.sum(), packed)]  # the gradient of a sum is one expanded number

    same(operator("auto"), operator("math"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_half_types_are_summed_in_float32(dtype, tolerance):
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in inputs(1, 20, 19, channels=8, kernel=(7, 7))]
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]

    def operator(q, k, v, bias):
        return neighborhood_attention(q, k, v, kernel_size=7, bias=bias)

    found, expected = results(operator, leaves), results(operator, exact)
    assert all(tensor.dtype == dtype for tensor in found)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        assert float((ours.float() - theirs).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_autocast_gives_its_type_and_float32_sums(backend):
    q, k, v, bias = (leaf.detach().float().requires_grad_() for leaf in inputs(1, 14, 14, channels=8, kernel=(7, 7)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = neighborhood_attention(q, k, v, kernel_size=7, bias=bias, backend=backend)
        assert mixed.dtype == torch.bfloat16
        mixed.float().sum().backward()
    assert bias.grad is not None and bias.grad.dtype == torch.float32
    exact = neighborhood_attention(*(x.bfloat16().float() for x in (q, k, v)), kernel_size=7, bias=bias)
    torch.testing.assert_close(mixed.float(), exact, rtol=1e-2, atol=1e-2)


def test_inference_mode_leaves_nothing_that_training_trips_over():
    leaves = inputs(1, 30, 31, kernel=(5, 5))
    with torch.inference_mode():
        first = neighborhood_attention(*leaves[:3], kernel_size=5, bias=leaves[3])
    torch.testing.assert_close(neighborhood_attention(*leaves[:3], kernel_size=5, bias=leaves[3]), first)
    assert torch.autograd.grad(first.new_ones(()) * tiled_attention(*leaves, (5, 5), (1, 1), 1.0).sum(), leaves)


def test_memory_grows_with_the_map_and_not_with_its_square():
    def step(side):
        q, k, v, bias = (leaf.detach().float().requires_grad_() for leaf in inputs(1, side, side, 2, 16, 16, (7, 7)))
        return lambda: neighborhood_attention(q, k, v, kernel_size=7, bias=bias).sum().backward()

    small, large = peak_memory(step(48)), peak_memory(step(96))
    assert large < 4.2 * small
    q, k, v, bias = (leaf.detach().float().requires_grad_() for leaf in inputs(1, 48, 48, 2, 16, 16, (7, 7)))
    literal = peak_memory(
        lambda: neighborhood_attention(q, k, v, kernel_size=7, bias=bias, backend="math").sum().backward()
    )
    assert small < literal / 8


def test_there_are_few_kinds_of_tiles():
    for size in (56, 57, 200):
        assert len(groups(size, size, (7, 7), (1, 1))) == 9
    assert len(groups(56, 56, (7, 7), (8, 8))) == 1
    assert len(groups(57, 57, (7, 7), (2, 2))) == 16


def test_one_graph_when_compiled_and_the_same_numbers():
    leaves = inputs(2, 15, 13, kernel=(3, 3))

    def operator(q, k, v, table):
        return neighborhood_attention(q, k, v, kernel_size=3, dilation=(2, 1), bias=table)

    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    same(results(compiled, leaves), results(operator, leaves))


class Mixer(torch.nn.Module):
    def __init__(self, kernel, dilation):
        super().__init__()
        self.options = {"kernel_size": kernel, "dilation": dilation}
        self.bias = torch.nn.Parameter(torch.randn(2, 2 * kernel - 1, 2 * kernel - 1))

    def forward(self, q, k, v):
        return neighborhood_attention(q, k, v, bias=self.bias, **self.options)


def test_exported_for_any_batch():
    mixer, batch = Mixer(3, 2), torch.export.Dim("batch")
    q, k, v, _ = (leaf.detach().float() for leaf in inputs(2, 20, 17))
    program = torch.export.export(mixer, (q, k, v), dynamic_shapes=[{0: batch}] * 3)
    for size in (1, 5):
        tokens = [torch.randn(size, *q.shape[1:]) for _ in range(3)]
        torch.testing.assert_close(program.module()(*tokens), mixer(*tokens))
    torch.testing.assert_close(mixer(q, k, v), mixer(q, k, v))  # tables made while exporting do no harm


def test_exported_for_any_size_of_map():
    mixer = Mixer(3, 2)
    dims = {1: torch.export.Dim("height", min=1, max=64), 2: torch.export.Dim("width", min=1, max=64)}
    q, k, v, _ = (leaf.detach().float() for leaf in inputs(2, 20, 17))
    program = torch.export.export(mixer, (q, k, v), dynamic_shapes=[dims] * 3)
    for size in ((8, 33), (41, 9), (3, 7)):
        tokens = [torch.randn(2, *size, 2, 3) for _ in range(3)]
        torch.testing.assert_close(program.module()(*tokens), mixer(*tokens))


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_shapes_on_the_meta_device(backend):
    q, k, v, bias = (torch.empty(leaf.shape, device="meta") for leaf in inputs(2, 20, 17, value_channels=5))
    options = {"kernel_size": 3, "dilation": 2, "bias": bias, "backend": backend}
    assert neighborhood_attention(q, k, v, **options).shape == (2, 20, 17, 2, 5)


def test_wrong_inputs_are_named():
    q, k, v, bias = inputs()
    with pytest.raises(ConfigError, match=r"kernel_size=4 must be odd.*Try 3 or 5"):
        neighborhood_attention(q, k, v, kernel_size=4)
    with pytest.raises(ConfigError, match=r"dilation=0 must be at least 1"):
        neighborhood_attention(q, k, v, kernel_size=3, dilation=0)
    with pytest.raises(ConfigError, match=r"kernel_size=\(3, 3, 3\) must be at least 1, or a pair"):
        neighborhood_attention(q, k, v, kernel_size=(3, 3, 3))
    with pytest.raises(ShapeError, match=r"q: expected \[batch, height, width, heads, channels\], got \[9, 8, 2, 3\]"):
        neighborhood_attention(q[0], k, v, kernel_size=3)
    with pytest.raises(ShapeError, match=r"k: expected \[1, 9, 8, 2, 3\] as q, got \[1, 8, 8, 2, 3\]"):
        neighborhood_attention(q, k[:, 1:], v, kernel_size=3)
    with pytest.raises(ShapeError, match=r"v: expected \[1, 9, 8, 2, channels\] .*, got \[1, 9, 8, 1, 3\]"):
        neighborhood_attention(q, k, v[:, :, :, :1], kernel_size=3)
    with pytest.raises(ShapeError, match=r"bias: expected \[2, 9, 9\] for 2 heads and kernel 5 x 5, got \[2, 5, 5\]"):
        neighborhood_attention(q, k, v, kernel_size=5, bias=bias)
    with pytest.raises(ShapeError, match=r"length=5 is too short for kernel_size=3 and dilation=2.*Pad .* 6"):
        axis_neighbors(5, 3, 2)


# -- natten and the wishes ---------------------------------------------------------------------------------------------


def request_of(**changes):
    common = {"device": torch.device("cuda"), "dtype": torch.float16, "width": 32, "value_width": 32, "kernel": (7, 7)}
    return NeighborhoodRequest(**{**common, **changes})


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a capability with compiled kernels, as far as questions go."""
    monkeypatch.setattr(natten, "_import", lambda: (SimpleNamespace(), ""))

    def of(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    of(8, 0)
    return of


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float32}, None),
        ({"value_width": 64}, None),
        ({"bias": True}, "know no bias"),
        ({"dtype": torch.float64}, "cutlass-fna: no kernel for torch.float64"),
        ({"width": 12}, "multiple of 8 channels, got 12 and 32"),
        ({"kernel": (1, 3)}, "windows of one position, got 1 x 3"),
        ({"empty": True}, "nothing to compute"),
        ({"device": torch.device("cpu")}, "needs a CUDA device, the tensors are on cpu"),
    ],
)
def test_what_natten_serves(gpu, changes, reason):
    found = natten.why_not(request_of(**changes))
    assert found is None if reason is None else reason in (found or "")


def test_kernels_of_natten_by_gpu(gpu):
    assert "needs compute capability 9.0, this GPU has 8.0" in str(natten.kernel_reasons(request_of())["hopper-fna"])
    gpu(9, 0)
    usable = lambda **changes: [k for k, v in natten.kernel_reasons(request_of(**changes)).items() if v is None]  # noqa: E731
    assert usable() == ["hopper-fna", "cutlass-fna"]
    assert usable(dtype=torch.float32) == ["cutlass-fna"]
    assert usable(width=256, value_width=256) == ["hopper-fna", "cutlass-fna"]
    assert usable(width=256, value_width=256, needs_grad=True) == ["cutlass-fna"]
    assert usable(value_width=64) == ["cutlass-fna"]
    gpu(10, 0)
    assert usable(width=48, value_width=48) == ["blackwell-fna", "cutlass-fna"]
    gpu(5, 2)
    assert "needs compute capability 6.0 or above" in str(natten.kernel_reasons(request_of())["cutlass-fna"])


def test_natten_kernels_without_a_deterministic_backward_are_passed_over(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    reasons = natten.kernel_reasons(request_of(needs_grad=True))
    assert "not deterministic" in str(reasons["hopper-fna"]) and reasons["cutlass-fna"] is None


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_used", {})
    dispatch.set_default(None)
    yield
    dispatch.set_default(None)


def test_forced_natten_says_why_it_cannot_serve(fresh, monkeypatch):
    q, k, v, _ = inputs()
    with pytest.raises(ConfigError, match=r"backend argument.*'natten' cannot serve.*needs a CUDA device"):
        neighborhood_attention(q, k, v, kernel_size=3, backend="natten")
    monkeypatch.setenv(dispatch.VARIABLE, "natten")
    with pytest.raises(ConfigError, match=r"GRAFTWORK_ATTENTION.*needs a CUDA device"):
        neighborhood_attention(q, k, v, kernel_size=3)


def test_wishing_for_natten_leaves_other_operators_alone(fresh):
    tokens = torch.randn(1, 6, 2, 4)
    expected = attend(tokens, tokens, tokens)
    dispatch.set_default("natten")
    assert torch.equal(attend(tokens, tokens, tokens), expected)
    assert flow_attention(tokens, tokens, tokens).shape == tokens.shape
    with pytest.raises(ConfigError, match="serves neighborhood attention only"):
        attend(tokens, tokens, tokens, backend="natten")


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_backends_without_neighborhoods_count_as_the_fast_form(fresh, name):
    q, k, v, bias = inputs()
    with force(name):
        neighborhood_attention(q, k, v, kernel_size=3, bias=bias)
    (choice,) = dispatch.used()["neighborhood_attention"]
    assert choice["backend"] == "fast" and choice["wanted_by"] == "attention.force"


def test_record_tells_form_and_why_not_natten(fresh):
    q, k, v, bias = inputs()
    neighborhood_attention(q, k, v, kernel_size=3, bias=bias)
    with force("math"):
        neighborhood_attention(q, k, v, kernel_size=3, bias=bias)
    fast, literal = dispatch.used()["neighborhood_attention"]
    assert fast["backend"] == "fast" and "CUDA" in fast["passed_over"]["natten"]
    assert literal["backend"] == "math" and literal["wanted_by"] == "attention.force"


def test_natten_is_called_with_maps_that_hold_a_window(fresh, monkeypatch):
    """With kernels that work, as on a GPU, auto takes natten; its result is cropped like ours."""
    calls = []

    def run(q, k, v, *, kernel, dilation, scale):
        calls.append((tuple(q.shape[1:3]), kernel, dilation))
        return literal_attention(q, k, v, None, kernel, dilation, scale)

    working = SimpleNamespace(why_not=lambda request: None, run=run, probe=lambda *_: ([v.detach()], [v.detach()]))
    q, k, v, _ = inputs(1, 5, 9)
    real = dispatch.backend_module
    dispatch.probe.cache_clear()
    monkeypatch.setattr(dispatch, "backend_module", lambda name: working if name == "natten" else real(name))
    monkeypatch.setitem(neighborhood_attention.__globals__, "backend_module", dispatch.backend_module)
    found = neighborhood_attention(q, k, v, kernel_size=3, dilation=2)
    dispatch.probe.cache_clear()
    assert calls == [((6, 9), (3, 3), (2, 2))]
    torch.testing.assert_close(found, neighborhood_attention(q, k, v, kernel_size=3, dilation=2, backend="math"))


def test_explained_row_of_natten_names_the_device_and_the_package(fresh, monkeypatch):
    (row,) = [row for row in dispatch.explain("cpu") if row.backend == "natten"]
    assert row.dtypes == () and "needs a CUDA device" in row.reason and "without bias" in row.reason
    monkeypatch.setattr(natten.importlib.util, "find_spec", lambda name: None)
    assert "graftwork[natten]" in natten._import.__wrapped__()[1]


@pytest.mark.parametrize(("size", "kernel", "dilation"), [((9, 11), 3, 1), ((13, 10), 3, 3)])
def test_natten_on_a_cpu_gives_the_same(size, kernel, dilation):
    library = pytest.importorskip("natten", reason="natten is not installed")
    q, k, v, _ = (leaf.detach().float() for leaf in inputs(1, *size, 2, 8))
    expected = library.na2d(q, k, v, kernel_size=kernel, dilation=dilation, scale=0.3)
    found = neighborhood_attention(q, k, v, kernel_size=kernel, dilation=dilation, scale=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
