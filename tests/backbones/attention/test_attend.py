"""Every backend means the same: the reference is checked against loops, the others against the reference."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention.attend import attend, without_autocast
from backbones.attention.backends import xformers
from backbones.attention.dispatch import Request, choose, force, probe
from graftwork.errors import ConfigError, ShapeError

OTHERS = ["sdpa"]
SIZES = {"batch": 2, "queries": 49, "keys": 49, "heads": 2, "width": 16, "value_width": 16}


def inputs(batch=2, queries=5, keys=7, heads=2, width=4, value_width=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, value_width or width)]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def by_loops(q, k, v, bias=None, causal=False, lengths=None, scale=None):
    """The definition, a query at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=v.dtype)
    bias = None if bias is None else bias.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for i in range(q.shape[1]):
                seen = list(range(k.shape[1] if lengths is None else min(int(lengths[b]), k.shape[1])))
                if causal:
                    seen = [j for j in seen if j <= i + k.shape[1] - q.shape[1]]
                if bias is not None and bias.dtype == torch.bool:
                    seen = [j for j in seen if bias[b, h, i, j]]
                if not seen:
                    continue
                logits = k[b, seen, h] @ q[b, i, h] * (q.shape[-1] ** -0.5 if scale is None else scale)
                if bias is not None and bias.dtype != torch.bool:
                    logits = logits + bias[b, h, i, seen]
                out[b, i, h] = torch.softmax(logits, 0) @ v[b, seen, h]
    return out


