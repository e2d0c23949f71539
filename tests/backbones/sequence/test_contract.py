"""What every registered mixer promises, so that any of them can stand in the place of any other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones import attention
from backbones.attention import force
from backbones.registry import OPERATORS, REGISTRIES
from backbones.sequence import MIXERS, create_mixer
from graftwork.components import import_dotted
from graftwork.errors import ConfigError, ShapeError

WIDTH = 16
WITHOUT_CAUSAL_FORM = {"autocorrelation"}  # reads the whole, circular sequence
LEAKING = {"probsparse"}  # which queries stand out depends on all of them, as in the paper


def mixer_of(name, causal=False, dtype=torch.float32):
    if causal and name in WITHOUT_CAUSAL_FORM:
        pytest.skip(f"{name} has no causal form")
    torch.manual_seed(0)
    return create_mixer(name, WIDTH, causal=causal).to(dtype).eval()


def tokens(batch=2, length=12, dtype=torch.float32, seed=1):
    return torch.randn(batch, length, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=MIXERS.names())
def name(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["free", "causal"])
def causal(request):
    return request.param


@pytest.mark.parametrize("batch, length", [(2, 12), (1, 12), (2, 1), (1, 1), (3, 37)])
def test_shape_stays(name, causal, batch, length):
    out, _ = mixer_of(name, causal)(tokens(batch, length))
    assert out.shape == (batch, length, WIDTH) and out.isfinite().all()


def test_attributes(name, causal):
    mixer = mixer_of(name, causal)
    assert mixer.width == WIDTH
    assert all(isinstance(getattr(mixer, flag), bool) for flag in ("causal", "supports_cross", "supports_state"))
    assert mixer.causal or not causal or name in LEAKING


@pytest.mark.parametrize("name", sorted(WITHOUT_CAUSAL_FORM))
def test_absent_causal_form_is_refused(name):
    with pytest.raises(ConfigError, match="no causal form"):
        create_mixer(name, WIDTH, causal=True)


def test_every_parameter_and_the_input_get_finite_gradients(name, causal):
    mixer = mixer_of(name, causal)
    x = tokens().requires_grad_()
    mixer(x)[0].square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    for key, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", sorted({*MIXERS.names()} - WITHOUT_CAUSAL_FORM - LEAKING))
def test_free_mixers_show_every_token_to_every_other(name):
    mixer, x = mixer_of(name, dtype=torch.float64), tokens(batch=1, dtype=torch.float64).requires_grad_()
    mixed = mixer(x)[0]
    for place in range(x.shape[1]):
        (read,) = torch.autograd.grad(mixed[0, place].sum(), x, retain_graph=True)
        assert (read[0].abs().sum(-1) > 1e-9).all(), place


@pytest.mark.parametrize("form", ["auto", "math"])
def test_causal_mixers_do_not_see_the_future(name, form):
    mixer = mixer_of(name, causal=True, dtype=torch.float64)
    if not mixer.causal:
        pytest.skip(f"{name} says itself that it is not causal")
    x = tokens(dtype=torch.float64)
    changed = x.clone()
    changed[:, 8:] = tokens(dtype=torch.float64, seed=2)[:, 8:]
    with force(form):
        torch.manual_seed(3)
        before, _ = mixer(x)
        torch.manual_seed(3)
        after, _ = mixer(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])


def test_forms_agree(name, causal):
    mixer, x = mixer_of(name, causal, torch.float64), tokens(dtype=torch.float64)
    results = []
    for form in ("auto", "math"):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        with force(form):
            out, _ = mixer(leaf)
        results.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
    for fast, literal in zip(*results, strict=True):
        torch.testing.assert_close(fast, literal)


def test_step_by_step_equals_one_pass(name, causal):
    mixer = mixer_of(name, causal, torch.float64)
    if not mixer.supports_state:
        with pytest.raises(ConfigError, match="keeps no state"):
            mixer(tokens(dtype=torch.float64), state=object())
        assert mixer(tokens(dtype=torch.float64))[1] is None
        return
    x = tokens(dtype=torch.float64)
    whole, _ = mixer(x)
    for cuts in ([1] * 12, [5, 1, 6]):
        parts, state = [], None
        for step in x.split(cuts, dim=1):
            out, state = mixer(step, state=state)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_masked_tokens_at_the_end_do_not_matter(name, causal):
    mixer, x = mixer_of(name, causal, torch.float64), tokens(dtype=torch.float64)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 9:] = False
    changed = x.clone()
    changed[0, 9:] = 5.0
    results = []
    for given in (x, changed):
        torch.manual_seed(4)
        try:
            results.append(mixer(given, mask=mask)[0])
        except ConfigError as error:
            assert "mask" in str(error)
            return
    assert results[1].isfinite().all()
    torch.testing.assert_close(results[0][mask], results[1][mask])


def test_memory_is_read_or_refused(name, causal):
    mixer = mixer_of(name, causal)
    if not mixer.supports_cross:
        with pytest.raises((ConfigError, ShapeError), match="memory"):
            mixer(tokens(), memory=tokens(length=7))
        return
    first, _ = mixer(tokens(), memory=tokens(length=19))
    second, _ = mixer(tokens(), memory=tokens(length=19, seed=6))
    assert first.shape == (2, 12, WIDTH) and not torch.allclose(first, second)


def test_bfloat16_autocast_is_finite(name, causal):
    mixer = mixer_of(name, causal)
    x = tokens(length=33).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = mixer(x)
    out.float().square().sum().backward()
    assert out.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_wrong_shapes_are_named(name):
    mixer = mixer_of(name)
    with pytest.raises(ShapeError, match=r"expected \[B, L, 16\], got \[12, 16\]"):
        mixer(tokens()[0])
    with pytest.raises(ShapeError, match=r"expected \[B, L, 16\], got \[2, 12, 15\]"):
        mixer(tokens()[..., 1:])
    for mask in (torch.ones(3, 12, dtype=torch.bool), torch.ones(2, 11, dtype=torch.bool), torch.ones(2, 12)):
        with pytest.raises(ShapeError, match=r"mask of .*expected bool \[2, 12\]"):
            mixer(tokens(), mask=mask)


@pytest.mark.parametrize("name", ["softmax", "flow", "scan"])
def test_exported_graph_takes_other_lengths(name, causal):
    mixer = mixer_of(name, causal)
    length = torch.export.Dim("length", min=2, max=500)
    exported = torch.export.export(mixer, (tokens(),), dynamic_shapes={"x": {1: length}}, strict=False).module()
    x = tokens(length=150)
    torch.testing.assert_close(exported(x)[0], mixer(x)[0], rtol=1e-4, atol=1e-5)


def test_width_that_heads_do_not_divide(name):
    if name == "selective_scan":
        pytest.skip("has no heads")
    with pytest.raises(ConfigError, match=r"width=20 must be a multiple of heads=8.*heads="):
        create_mixer(name, 20)


def test_state_dict_round_trip(name, causal):
    mixer = mixer_of(name, causal)
    twin = create_mixer(name, WIDTH, causal=causal).eval()
    twin.load_state_dict(mixer.state_dict())
    outputs = []
    for one in (mixer, twin):
        torch.manual_seed(7)
        outputs.append(one(tokens())[0])
    assert torch.equal(*outputs)


def test_names_options_and_values_are_checked():
    with pytest.raises(ConfigError, match="unknown mixer 'flw'; did you mean flow"):
        create_mixer("flw", 8)
    with pytest.raises(ConfigError, match="unknown option of mixer flow 'clmp'; did you mean clamp"):
        create_mixer("flow", 8, clmp=1.0)
    with pytest.raises(ConfigError, match="2 problems"):
        create_mixer("flow", 8, heads=0, dropout=2.0)
    for name in ("scan", "selective_scan"):
        with pytest.raises(ConfigError, match="bidirectional"):
            create_mixer(name, 8, bidirectional=True, causal=True)


def test_dotted_paths_of_the_registry_exist():
    assert all(callable(import_dotted(path)) for path in OPERATORS.values())
    assert import_dotted(REGISTRIES["mixer"]) is MIXERS


def test_every_operator_that_leaves_a_record_is_registered():
    files = Path(attention.__file__).parent.glob("*.py")
    asked = [re.findall(r'(?:resolve_form|choose)\("(\w+)"', file.read_text()) for file in files]
    assert {name for names in asked for name in names} <= set(OPERATORS)
    assert all(path.endswith(f":{name}") for name, path in OPERATORS.items())


def test_names_need_no_torch():
    script = (
        "import sys, backbones.registry, backbones.sequence.config as c\n"
        "c.MIXERS.names(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
