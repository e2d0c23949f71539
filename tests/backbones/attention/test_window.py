"""Attention inside windows: fast forms against the literal one, and against Swin, MaxViT and HAT as published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from backbones.attention import window as module
from backbones.attention.attend import attend
from backbones.attention.dispatch import force
from backbones.attention.partition import relative_bias
from backbones.attention.window import grid_attention, overlapping_window_attention, window_attention
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError

SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7))
OPERATORS = {
    "window": lambda q, k, v, **options: window_attention(q, k, v, window=3, shift=1, **options),
    "wrapped": lambda q, k, v, **options: window_attention(q, k, v, window=3, shift=(2, 1), wrap=True, **options),
    "grid": lambda q, k, v, **options: grid_attention(q, k, v, grid=3, **options),
    "overlapping": lambda q, k, v, **options: overlapping_window_attention(q, k, v, window=3, key_window=5, **options),
}


def maps(batch=2, height=7, width=8, heads=2, channels=4, value_channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(height * 31 + width)
    shapes = [(batch, height, width, heads, size) for size in (channels, channels, value_channels)]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def bias_for(name, heads, dtype=torch.float64):
    keys = 25 if name == "overlapping" else 9
    return torch.randn(heads, 9, keys, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def assert_forms_agree(call, leaves, tolerance=1e-9):
    results = []
    for backend in ("auto", "math"):
        out = call(backend)
        results.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)])
    for fast, literal in zip(*results, strict=True):
        assert fast.isfinite().all()
        torch.testing.assert_close(fast, literal, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["cyclic", "strips"])
def form(request, monkeypatch):
    monkeypatch.setitem(module.CYCLIC_LOGITS, "cpu", {"cyclic": 1 << 40, "strips": 0}[request.param])
    return request.param


@settings(max_examples=80)
@given(data=st.data())
def test_window_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    sizes = [draw(st.integers(1, most)) for most in (2, 11, 11, 3, 5, 5)]
    window = draw(SIDES)
    shift = tuple(draw(st.integers(0, side - 1)) for side in window)
    leaves = maps(*sizes)
    tokens = window[0] * window[1]
    bias = torch.randn(draw(st.sampled_from([1, sizes[3]])), tokens, tokens, dtype=torch.float64, requires_grad=True)
    bias = draw(st.sampled_from([None, bias]))
    options = {
        "window": window,
        "shift": shift,
        "bias": bias,
        "scale": draw(st.sampled_from([None, 0.3])),
        "wrap": draw(st.booleans()),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.CYCLIC_LOGITS, "cpu", draw(st.sampled_from([0, 1 << 40])))
        assert_forms_agree(
            lambda backend: window_attention(*leaves, backend=backend, **options),
            leaves + ([] if bias is None else [bias]),
        )


@settings(max_examples=40)
@given(data=st.data())
def test_grid_and_overlapping_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    sizes = [draw(st.integers(1, most)) for most in (2, 11, 11, 2, 4, 4)]
    sides = draw(SIDES)
    outer = tuple(side + 2 * draw(st.integers(0, 4)) for side in sides)
    leaves = maps(*sizes)
    tokens = sides[0] * sides[1]
    bias = torch.randn(sizes[3], tokens, tokens, dtype=torch.float64, requires_grad=True)
    assert_forms_agree(lambda backend: grid_attention(*leaves, grid=sides, bias=bias, backend=backend), [*leaves, bias])
    bias = torch.randn(sizes[3], tokens, outer[0] * outer[1], dtype=torch.float64, requires_grad=True)
    assert_forms_agree(
        lambda backend: overlapping_window_attention(
            *leaves, window=sides, key_window=outer, bias=bias, backend=backend
        ),
        [*leaves, bias],
    )


def by_tokens(q, k, v, window, shift, bias):
    """The definition, a query at a time: the keys of the map in the same shifted window."""
    out = torch.zeros_like(v)
    places = [(y, x) for y in range(q.shape[1]) for x in range(q.shape[2])]

    def spot(place):
        shifted = [coordinate - by for coordinate, by in zip(place, shift, strict=True)]
        tile = tuple(c // side for c, side in zip(shifted, window, strict=True))
        return tile, (shifted[0] % window[0]) * window[1] + shifted[1] % window[1]

    for y, x in places:
        tile, mine = spot((y, x))
        seen = [place for place in places if spot(place)[0] == tile]
        rows, columns = [p[0] for p in seen], [p[1] for p in seen]
        logits = torch.einsum("bhc,bnhc->bhn", q[:, y, x], k[:, rows, columns]) * q.shape[-1] ** -0.5
        logits = logits + bias[:, mine, [spot(place)[1] for place in seen]]
        out[:, y, x] = torch.einsum("bhn,bnhc->bhc", logits.softmax(-1), v[:, rows, columns])
    return out


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 9), (1, 1)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (2, 0)])
def test_definition(size, shift, form):
    q, k, v = (tensor.detach() for tensor in maps(1, *size))
    bias = torch.randn(2, 9, 9, dtype=q.dtype)
    expected = by_tokens(q, k, v, (3, 3), shift, bias)
    for backend in ("auto", "math"):
        found = window_attention(q, k, v, window=3, shift=shift, bias=bias, backend=backend)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [(14, 14), (7, 21), (28, 7)])
@pytest.mark.parametrize("shift", [0, 3])
def test_agrees_with_swin_on_multiples_of_the_window(size, shift, form):
    swin = pytest.importorskip("timm.models.swin_transformer")
    torch.manual_seed(0)
    block = swin.SwinTransformerBlock(
        12, size, num_heads=3, window_size=7, shift_size=shift, always_partition=True, dynamic_mask=True
    ).eval()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, *size, 12)
    q, k, v = block.attn.qkv(x).unflatten(-1, (3, 3, 4)).unbind(3)
    bias = relative_bias(block.attn.relative_position_bias_table, 7)
    ours = block.attn.proj(window_attention(q, k, v, window=7, shift=shift, bias=bias).flatten(-2))
    torch.testing.assert_close(ours, block._attn(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(14, 21), (7, 7)])
def test_grid_agrees_with_maxvit(size):
    maxvit = pytest.importorskip("timm.models.maxxvit")
    q, k, v = maps(2, *size, value_channels=4)
    parts = [
        maxvit.grid_partition(tensor.flatten(-2), [7, 7]).flatten(1, 2).unflatten(-1, (2, 4)) for tensor in (q, k, v)
    ]
    theirs = maxvit.grid_reverse(attend(*parts).unflatten(1, (7, 7)).flatten(-2), [7, 7], list(size))
    torch.testing.assert_close(grid_attention(q, k, v, grid=7).flatten(-2), theirs)


def test_overlapping_agrees_with_hat_as_published():
    q, k, v = maps(1, 8, 12, heads=3, channels=2, value_channels=2)
    table = torch.randn((4 + 6 - 1) ** 2, 3, dtype=q.dtype)
    keys, values = (
        F.unfold(tensor.flatten(3).permute(0, 3, 1, 2), 6, padding=1, stride=4).view(1, 3, 2, 36, 6)
        for tensor in (k, v)
    )
    windows = q.view(2, 4, 3, 4, 3, 2).transpose(1, 2).reshape(6, 16, 3, 2)
    logits = torch.einsum("nqhc,ahckn->nhqk", windows, keys) * 2**-0.5 + relative_bias(table, 4, 6)
    mixed = torch.einsum("nhqk,ahckn->nqhc", logits.softmax(-1), values)
    expected = mixed.view(2, 3, 4, 4, 3, 2).transpose(1, 2).reshape(1, 8, 12, 3, 2)
    bias = relative_bias(table, 4, 6)
    found = overlapping_window_attention(q, k, v, window=4, key_window=6, bias=bias)
    torch.testing.assert_close(found, expected)


def test_wrapped_windows_go_on_at_the_other_side(form):
    q, k, v = maps(1, 6, 9)
    rolled = [tensor.roll((-1, -2), (1, 2)) for tensor in (q, k, v)]
    expected = window_attention(*rolled, window=3).roll((1, 2), (1, 2))
    torch.testing.assert_close(window_attention(q, k, v, window=3, shift=(1, 2), wrap=True), expected)


def test_window_above_the_map_is_global_attention(form):
    q, k, v = maps(height=4, width=5)
    expected = attend(*(tensor.flatten(1, 2) for tensor in (q, k, v))).unflatten(1, (4, 5))
    torch.testing.assert_close(window_attention(q, k, v, window=9), expected)
    torch.testing.assert_close(grid_attention(q, k, v, grid=9), expected)


def test_tokens_beyond_the_map_do_not_exist(form):
    """A window cut off by the border gives what a map of its tokens alone gives."""
    q, k, v = maps(height=7, width=8)
    whole = window_attention(q, k, v, window=5)
    corner = window_attention(*(tensor[:, 5:, 5:] for tensor in (q, k, v)), window=5)
    torch.testing.assert_close(whole[:, 5:, 5:], corner)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("batch, height, width", [(0, 7, 8), (2, 0, 4), (2, 1, 1)])
def test_empty_maps_and_single_tokens(name, batch, height, width):
    leaves = maps(batch, height, width)
    for backend in ("auto", "math"):
        out = OPERATORS[name](*leaves, backend=backend)
        assert out.shape == (batch, height, width, 2, 3)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), leaves))
    if name != "overlapping" and out.numel():
        torch.testing.assert_close(out, leaves[2])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_half_types_stay_close_to_float32(name, dtype, tolerance):
    q, k, v = maps(channels=13, dtype=torch.float32)
    bias = bias_for(name, 2, torch.float32)
    expected = OPERATORS[name](q, k, v, bias=bias, backend="math")
    for backend in ("auto", "sdpa", "math"):
        found = OPERATORS[name](q.to(dtype), k.to(dtype), v.to(dtype), bias=bias, backend=backend)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPERATORS)
def test_autocast_decides_the_type(name):
    q, k, v = maps(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert OPERATORS[name](q, k, v).dtype == OPERATORS[name](q, k, v, backend="math").dtype == torch.bfloat16


@pytest.mark.parametrize("name", OPERATORS)
def test_dropout_keeps_the_mean_and_one_drops_everything(name):
    torch.manual_seed(0)
    q, k, v = maps(batch=64, height=9, width=9)
    plain, dropped = OPERATORS[name](q, k, v), OPERATORS[name](q, k, v, dropout=0.4)
    assert not torch.allclose(dropped, plain)
    assert abs(float((dropped - plain).mean().detach())) < 0.02
    assert (OPERATORS[name](q, k, v, dropout=1.0) == 0).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_numerical_gradients(name):
    q, k, v = maps(1, 4, 5, 2, 2, 1)
    assert torch.autograd.gradcheck(
        lambda q, k, v, bias: OPERATORS[name](q, k, v, bias=bias), (q, k, v, bias_for(name, 2))
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_bias_of_one_head_serves_all(name):
    q, k, v = maps()
    bias = bias_for(name, 1)
    torch.testing.assert_close(OPERATORS[name](q, k, v, bias=bias), OPERATORS[name](q, k, v, bias=bias.repeat(2, 1, 1)))


def test_training_after_inference_uses_the_kept_tables():
    q, k, v = maps(1, 13, 5)
    with torch.inference_mode():
        window_attention(*(tensor.detach().clone() for tensor in (q, k, v)), window=(6, 4), shift=(1, 2))
    found = window_attention(q, k, v, window=(6, 4), shift=(1, 2), bias=torch.zeros(1, 24, 24).double())
    torch.testing.assert_close(found, window_attention(q, k, v, window=(6, 4), shift=(1, 2), backend="math"))
    found.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (q, k, v))
    with torch.device("meta"):  # the device of the tensors counts, not that of new ones
        window_attention(q, k, v, window=(6, 4), shift=(1, 2))


def test_forced_backend_serves_the_windows():
    q, k, v = maps(dtype=torch.float32)
    with force("xformers"), pytest.raises(ConfigError, match=r"xformers.*needs a CUDA device"):
        window_attention(q, k, v, window=3)
    with pytest.raises(ConfigError, match="did you mean xformers"):
        window_attention(q, k, v, window=3, backend="xformer")


def test_memory_does_not_grow_with_a_mask_for_every_window():
    """Shifted and cut windows need no more than twice the memory of whole ones."""

    def step(side, shift):
        leaves = maps(1, side, side, 2, 8, 8, torch.float32)
        return lambda: window_attention(*leaves, window=8, shift=shift, bias=bias).sum().backward()

    bias = torch.randn(2, 64, 64)
    whole = peak_memory(step(96, 0))
    assert peak_memory(step(97, 4)) < 2 * whole


SLOW = [name if name == "window" else pytest.param(name, marks=pytest.mark.slow) for name in OPERATORS]


@pytest.mark.parametrize("name", SLOW)
def test_compiled_without_a_break(name):
    compiled = torch.compile(
        lambda q, k, v, bias: OPERATORS[name](q, k, v, bias=bias), backend="aot_eager", fullgraph=True, dynamic=False
    )
    leaves = [*maps(1, 7, 8, dtype=torch.float32), bias_for(name, 2, torch.float32)]
    expected, found = OPERATORS[name](*leaves[:3], bias=leaves[3]), compiled(*leaves)
    weight = torch.randn_like(found)
    theirs, ours = ([out, *torch.autograd.grad((out * weight).sum(), leaves)] for out in (expected, found))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_for_maps_of_several_sizes(name):
    torch._dynamo.reset()  # every operator compiles the same lambda, up to three times, and torch allows eight
    compiled = torch.compile(lambda q, k, v: OPERATORS[name](q, k, v), backend="aot_eager", fullgraph=True)
    for size in ((7, 8), (40, 41), (9, 12)):
        leaves = maps(1, *size, dtype=torch.float32)
        torch.testing.assert_close(compiled(*leaves), OPERATORS[name](*leaves), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SLOW)
def test_exported_graph_takes_other_multiples_of_the_window(name):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return OPERATORS[name](x, x, x, bias=bias)

    bias = bias_for(name, 2, torch.float32).detach()
    rows, columns = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("columns", min=2, max=64)
    shapes = ({1: 3 * rows, 2: 3 * columns},)
    exported = torch.export.export(Layer(), (torch.randn(1, 9, 12, 2, 4),), dynamic_shapes=shapes, strict=False)
    for size in ((12, 9), (6, 27)):
        x = torch.randn(1, *size, 2, 4)
        torch.testing.assert_close(exported.module()(x), Layer()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"window": 0}, ConfigError, "window=0 must be"),
        ({"window": 3, "shift": 3}, ConfigError, "shift=3 must be below window=3"),
        ({"window": 3, "shift": (0, -1)}, ConfigError, r"shift=\(0, -1\)"),
        ({"window": (3, 2), "bias": torch.zeros(2, 9, 9)}, ShapeError, r"bias: expected \[2, 6, 6\], got \[2, 9, 9\]"),
        ({"window": 3, "bias": torch.zeros(3, 9, 9)}, ShapeError, r"bias: expected \[2, 9, 9\], got \[3, 9, 9\]"),
        ({"window": 3, "dropout": 2.0}, ConfigError, r"dropout=2\.0"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "math"])
def test_wrong_options_are_named(options, kind, message, backend):
    q, k, v = maps()
    with pytest.raises(kind, match=message):
        window_attention(q, k, v, backend=backend, **options)


def test_maps_that_do_not_fit_are_named():
    q, k, v = maps()
    with pytest.raises(ShapeError, match=r"q: expected \[batch, height, width, heads, channels\], got \[2, 7, 8, 8\]"):
        window_attention(q.flatten(-2), k, v, window=3)
    with pytest.raises(ShapeError, match=r"k: expected \[2, 7, 8, 2, 4\] as q, got \[2, 6, 8, 2, 4\]"):
        grid_attention(q, k[:, :6], v, grid=3)
    with pytest.raises(ShapeError, match=r"v: expected \[2, 7, 8, 2, channels\] to fit k, got \[2, 7, 7, 2, 3\]"):
        overlapping_window_attention(q, k, v[:, :, :7], window=3, key_window=5)
    with pytest.raises(ConfigError, match=r"key_window=\(4, 4\) must exceed window=\(3, 3\)"):
        overlapping_window_attention(q, k, v, window=3, key_window=4)