@pytest.mark.parametrize("queries, keys", [(5, 5), (3, 7), (7, 3), (1, 6), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, [0, 4]])
@pytest.mark.parametrize("kind", ["none", "float", "bool"])
@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_definition(queries, keys, causal, lengths, kind, backend):
    q, k, v = inputs(queries=queries, keys=keys)
    bias = {"none": None, "float": torch.randn(2, queries, keys, dtype=q.dtype)}.get(
        kind, torch.rand(2, 1, 1, keys) > 0.4
    )
    lengths = None if lengths is None else torch.tensor(lengths)
    found = attend(q, k, v, bias=bias, causal=causal, lengths=lengths, scale=0.7, backend=backend)
    torch.testing.assert_close(found, by_loops(q, k, v, bias, causal, lengths, 0.7))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_backends_agree_in_values_and_gradients(data):
    draw = data.draw
    size = st.integers(1, 9)
    q, k, v = inputs(draw(st.integers(1, 3)), draw(size), draw(size), draw(st.integers(1, 3)), draw(size), draw(size))
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    shape = [draw(st.sampled_from([1, goal])) for goal in full]
    kind = draw(st.sampled_from(["none", "float", "learned", "bool", "hidden"]))
    bias = None if kind == "none" else torch.randn(shape, dtype=q.dtype)
    if kind == "bool":
        bias = bias > 0
    if kind == "hidden":
        bias = bias.masked_fill(bias > 0.5, -torch.inf)
    leaves = [q, k, v] + ([bias.requires_grad_()] if kind == "learned" else [])
    lengths = draw(st.sampled_from([None, torch.randint(0, k.shape[1] + 2, (q.shape[0],))]))
    options = {
        "bias": bias,
        "lengths": lengths,
        "causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.3])),
    }
    weight = torch.randn(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    results = []
    for backend in ["math", *OTHERS]:
        out = attend(q, k, v, backend=backend, **options)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_reference_passes_the_numerical_gradient_check():
    q, k, v = inputs(queries=3, keys=4, width=2)
    bias = torch.randn(2, 3, 4, dtype=q.dtype, requires_grad=True)
    lengths = torch.tensor([0, 3])

    def call(q, k, v, bias):
        return attend(q, k, v, bias=bias, lengths=lengths, backend="math")

    assert torch.autograd.gradcheck(call, (q, k, v, bias))


@pytest.mark.parametrize("backend", ["math", *OTHERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_query_that_sees_nothing_gives_zeros_and_zero_gradients(backend, dtype):
    leaves = inputs(dtype=dtype)
    out = attend(*leaves, lengths=torch.tensor([0, 2]), backend=backend)
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    assert out.dtype == dtype and (out[0] == 0).all() and (out[1] != 0).any()
    assert all((gradient[0] == 0).all() and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_ignored_keys_do_not_matter(backend):
    q, k, v = inputs()
    lengths = torch.tensor([3, 5])
    expected = attend(q, k, v, lengths=lengths, backend=backend)
    k, v = k.detach().clone(), v.detach().clone()
    k[0, 3:], v[1, 5:] = 1e6, -1e6
    torch.testing.assert_close(attend(q, k, v, lengths=lengths, backend=backend), expected)


@pytest.mark.parametrize("backend", ["math", *OTHERS])
@pytest.mark.parametrize("batch, queries, keys", [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_empty_inputs(backend, batch, queries, keys, causal):
    q, k, v = inputs(batch, queries, keys)
    out = attend(q, k, v, causal=causal, backend=backend)
    assert out.shape == (batch, queries, 2, 4) and (out == 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), (q, k, v), allow_unused=False))


@pytest.mark.parametrize("backend", ["math", *OTHERS])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_half_types_stay_close_to_float32(backend, dtype, tolerance):
    q, k, v = inputs(queries=40, keys=40, width=13, dtype=torch.float32)
    bias = torch.randn(2, 40, 40)
    expected = attend(q, k, v, bias=bias, backend="math")
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype), bias=bias, backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_very_negative_bias_is_not_minus_infinity_in_float16(backend):
    q, k, v = inputs(dtype=torch.float16)
    out = attend(0 * q, k, v, bias=torch.full((1, 1, 1, 7), -1e9), backend=backend)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand_as(out), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_autocast_decides_the_type(backend):
    q, k, v = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(q, k, v, backend=backend).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["auto", "math", *OTHERS])
def test_dropout_keeps_the_mean_and_one_drops_everything(backend):
    torch.manual_seed(0)
    q, k, v = inputs(batch=64, queries=32, keys=32)
    plain = attend(q, k, v, backend=backend)
    dropped = attend(q, k, v, dropout=0.4, backend=backend)
    assert not torch.allclose(dropped, plain)
    assert abs(float((dropped - plain).mean().detach())) < 0.02
    assert (attend(q, k, v, dropout=1.0, backend=backend) == 0).all()


def test_streaming_with_cached_keys_equals_one_pass():
    q, k, v = inputs(queries=6, keys=6)
    whole = attend(q, k, v, causal=True)
    last_two = attend(q[:, 4:], k, v, causal=True)
    torch.testing.assert_close(last_two, whole[:, 4:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": (5, 2, 4)}, r"q: expected \[batch, tokens, heads, channels\], got \[5, 2, 4\]"),
        ({"k": (2, 7, 3, 4)}, r"k: expected \[2, tokens, 2, 4\] to fit q \[2, 5, 2, 4\], got \[2, 7, 3, 4\]"),
        ({"v": (2, 6, 2, 4)}, r"v: expected \[2, 7, 2, channels\] to fit k \[2, 7, 2, 4\], got \[2, 6, 2, 4\]"),
        ({"bias": (5, 5)}, r"bias: .*broadcastable to \[2, 2, 5, 7\], got \[5, 5\]"),
        ({"bias": (1, 2, 2, 5, 7)}, r"bias: .*got \[1, 2, 2, 5, 7\]"),
        ({"lengths": (3,)}, r"lengths: expected integers \[2\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    shapes = {"q": (2, 5, 2, 4), "k": (2, 7, 2, 4), "v": (2, 7, 2, 4), **change}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ShapeError, match=message):
        attend(**tensors)


def test_dropout_outside_its_range():
    with pytest.raises(ConfigError, match=r"dropout=1\.5"):
        attend(*inputs(), dropout=1.5)


def test_xformers_mask_is_aligned_and_unbroadcast():
    q, k, _ = inputs(dtype=torch.float32)
    lengths = torch.tensor([0, 3])
    mask, empty = xformers.additive_mask(q, k, torch.randn(1, 2, 1, 7), False, lengths)
    assert mask.shape == (2, 2, 5, 7) and mask.stride(-1) == 1
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert empty[0].all() and not empty[1].any()
    assert mask.isfinite()[0].all() and mask.isneginf()[1, :, :, 3:].all()


@pytest.mark.parametrize("backend", ["math", *OTHERS])
@pytest.mark.parametrize("width, value_width", [(1, 1), (3, 3), (7, 5), (30, 30), (33, 2)])
def test_heads_that_are_no_multiples_of_eight(backend, width, value_width):
    q, k, v = inputs(width=width, value_width=value_width)
    torch.testing.assert_close(attend(q, k, v, backend=backend), by_loops(q, k, v))


@pytest.mark.parametrize("backend", ["math", *OTHERS])
@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (2, 5, 7), (5, 7), (2, 1, 1, 7), (1, 2, 5, 1), (7,), ()])
def test_gradient_of_a_broadcast_bias_is_summed_to_its_shape(backend, shape):
    leaves = inputs()
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    full = bias.detach().expand(2, 2, 5, 7).clone().requires_grad_()
    weight = torch.randn(2, 5, 2, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad((attend(*leaves, bias=bias, backend=backend) * weight).sum(), bias)
    (whole,) = torch.autograd.grad((attend(*leaves, bias=full, backend="math") * weight).sum(), full)
    assert found.shape == bias.shape
    torch.testing.assert_close(found, whole.sum_to_size(shape))


@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_learned_bias_that_hides_keys_and_whole_rows(backend):
    leaves = inputs()
    bias = torch.randn(2, 5, 7, dtype=torch.float64)
    bias[:, 1], bias[0, 2, 3:] = -torch.inf, -torch.inf
    bias.requires_grad_()
    out = attend(*leaves, bias=bias, backend=backend)
    torch.testing.assert_close(
        out,
        by_loops(*leaves, bias=bias.masked_fill(bias.isneginf(), -1e300)).where(
            torch.arange(5)[:, None, None] != 1, 0.0
        ),
    )
    gradients = torch.autograd.grad((out * out.detach().cos()).sum(), [*leaves, bias])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, 1] == 0).all() and (gradients[3].masked_select(bias.isneginf()) == 0).all()


@pytest.mark.parametrize("backend", ["auto", "math", *OTHERS])
def test_learned_bias_without_gradients_gives_the_same(backend):
    leaves, bias = inputs(), torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    expected = attend(*leaves, bias=bias, backend="math")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(attend(*leaves, bias=bias, backend=backend), expected.detach())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_autocast_keeps_the_type(device):
    x = torch.randn(2, 2, device=device)
    with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(x):
        assert (x @ x).dtype == torch.float32


def test_cpu_takes_the_formula_where_no_fused_kernel_pays():
    def chosen(**changes) -> str:
        request = {"device": torch.device("cpu"), "dtype": torch.float32, **SIZES, **changes}
        return choose("attend", Request(**request))

    assert chosen() == chosen(needs_grad=True) == chosen(bias="float", needs_grad=True) == "sdpa"
    assert chosen(bias="float", bias_grad=True) == chosen(dropout=0.1) == "math"
    assert chosen(dtype=torch.bfloat16) == chosen(dtype=torch.bfloat16, needs_grad=True, keys=4096) == "sdpa"
    assert chosen(dtype=torch.bfloat16, needs_grad=True) == "math"


@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_dropout_scales_what_is_left(backend):
    """Over n equal weights the share that is left has mean 1 and variance p / (n (1 - p)), in every row anew."""
    torch.manual_seed(0)
    q, k, v = torch.zeros(16, 50, 4, 8), torch.zeros(16, 25, 4, 8), torch.ones(16, 25, 4, 1)
    shares = attend(q, k, v, dropout=0.2, backend=backend)
    assert abs(float(shares.mean()) - 1) < 0.01
    assert abs(float(shares.var()) / (0.2 / (25 * 0.8)) - 1) < 0.1
    lengths = torch.tensor([0, 25] * 8)
    assert (attend(q, k, v, lengths=lengths, dropout=0.2, backend=backend)[::2] == 0).all()


@pytest.mark.parametrize("backend", ["math", *OTHERS])
def test_deterministic_mode(backend):
    leaves, bias = inputs(dtype=torch.float32), torch.randn(2, 5, 7, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [attend(*leaves, bias=bias, lengths=torch.tensor([3, 7]), backend=backend) for _ in range(2)]
        gradients = [torch.autograd.grad(out.square().sum(), [*leaves, bias]) for out in runs]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*runs) and all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("backend", ["auto", "math", *OTHERS])
def test_autocast_leaves_double_precision_alone(backend):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(*inputs(), backend=backend).dtype == torch.float64


class FakeLibrary:
    """The kernels of xformers as their documents tell: what they accept, and plain softmax over it."""

    class LowerTriangularFromBottomRightMask:
        pass

    def __init__(self) -> None:
        masks = SimpleNamespace(LowerTriangularFromBottomRightMask=self.LowerTriangularFromBottomRightMask)
        self.fmha = SimpleNamespace(attn_bias=masks)

    def memory_efficient_attention(self, q, k, v, attn_bias, p, scale):
        assert q.shape[-1] % 8 == k.shape[-1] % 8 == v.shape[-1] % 8 == 0 and p == 0
        logits = torch.einsum("bqhc,bkhc->bhqk", q, k) * scale
        if isinstance(attn_bias, self.LowerTriangularFromBottomRightMask):
            assert q.shape[1] <= k.shape[1]
            logits = logits.masked_fill(~torch.ones(logits.shape[-2:]).tril(k.shape[1] - q.shape[1]).bool(), -torch.inf)
        elif attn_bias is not None:
            assert attn_bias.shape == logits.shape and attn_bias.stride(-1) == 1 and attn_bias.dtype == q.dtype
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
            logits = logits + attn_bias
        return torch.einsum("bhqk,bkhc->bqhc", logits.softmax(-1), v)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_calls_for_xformers_are_aligned_and_mean_the_same(data):
    draw = data.draw
    size = st.integers(1, 9)
    leaves = inputs(draw(st.integers(1, 2)), draw(size), draw(size), 2, draw(size), draw(size))
    full = (leaves[0].shape[0], 2, leaves[0].shape[1], leaves[1].shape[1])
    kind = draw(st.sampled_from(["none", "learned", "bool", "hidden"]))
    bias = None if kind == "none" else torch.randn([draw(st.sampled_from([1, goal])) for goal in full]).double()
    if kind == "bool":
        bias = bias > 0
    if kind == "hidden":
        bias = bias.masked_fill(bias > 0.3, -torch.inf)
    options = {"bias": bias, "causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.3]))}
    options["lengths"] = draw(st.sampled_from([None, torch.randint(0, full[3] + 2, full[:1])]))
    wanted = leaves + ([bias.requires_grad_()] if kind == "learned" else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xformers, "_import", lambda: (FakeLibrary(), ""))
        found = xformers.run(*leaves, **options)
    expected = attend(*leaves, backend="math", **options)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        *([out, *torch.autograd.grad((out * weight).sum(), wanted)] for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_kernels_of_xformers_say_themselves_what_they_lack():
    ops, reason = xformers._import()
    if reason:
        pytest.skip(reason)
    request = Request(device=torch.device("cpu"), dtype=torch.float32, needs_grad=True, **SIZES)
    refusal = xformers._refusal(ops, request, False)
    assert refusal.startswith("no kernel serves it") and "cutlass" in refusal and "device=cpu" in refusal


def test_widths_for_flash_attention_are_one_and_aligned():
    q, k, v = inputs(width=13, value_width=20, dtype=torch.float16)
    assert [x.shape[-1] for x in xformers.pad_channels(q, k, v)] == [24, 24, 24]
    q, k, v = inputs(width=13, value_width=20, dtype=torch.float32)
    assert [x.shape[-1] for x in xformers.pad_channels(q, k, v)] == [16, 16, 24]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["sdpa", "xformers"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", ["none", "causal", "lengths", "learned", "odd"])
def test_cuda_backends_agree_with_math(backend, dtype, tolerance, kind):
    leaves = [x.detach().to("cuda", dtype).requires_grad_() for x in inputs(2, 33, 33, 2, 13 if kind == "odd" else 32)]
    options: dict = {"causal": kind == "causal"}
    if kind == "lengths":
        options["lengths"] = torch.tensor([0, 20], device="cuda")
    if kind == "learned":
        options["bias"] = torch.randn(1, 2, 33, 33, device="cuda", dtype=dtype, requires_grad=True)
        leaves.append(options["bias"])
    results = []
    for name in ("math", backend):
        out = attend(*leaves[:3], backend=name, **options)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * max(1, math.sqrt(33)))


@pytest.mark.parametrize("lengths", [False, True])
def test_exported_graph_takes_other_lengths(lengths):
    class Layer(torch.nn.Module):
        def forward(self, x, counts):
            return attend(x, x, x, lengths=counts if lengths else None)

    def arguments(tokens):
        return torch.randn(2, tokens, 2, 8), torch.tensor([3, 5])

    tokens = torch.export.Dim("tokens", min=2, max=64)
    exported = torch.export.export(Layer(), arguments(9), dynamic_shapes=({1: tokens}, {}), strict=False)
    given = arguments(23)
    torch.testing.assert_close(exported.module()(*given), Layer()(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_transforms_and_fake_tensors_leave_the_probes_alone(backend):
    probe.cache_clear()
    tokens, bias = torch.randn(3, 2, 5, 2, 4), torch.randn(3, 2, 5, 5)

    def call(tokens, bias):
        return attend(tokens, tokens, tokens, bias=bias, backend=backend)

    mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        assert call(tokens[0], bias[0]).shape == (2, 5, 2, 4)
    assert call(mode.from_tensor(tokens[0]), mode.from_tensor(bias[0])).shape == (2, 5, 2, 4)  # outside of it, too
    together = torch.func.vmap(call)(tokens, bias)
    torch.testing.assert_close(together, torch.stack([call(*each) for each in zip(tokens, bias, strict=True)]))
    assert choose("attend", Request(**{**SIZES, "device": torch.device("cpu"), "dtype": torch.float32})) == "sdpa"


def test_compiled_without_a_break_and_as_the_eager_call_chooses():
    leaves = [*inputs(dtype=torch.float32), torch.randn(2, 5, 7, requires_grad=True)]

    def call(q, k, v, bias):
        return attend(q, k, v, bias=bias, causal=True)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(
        *([out, *torch.autograd.grad(out.square().sum(), leaves)] for out in (compiled(*leaves), call(*leaves))),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), force("sdpa"):
        nodes = []

        def look(graph, _):
            nodes.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        torch.compile(call, backend=look, fullgraph=True)(*leaves)
    assert any("scaled_dot_product_attention" in node for node in nodes)


def test_compiled_call_follows_the_wish():
    q, k, v = inputs(dtype=torch.float32)
    expected = attend(q, k, v, causal=True)
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, causal=True), backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), expected)
    with force("xformers"), pytest.raises(ConfigError, match="needs a CUDA device"):
        compiled(q, k, v)
