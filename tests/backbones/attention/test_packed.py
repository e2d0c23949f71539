"""Packed sequences: every form gives what each sequence gives alone, and groups waste little."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import packed as module
from backbones.attention.attend import attend
from backbones.attention.backends import xformers
from backbones.attention.dispatch import force
from backbones.attention.packed import attend_packed
from graftwork.errors import ConfigError, ShapeError

BACKENDS = ["auto", "math", "sdpa"]


def inputs(q_lengths, k_lengths=None, heads=2, channels=4, value_channels=3, dtype=torch.float64):
    queries, keys = sum(q_lengths), sum(q_lengths if k_lengths is None else k_lengths)
    generator = torch.Generator().manual_seed(queries * 31 + keys)
    shapes = [(queries, heads, channels), (keys, heads, channels), (keys, heads, value_channels)]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def by_sequences(q, k, v, q_lengths, k_lengths, **options):
    out, q_start, k_start = q.new_zeros(len(q), *v.shape[1:]) + 0 * (q.sum() + k.sum() + v.sum()), 0, 0
    for queries, keys in zip(q_lengths, k_lengths, strict=True):
        mine, theirs = slice(q_start, q_start + queries), slice(k_start, k_start + keys)
        out[mine] = attend(q[None, mine], k[None, theirs], v[None, theirs], backend="math", **options)[0]
        q_start, k_start = q_start + queries, k_start + keys
    return out


@settings(max_examples=80)
@given(data=st.data())
def test_every_form_gives_what_sequences_give_alone(data):
    draw = data.draw
    count = draw(st.integers(0, 9))
    length = st.lists(st.integers(0, 7), min_size=count, max_size=count)
    q_lengths = draw(length)
    k_lengths = draw(st.one_of(st.none(), length))
    leaves = inputs(q_lengths, k_lengths, *(draw(st.integers(1, most)) for most in (3, 5, 5)))
    options = {"causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.3]))}
    expected = by_sequences(*leaves, q_lengths, q_lengths if k_lengths is None else k_lengths, **options)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(module.CALL_COST, "cpu", draw(st.sampled_from([0, 40, 200, 1 << 20])))
            patch.setattr(module, "_plan", module._plan.__wrapped__)
            found = attend_packed(*leaves, q_lengths=q_lengths, k_lengths=k_lengths, backend=backend, **options)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        for ours, theirs in zip(torch.autograd.grad((found * weight).sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_numerical_gradients():
    leaves = inputs([3, 0, 1, 4], [2, 5, 0, 4], 1, 2, 2)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend_packed(q, k, v, q_lengths=[3, 0, 1, 4], k_lengths=[2, 5, 0, 4]), leaves
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("q_lengths, k_lengths", [([], []), ([0, 0], [0, 0]), ([0], [3]), ([3], [0]), ([1], [1])])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_and_single_tokens(backend, q_lengths, k_lengths, causal):
    leaves = inputs(q_lengths, k_lengths)
    out = attend_packed(*leaves, q_lengths=q_lengths, k_lengths=k_lengths, causal=causal, backend=backend)
    assert out.shape == (sum(q_lengths), 2, 3)
    gradients = torch.autograd.grad(out.sum(), leaves)
    if q_lengths == k_lengths == [1]:
        torch.testing.assert_close(out, leaves[2])
    else:
        assert (out == 0).all() and all((gradient == 0).all() for gradient in gradients)


def test_lengths_may_be_tensors():
    leaves = inputs([2, 5, 1])
    expected = attend_packed(*leaves, q_lengths=[2, 5, 1])
    assert torch.equal(attend_packed(*leaves, q_lengths=torch.tensor([2, 5, 1], dtype=torch.int32)), expected)
    assert torch.equal(attend_packed(*leaves, q_lengths=(2, 5, 1), k_lengths=torch.tensor([2, 5, 1])), expected)


def test_sequences_of_one_length_need_neither_padding_nor_a_mask():
    plan = module._plan((4, 4, 4), (6, 6, 6), False, 2, torch.device("cpu"))
    assert plan.q_index is plan.k_index is plan.restore is None and not plan.gaps
    assert plan.groups == (module.Group(3, 4, 6, None),)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30), st.booleans(), st.integers(0, 3000))
def test_groups_take_every_sequence_once_and_pad_little(lengths, causal, allowed):
    q_counts, k_counts = tuple(q for q, _ in lengths), tuple(k for _, k in lengths)
    groups = list(module._grouped(q_counts, k_counts, causal, allowed))
    taken = sorted(i for group in groups for i in group)
    assert taken == [i for i, (queries, keys) in enumerate(lengths) if queries and keys]
    for group in groups:
        pairs = sum(q_counts[i] * k_counts[i] for i in group)
        longest = max(q_counts[i] for i in group) * max(k_counts[i] for i in group)
        assert len(group) * longest - pairs <= allowed
        assert not causal or len({k_counts[i] - q_counts[i] for i in group}) == 1


def test_a_broken_sequence_stays_alone():
    """What is not a number in one sequence must not reach another through padding."""
    lengths = [5, 3, 4, 2, 4]
    q, k, v = (tensor.detach() for tensor in inputs(lengths))
    expected = attend_packed(q, k, v, q_lengths=lengths)
    for tensor in (q, k, v):
        tensor[5:8] = torch.nan
    found = attend_packed(q, k, v, q_lengths=lengths)
    assert found[5:8].isnan().all()
    torch.testing.assert_close(torch.cat([found[:5], found[8:]]), torch.cat([expected[:5], expected[8:]]))


def test_training_after_inference_uses_the_kept_plan():
    leaves = inputs([3, 5, 2, 5])
    with torch.inference_mode():
        attend_packed(*(leaf.detach().clone() for leaf in leaves), q_lengths=[3, 5, 2, 5])
    found = attend_packed(*leaves, q_lengths=[3, 5, 2, 5]).square().sum()
    expected = attend_packed(*leaves, q_lengths=[3, 5, 2, 5], backend="math").square().sum()
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_half_types_stay_close_to_float32(backend, dtype, tolerance):
    lengths = [40, 1, 17]
    leaves = inputs(lengths, channels=13, dtype=torch.float32)
    expected = attend_packed(*leaves, q_lengths=lengths, backend="math")
    found = attend_packed(*(leaf.to(dtype) for leaf in leaves), q_lengths=lengths, backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_decides_the_type(backend):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            attend_packed(*inputs([3, 2], dtype=torch.float32), q_lengths=[3, 2], backend=backend).dtype
            == torch.bfloat16
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean_and_one_drops_everything(backend):
    torch.manual_seed(0)
    lengths = [20, 30, 25] * 20
    leaves = inputs(lengths)
    plain, dropped = (attend_packed(*leaves, q_lengths=lengths, dropout=p, backend=backend) for p in (0.0, 0.4))
    assert not torch.allclose(dropped, plain)
    assert abs(float((dropped - plain).mean().detach())) < 0.02
    assert (attend_packed(*leaves, q_lengths=lengths, dropout=1.0, backend=backend) == 0).all()


def test_kernels_get_the_packed_tokens_and_the_blocks(monkeypatch):
    """The call that a GPU would get, with its kernels replaced by the formula."""
    seen = {}

    class Blocks(SimpleNamespace):
        @classmethod
        def from_seqlens(cls, q_seqlen, kv_seqlen, device):
            return cls(q_seqlen=q_seqlen, kv_seqlen=kv_seqlen, device=device, causal=False)

        def make_causal_from_bottomright(self):
            return Blocks(**{**vars(self), "causal": True})

    def attention(q, k, v, attn_bias, p, scale):
        seen.update(shapes=[tuple(x.shape) for x in (q, k, v)], bias=attn_bias)
        lengths = (attn_bias.q_seqlen, attn_bias.kv_seqlen)
        return by_sequences(q[0], k[0], v[0], *lengths, causal=attn_bias.causal, scale=scale)[None]

    library = SimpleNamespace(
        memory_efficient_attention=attention,
        fmha=SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=Blocks)),
    )
    monkeypatch.setattr(xformers, "_import", lambda: (library, ""))
    leaves = inputs([3, 2], [3, 4], channels=5, value_channels=3, dtype=torch.float32)
    for causal in (False, True):
        found = xformers.run_packed(*leaves, (3, 2), (3, 4), causal=causal)
        torch.testing.assert_close(found, by_sequences(*leaves, [3, 2], [3, 4], causal=causal))
    assert seen["shapes"] == [(1, 5, 2, 8), (1, 7, 2, 8), (1, 7, 2, 8)]
    assert (seen["bias"].q_seqlen, seen["bias"].kv_seqlen) == ([3, 2], [3, 4])


def test_forced_kernels_that_cannot_serve_say_why():
    leaves = inputs([3, 2])
    with force("xformers"), pytest.raises(ConfigError, match=r"xformers.*attend_packed: needs a CUDA device"):
        attend_packed(*leaves, q_lengths=[3, 2])
    with pytest.raises(ConfigError, match="attend_packed: a sequence is empty"):
        attend_packed(*leaves, q_lengths=[3, 0, 2], backend="xformers")
    leaves = inputs([3, 2], [3, 1])
    with pytest.raises(ConfigError, match="a causal sequence has more queries than keys"):
        attend_packed(*leaves, q_lengths=[3, 2], k_lengths=[3, 1], causal=True, backend="xformers")


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"q_lengths": [3, 1]}, ShapeError, "q_lengths: .* a sum of 5, the tokens .*, got a sum of 4 over 2 sequences"),
        ({"q_lengths": [6, -1]}, ShapeError, "q_lengths: expected no negative number"),
        ({"q_lengths": [5], "k_lengths": [2, 3]}, ShapeError, "k_lengths: expected 1 sequences as in q_lengths, got 2"),
        ({"q_lengths": torch.tensor([2.0, 3.0])}, ShapeError, "q_lengths: expected integers"),
        (
            {"q_lengths": torch.tensor([[2, 3]])},
            ShapeError,
            r"q_lengths: expected integers \[sequences\], got .*\[1, 2\]",
        ),
        ({"q_lengths": [2, 3], "dropout": -0.1}, ConfigError, r"dropout=-0\.1"),
        ({"q_lengths": [2, 3], "backend": "xformer"}, ConfigError, "did you mean xformers"),
    ],
)
def test_wrong_options_are_named(options, kind, message):
    with pytest.raises(kind, match=message):
        attend_packed(*inputs([2, 3]), **options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": (1, 5, 2, 4)}, r"q: expected \[tokens, heads, channels\], got \[1, 5, 2, 4\]"),
        ({"k": (5, 3, 4)}, r"k: expected \[tokens, 2, 4\] to fit q, got \[5, 3, 4\]"),
        ({"v": (4, 2, 3)}, r"v: expected \[5, 2, channels\] to fit k, got \[4, 2, 3\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    given = {"q": (5, 2, 4), "k": (5, 2, 4), "v": (5, 2, 3), **change}
    tensors = {name: torch.zeros(shape) for name, shape in given.items()}
    with pytest.raises(ShapeError, match=message):
        attend_packed(**tensors, q_lengths=[5])
