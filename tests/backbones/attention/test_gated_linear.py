"""Gated linear attention: chunks and pairs against the recurrence, and that against the sum it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import dispatch, gated_linear, gated_linear_chunks
from backbones.attention.gated_linear import gated_linear_attention, gated_linear_step
from backbones.attention.gated_linear_chunks import ChunkedGatedLinear, is_mild
from backbones.timing import peak_memory
from graftwork.errors import ConfigError, ShapeError


def inputs(batch=2, tokens=7, heads=2, width=4, value_width=3, dtype=torch.float64, spread=1.0):
    """Queries, keys, values and the log gates of both directions."""
    generator = torch.Generator().manual_seed(31 * tokens + width)
    widths = (width, width, value_width, width, width)
    drawn = [torch.randn(batch, tokens, heads, size, dtype=dtype, generator=generator) for size in widths]
    drawn[3:] = [F.logsigmoid(spread * logit) / 16 for logit in drawn[3:]]
    return [tensor.requires_grad_() for tensor in drawn]


def first_state(q, v):
    generator = torch.Generator().manual_seed(5)
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    return torch.randn(shape, dtype=q.dtype, generator=generator).requires_grad_()


@pytest.fixture
def by_pairs(monkeypatch):
    """Takes every gate for an extreme one."""
    monkeypatch.setattr(gated_linear, "is_mild", lambda gates, chunk: False)


def by_sums(q, k, v, gate):
    """One head of one direction: every pair of tokens by itself, [T, d], [T, d], [T, e]."""
    rows = []
    for t in range(len(q)):
        terms = [(q[t] * k[s] * gate[s + 1 : t + 1].sum(0).exp()).sum() * v[s] for s in range(t + 1)]
        rows.append(sum(terms))
    return torch.stack(rows) * q.shape[-1] ** -0.5


def per_head(q, k, v, gate):
    heads = [
        torch.stack([by_sums(*(x[sample, :, head] for x in (q, k, v, gate))) for head in range(q.shape[2])], dim=1)
        for sample in range(q.shape[0])
    ]
    return torch.stack(heads)


def outcome(leaves, **options):
    """Values, state and all gradients of a call."""
    q, k, v, gate, *back = leaves[:4] + [options.pop("back")] if "back" in options else leaves[:4]
    state = options.get("state")
    out, last = gated_linear_attention(q, k, v, gate, backward_gate=back[0] if back else None, **options)
    loss = (out * out.detach().cos()).sum()
    if last is not None:
        loss = loss + (last * last.detach().sin()).sum()
    wanted = [q, k, v, gate, *back, *([state] if state is not None else [])]
    return [out, *([] if last is None else [last]), *torch.autograd.grad(loss, wanted)]


def flipped(*tensors):
    return [tensor.flip(1) for tensor in tensors]


# -- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_equals_the_sum_over_pairs(backend):
    q, k, v, gate, back = inputs()
    ahead = per_head(q, k, v, gate)
    out, _ = gated_linear_attention(q, k, v, gate, backend=backend)
    torch.testing.assert_close(out, ahead)
    (behind,) = flipped(per_head(*flipped(q, k, v, back)))
    out, last = gated_linear_attention(q, k, v, gate, backward_gate=back, backend=backend)
    torch.testing.assert_close(out, (ahead + behind) / 2)
    assert last is None


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_forms_agree_in_values_and_gradients(data):
    draw = data.draw
    sizes = [draw(st.integers(1, 3)), draw(st.integers(1, 80)), *(draw(st.integers(1, 5)) for _ in range(3))]
    leaves = inputs(*sizes, spread=draw(st.sampled_from([1.0, 40.0, 4000.0])))
    options = {}
    if draw(st.booleans()):
        options["back"] = leaves[4]
    elif draw(st.booleans()):
        options["state"] = first_state(leaves[0], leaves[2])
    chunk = draw(st.sampled_from([None, 1, 2, 5, 16, 64]))
    found = outcome(leaves, chunk=chunk, **options)
    for fast, literal in zip(found, outcome(leaves, backend="math", **options), strict=True):
        assert fast.isfinite().all()
        torch.testing.assert_close(fast, literal, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 70, 130, 300])
@pytest.mark.parametrize("both", [False, True])
def test_pairs_agree_in_values_and_gradients(by_pairs, both, tokens):
    leaves = inputs(tokens=tokens)
    options = {"back": leaves[4]} if both else {"state": first_state(leaves[0], leaves[2])}
    for fast, literal in zip(outcome(leaves, **options), outcome(leaves, backend="math", **options), strict=True):
        torch.testing.assert_close(fast, literal, rtol=1e-8, atol=1e-10)


def test_pairs_of_a_few_samples_at_a_time_change_nothing(by_pairs, monkeypatch):
    leaves = inputs(batch=3, tokens=9, heads=4)
    calls = [{"back": leaves[4]}, {"state": first_state(leaves[0], leaves[2])}]
    expected = [outcome(leaves, **call) for call in calls]
    monkeypatch.setattr(gated_linear, "PAIRED_ELEMENTS", 1)
    for call, whole in zip(calls, expected, strict=True):
        for ours, theirs in zip(outcome(leaves, **call), whole, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_gradients_against_differences():
    q, k, v, gate, back = inputs(batch=1, tokens=5, heads=1, width=2, value_width=2)
    state = first_state(q, v)
    assert torch.autograd.gradcheck(lambda *x: gated_linear_attention(*x[:4], state=x[4]), (q, k, v, gate, state))
    assert torch.autograd.gradcheck(
        lambda *x: gated_linear_attention(*x[:4], backward_gate=x[4])[0], (q, k, v, gate, back)
    )


@pytest.mark.parametrize("elements", [1, 40, 150])
def test_slabs_of_samples_and_heads_change_nothing(monkeypatch, elements):
    leaves = inputs(batch=3, tokens=9, heads=4)
    calls = [{"back": leaves[4]}, {"state": first_state(leaves[0], leaves[2])}]
    expected = [outcome(leaves, **call) for call in calls]
    monkeypatch.setattr(gated_linear_chunks, "SLAB_ELEMENTS", elements)
    for call, whole in zip(calls, expected, strict=True):
        for ours, theirs in zip(outcome(leaves, **call), whole, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_views_of_one_projection_are_taken_as_they_are():
    packed = torch.randn(2, 37, 3 * (4 + 4 + 6), dtype=torch.float64, requires_grad=True)
    gate = inputs(2, 37, 3, 4, 6)[3]

    def run(backend):
        q, k, v = (part.unflatten(-1, (3, -1)) for part in packed.split([12, 12, 18], dim=-1))
        out, _ = gated_linear_attention(q, k, v, gate, backend=backend)
        return out, torch.autograd.grad(out.square().sum(), packed)[0]

    for fast, literal in zip(run("auto"), run("math"), strict=True):
        torch.testing.assert_close(fast, literal)


# -- what the operator means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_gates_of_zero_are_plain_causal_linear_attention(backend):
    q, k, v, gate, _ = inputs(tokens=45)
    out, _ = gated_linear_attention(q, k, v, torch.zeros_like(gate), scale=1.0, backend=backend)
    plain = torch.einsum("bthd,bshd->bhts", q, k).tril() @ v.transpose(1, 2)
    torch.testing.assert_close(out, plain.transpose(1, 2))


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_flipped_tokens_and_swapped_gates_give_the_flipped_output(backend):
    q, k, v, gate, back = inputs(tokens=50)
    out, _ = gated_linear_attention(q, k, v, gate, backward_gate=back, backend=backend)
    mirrored, _ = gated_linear_attention(*flipped(q, k, v, back), backward_gate=gate.flip(1), backend=backend)
    torch.testing.assert_close(mirrored, out.flip(1))


def test_both_directions_are_the_mean_of_one_and_the_other():
    q, k, v, gate, back = inputs(tokens=50)
    ahead, _ = gated_linear_attention(q, k, v, gate)
    behind, _ = gated_linear_attention(*flipped(q, k, v, back))
    out, _ = gated_linear_attention(q, k, v, gate, backward_gate=back)
    torch.testing.assert_close(out, (ahead + behind.flip(1)) / 2)


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("cuts", [[1] * 40, [17, 1, 22], [40, 0], [0, 40]])
def test_state_continues_the_sequence(cuts, backend):
    leaves = inputs(tokens=40)[:4]
    whole, end = gated_linear_attention(*leaves)
    parts, state = [], None
    for pieces in zip(*(leaf.split(cuts, dim=1) for leaf in leaves), strict=True):
        out, state = gated_linear_attention(*pieces, state=state, backend=backend)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state, end)


def test_steps_equal_one_pass():
    leaves = inputs(tokens=6)[:4]
    whole, end = gated_linear_attention(*leaves, scale=0.3)
    state = None
    for t in range(6):
        out, state = gated_linear_step(*(leaf[:, t] for leaf in leaves), state=state, scale=0.3)
        torch.testing.assert_close(out, whole[:, t])
    torch.testing.assert_close(state, end)


def test_gate_of_minus_infinity_forgets_exactly():
    q, k, v, gate, _ = (tensor.detach() for tensor in inputs(tokens=90, dtype=torch.float32))
    gate[:, 50] = -torch.inf
    changed = [tensor.clone() for tensor in (q, k, v)]
    for tensor in changed:
        tensor[:, :50] = 1e6
    found, _ = gated_linear_attention(*changed, gate)
    expected, _ = gated_linear_attention(q, k, v, gate)
    assert torch.equal(found[:, 50:], expected[:, 50:]) and expected.isfinite().all()


# -- extreme gates, precision, mixed types ---------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0, 4000.0])
def test_float32_is_close_to_float64_whatever_the_gates(spread, both):
    leaves = inputs(1, 300, 2, 16, 8, torch.float32, spread)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    results = []
    for tensors, backend in ((leaves, "auto"), (exact, "math")):
        out, _ = gated_linear_attention(*tensors[:4], backward_gate=tensors[4] if both else None, backend=backend)
        grads = torch.autograd.grad(out.sum(), tensors[: 4 + both])
        results.append([out, *grads])
    for found, expected in zip(*results, strict=True):
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 3e-6


def test_strong_gates_all_along_are_exact():
    """Logits far below -88 * 16 / 32, where one exponent per half chunk would overflow float32."""
    q, k, v, _, _ = inputs(1, 200, 1, 4, 4, torch.float32)
    logits = torch.full_like(q, -150.0).requires_grad_()
    gate = F.logsigmoid(logits) / 16
    assert not is_mild([gate], 32)
    out, _ = gated_linear_attention(q, k, v, gate, backward_gate=gate)
    exact, _ = gated_linear_attention(*(x.detach().double() for x in (q, k, v, gate)), backward_gate=gate.double())
    torch.testing.assert_close(out, exact.float(), rtol=1e-5, atol=1e-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), [q, k, v, logits]))


def test_one_strong_gate_in_a_chunk_is_found_wherever_it_is():
    for place in (0, 15, 16, 31, 32, 69):
        gate = torch.zeros(1, 70, 1, 2)
        gate[0, place, 0, 1] = -60.0
        assert not is_mild([torch.zeros_like(gate), gate], 32)
    assert is_mild([torch.full((1, 70, 1, 2), -1.0)], 32)
    assert not is_mild([torch.full((1, 70, 1, 2), torch.nan)], 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype):
    leaves = inputs(1, 700, 2, 8, 8, torch.float32)
    expected, end = gated_linear_attention(*leaves[:4])
    narrow = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    found, state = gated_linear_attention(*narrow[:3], leaves[3])
    assert found.dtype == dtype and state.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=3e-2, atol=8e-2)
    torch.testing.assert_close(state, end, rtol=3e-2, atol=8e-2)
    grads = torch.autograd.grad(found.float().sum(), narrow[:3])
    assert all(grad.dtype == dtype and grad.isfinite().all() for grad in grads)


def test_autocast_does_not_reach_the_sums():
    leaves = inputs(1, 100, 2, 8, 8, torch.float32)
    expected, _ = gated_linear_attention(*leaves[:4], backward_gate=leaves[4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = gated_linear_attention(*leaves[:4], backward_gate=leaves[4])
        grads = torch.autograd.grad(found.sum(), leaves)
    assert torch.equal(found, expected)
    for ours, theirs in zip(grads, torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert torch.equal(ours, theirs)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "heads"), [(0, 5, 2), (2, 0, 2), (1, 1, 1), (2, 1, 3)])
def test_empty_and_single(batch, tokens, heads, both):
    leaves = inputs(batch, tokens, heads)
    out, last = gated_linear_attention(*leaves[:4], backward_gate=leaves[4] if both else None)
    assert out.shape == (batch, tokens, heads, 3)
    assert both or last.shape == (batch, heads, 4, 3)
    grads = torch.autograd.grad(out.sum(), leaves[: 4 + both])
    assert all(grad.shape == leaf.shape for grad, leaf in zip(grads, leaves, strict=False))


def test_no_tokens_leave_the_state():
    q, k, v, gate, _ = inputs(tokens=0)
    state = first_state(q, v)
    assert torch.equal(gated_linear_attention(q, k, v, gate, state=state)[1], state)


@pytest.mark.parametrize("gates", ["mild", "extreme"])
@pytest.mark.parametrize("both", [False, True])
def test_memory_of_a_training_step_grows_linearly(gates, both):
    peaks = []
    for tokens in (512, 2048):
        leaves = inputs(1, tokens, 1, 4, 8, torch.float32, 1.0 if gates == "mild" else 4000.0)
        options = {"backward_gate": leaves[4]} if both else {}
        run = lambda x=leaves, o=options: gated_linear_attention(*x[:4], **o)[0].sum().backward()  # noqa: E731
        peaks.append(peak_memory(run))
    assert 3 < peaks[1] / peaks[0] < 4.5


# -- graphs ----------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """The operator with gates made inside."""

    def __init__(self, both):
        super().__init__()
        self.both = both

    def forward(self, q, k, v, gate, back):
        gate, back = F.logsigmoid(gate) / 16, F.logsigmoid(back) / 16
        out, last = gated_linear_attention(q, k, v, gate, backward_gate=back if self.both else None)
        return (out,) if last is None else (out, last)


def logits(tokens, batch=1):
    return tuple(tensor.detach() for tensor in inputs(batch, tokens, 2, dtype=torch.float32))


def nodes(exported):
    return sum(len(module.graph.nodes) for module in exported.graph_module.modules() if hasattr(module, "graph"))


@pytest.mark.parametrize("both", [pytest.param(False, marks=pytest.mark.slow), True])
def test_exported_graph_is_small_and_exact(both):
    layer, given = Layer(both), logits(3136)
    exported = torch.export.export(layer, given, strict=False)
    assert nodes(exported) < 220
    for found, expected in zip(exported.module()(*given), layer(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("both", [pytest.param(False, marks=pytest.mark.slow), True])
def test_exported_graph_takes_other_lengths(both):
    layer = Layer(both)
    length = torch.export.Dim("length", min=2, max=10_000)
    shapes = {name: {0: torch.export.Dim("batch"), 1: length} for name in ("q", "k", "v", "gate", "back")}
    exported = torch.export.export(layer, logits(100, batch=2), dynamic_shapes=shapes, strict=False).module()
    for batch, tokens in ((1, 2), (3, 8), (2, 9), (1, 200)):
        given = logits(tokens, batch)
        for found, expected in zip(exported(*given), layer(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_compiles_in_one_graph(both):
    layer = Layer(both)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    given = [tensor.requires_grad_() for tensor in logits(40)]
    used = given if both else given[:4]
    out, expected = compiled(*given)[0], layer(*given)[0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(out.sum(), used), torch.autograd.grad(expected.sum(), used), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# -- choices and mistakes --------------------------------------------------------------------------------------------


def test_the_form_used_is_on_record():
    dispatch.reset_used()
    leaves = inputs()
    gated_linear_attention(*leaves[:4])
    with dispatch.force("math"):
        gated_linear_attention(*leaves[:4])
    assert [choice["backend"] for choice in dispatch.used()["gated_linear_attention"]] == ["fast", "math"]


def test_mild_gates_take_chunks_and_extreme_ones_do_not(monkeypatch):
    calls = []
    apply = ChunkedGatedLinear.apply
    monkeypatch.setattr(ChunkedGatedLinear, "apply", lambda *x: calls.append(x) or apply(*x))
    for spread, expected in ((1.0, 1), (40_000.0, 1)):
        gated_linear_attention(*inputs(tokens=64, spread=spread)[:4])
        assert len(calls) == expected


def test_wrong_inputs_are_named():
    q, k, v, gate, back = inputs()
    state = first_state(q, v)
    with pytest.raises(ShapeError, match=r"k: expected as many tokens as q \[2, 7, 2, 4\], got \[2, 6, 2, 4\]"):
        gated_linear_attention(q, k[:, 1:], v[:, 1:], gate[:, 1:])
    with pytest.raises(ShapeError, match=r"log_gate: expected \[2, 7, 2, 4\] to fit k, got \[2, 7, 2, 3\]"):
        gated_linear_attention(q, k, v, gate[..., 1:])
    with pytest.raises(ShapeError, match=r"backward_gate: expected \[2, 7, 2, 4\] to fit k, got \[2, 7, 1, 4\]"):
        gated_linear_attention(q, k, v, gate, backward_gate=back[:, :, :1])
    with pytest.raises(ShapeError, match=r"state: expected .* = \[2, 2, 4, 3\], got \[2, 2, 3, 4\]"):
        gated_linear_attention(q, k, v, gate, state=state.mT)
    with pytest.raises(ConfigError, match="state and backward_gate are both given"):
        gated_linear_attention(q, k, v, gate, backward_gate=back, state=state)
    with pytest.raises(ConfigError, match="chunk=0 must be at least 1"):
        gated_linear_attention(q, k, v, gate, chunk=0)
    with pytest.raises(ConfigError, match="unknown attention backend 'fsat'"):
        gated_linear_attention(q, k, v, gate, backend="fsat")
    with pytest.raises(ShapeError, match=r"q: expected \[batch, heads, channels\], got \[2, 7, 2, 4\]"):
        gated_linear_step(q, k, v, gate)
