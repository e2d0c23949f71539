"""The user's wish wins in a fixed order, nothing falls back in silence, and the record says what served."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from backbones.attention import dispatch
from backbones.attention.__main__ import main
from backbones.attention.attend import attend
from backbones.attention.dispatch import Request, choose, force, resolve_form, set_default, wish
from graftwork.errors import ConfigError


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_used", {})
    dispatch.probe.cache_clear()
    set_default(None)
    yield
    set_default(None)
    dispatch.probe.cache_clear()


def request(**changes) -> Request:
    sizes = {"batch": 2, "queries": 8, "keys": 8, "heads": 2, "width": 16, "value_width": 16}
    return Request(**{"device": torch.device("cpu"), "dtype": torch.float32, **sizes, **changes})


def tokens() -> torch.Tensor:
    return torch.randn(2, 8, 2, 16, generator=torch.Generator().manual_seed(0))


def test_first_stated_wish_wins(monkeypatch):
    assert wish() == ("auto", "")
    monkeypatch.setenv(dispatch.VARIABLE, "xformers")
    assert wish() == ("xformers", dispatch.VARIABLE)
    set_default("sdpa")
    assert wish() == ("sdpa", "--attention")
    with force("math"):
        assert wish() == ("math", "attention.force")
        assert wish("xformers") == ("xformers", "backend argument")
        with force("auto"):
            assert wish()[0] == "auto"
    assert wish()[0] == "sdpa"


def test_default_flag_value_leaves_the_environment_alone(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "math")
    set_default("auto")
    assert wish()[0] == "math"


@pytest.mark.parametrize("place", ["argument", "force", "default", "environment"])
def test_misspelt_backend_names_the_nearest(place, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean xformers"):
        if place == "argument":
            attend(tokens(), tokens(), tokens(), backend="xformer")
        elif place == "force":
            with force("xformer"):
                pass
        elif place == "default":
            set_default("xformer")
        else:
            monkeypatch.setenv(dispatch.VARIABLE, "xformer")
            attend(tokens(), tokens(), tokens())


def test_forced_backend_that_cannot_serve_says_why():
    with force("xformers"), pytest.raises(ConfigError, match=r"attention\.force.*xformers.*needs a CUDA device"):
        attend(tokens(), tokens(), tokens())


def test_force_is_lifted_after_an_error():
    with pytest.raises(RuntimeError), force("math"):
        raise RuntimeError
    assert wish() == ("auto", "")


def test_record_names_backend_and_reasons_and_is_plain():
    attend(tokens(), tokens(), tokens())
    (choice,) = dispatch.used()["attend"]
    assert choice["backend"] == "sdpa" and choice["device"] == "cpu" and choice["dtype"] == "float32"
    assert "CUDA" in choice["passed_over"]["xformers"]
    assert json.loads(json.dumps(dispatch.used())) == dispatch.used()
    dispatch.reset_used()
    assert dispatch.used() == {}


def test_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="graftwork.attention"):
        for _ in range(3):
            attend(tokens(), tokens(), tokens())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "sdpa" in line and "not xformers: needs a CUDA device" in line


def test_failing_probe_is_remembered_and_passed_over(monkeypatch):
    calls = []

    def broken(*args, **kwargs):
        calls.append(1)
        raise OSError("libcudart.so.12: cannot open shared object file")

    real = dispatch.backend_module
    fake = SimpleNamespace(why_not=lambda request: None, run=broken)
    monkeypatch.setattr(dispatch, "backend_module", lambda name: fake if name == "xformers" else real(name))
    for _ in range(3):
        assert choose("attend", request()) == "sdpa"
    assert len(calls) == 1
    assert "libcudart" in dispatch.used()["attend"][0]["passed_over"]["xformers"]
    with pytest.raises(ConfigError, match="libcudart"):
        choose("attend", request(), "xformers")


def test_backend_with_wrong_numbers_is_not_admitted(monkeypatch):
    real = dispatch.backend_module
    wrong = SimpleNamespace(why_not=lambda request: None, run=lambda q, k, v, **options: 1.1 * v + 0 * (q + k))
    monkeypatch.setattr(dispatch, "backend_module", lambda name: wrong if name == "sdpa" else real(name))
    assert choose("attend", request()) == "math"
    assert "differs from math" in dispatch.used()["attend"][0]["passed_over"]["sdpa"]


def test_probe_leaves_the_generator_alone():
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert dispatch.probe("sdpa", "cpu", torch.float32) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_preference_on_cuda_without_a_gpu_to_run_on():
    cuda = torch.device("cuda", 0)
    assert dispatch.preference(request(device=cuda, dtype=torch.bfloat16))[0] == "xformers"
    assert dispatch.preference(request(device=cuda, dtype=torch.bfloat16, bias="float"))[0] == "sdpa"
    assert dispatch.preference(request(device=cuda))[0] == "sdpa"
    assert all(dispatch.preference(request(device=device))[-1] == "math" for device in (cuda, torch.device("cpu")))


@pytest.mark.parametrize("name, form", [("auto", "fast"), ("sdpa", "fast"), ("xformers", "fast"), ("math", "math")])
def test_two_form_operators_follow_the_wish(name, form):
    with force(name):
        assert resolve_form("flow_attention") == form
    assert dispatch.used()["flow_attention"][0]["backend"] == form
    assert resolve_form("flow_attention", "math") == "math"


def test_explain_lists_every_backend_with_types_or_reason():
    rows = {row.backend: row for row in dispatch.explain("cpu")}
    assert set(rows) == {"xformers", "sdpa", "math", "natten"}
    assert "float32" in rows["math"].dtypes and rows["math"].reason == ""
    assert all(row.dtypes or row.reason for row in rows.values())
    with pytest.raises(ConfigError, match="'gpu' is no device"):
        dispatch.explain("gpu")


def test_command_prints_the_table(capsys, monkeypatch):
    assert main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "xformers" in printed and "CUDA" in printed
    monkeypatch.setenv(dispatch.VARIABLE, "fastest")
    assert main(["--device", "cpu"]) == 2
    assert "GRAFTWORK_ATTENTION" in capsys.readouterr().err


def test_steering_needs_no_torch_and_attending_no_xformers():
    script = (
        "import sys, backbones.attention as a, backbones.sequence as s; a.set_default('math')\n"
        "assert 'torch' not in sys.modules\n"
        "import torch; from backbones.attention.attend import attend; x = torch.randn(1, 4, 1, 8)\n"
        "a.set_default(None); attend(x, x, x); a.explain('cpu')\n"
        "assert 'xformers' not in sys.modules and 'natten' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
