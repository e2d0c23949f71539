"""What is measured is the same function in all its forms."""

from __future__ import annotations

import json
import time

import pytest
import torch

from apps.core.inference.conditions import Conditions
from apps.superres import costs
from apps.superres.benchmark import main
from apps.superres.literal import literal, literal_attention, windows_by_products
from apps.superres.models.config import MODELS
from apps.superres.models.info import ImageInfo
from backbones.attention.window import window_attention

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize("name", ["cfsr", "hat_s", "craft", "dlgsanet_tiny"])
def test_literal_forms_compute_what_the_networks_compute(name):
    found = costs.network(name, 17, 20, scale=2)
    wanted = found.forms["inference"]()
    assert wanted.shape == (1, 3, 34, 40)
    for form in found.forms.values():
        torch.testing.assert_close(form(), wanted, rtol=1e-4, atol=2e-5)


def test_networks_that_only_restore_are_measured_at_scale_one():
    (row,) = costs.costs(costs.network("maxim_s1", 16, 16, scale=4), repeats=1)
    assert row.size == "16 x 16" and row.rival == "" and row.fast_ms > 0


def test_the_literal_network_has_the_weights_of_the_other_and_leaves_it_alone():
    model = MODELS.get("cfsr")(width=8, depths=(1,)).build(ImageInfo(scale=2)).eval()
    names = list(model.state_dict())
    images = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(literal(model)(images), model(images))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("window", "shift"), [((4, 4), (0, 0)), ((4, 4), (2, 2)), ((2, 8), (1, 4))])
def test_windows_by_products(window, shift, wrap):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 8, 16, 3, 5).unbind()
    tokens = window[0] * window[1]
    bias = torch.randn(3, tokens, tokens)
    options = {"window": window, "shift": shift, "bias": bias, "scale": 0.3, "wrap": wrap}
    torch.testing.assert_close(windows_by_products(q, k, v, **options), window_attention(q, k, v, **options))


def test_literal_attention_ends_with_its_block():
    from apps.superres.models import hat_attention

    with pytest.raises(ZeroDivisionError), literal_attention():
        assert hat_attention.window_attention is windows_by_products
        raise ZeroDivisionError
    assert hat_attention.window_attention is window_attention


def test_the_command_prints_and_writes_rows(capsys, tmp_path):
    assert main(["cfsr", "--sizes", "8x9", "--scale", "2", "--repeats", "1", "--output", str(tmp_path / "c.json")]) == 0
    assert "training form" in capsys.readouterr().out
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert [row["rival"] for row in rows] == ["literal", "training form"]
    assert all(row["difference"] < 1e-4 and row["parameters"] > 250_000 for row in rows)


def test_half_types_and_compilation_reach_the_measured_calls(capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(costs, "SLOW_S", 0.5)

    def slow(model):
        """Takes its time at the first call, as compilation does."""
        compiled.append(model)
        waits = [1.0]
        return lambda images: time.sleep(waits.pop() if waits else 0) or model(images)

    monkeypatch.setattr("torch.compile", slow)
    found = costs.network("cfsr", 8, 9, 2, Conditions(dtype="bfloat16", compiled=True))
    assert len(compiled) == 1 and compiled[0] is not found.model  # the form for inference alone
    plain = costs.network("cfsr", 8, 9, 2)
    assert not any(torch.equal(form(), plain.forms[name]()) for name, form in found.forms.items())
    assert main(["cfsr", "--sizes", "8", "--repeats", "1", "--dtype", "bfloat16", "--compile"]) == 0
    title = " ".join(capsys.readouterr().out.split())
    assert "cpu, bfloat16" in title and "compiled" in title
    assert "literal" in title and "training form" in title  # nothing was taken for slow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cfrs"], "cfsr"),
        (["--sizes", "0x4"], "--sizes 0x4"),
        (["cfsr", "--repeats", "0"], "--repeats 0"),
        (["--device", "foo"], "there is no device 'foo' here"),
        pytest.param(["--device", "cuda"], "there is no device 'cuda' here", marks=NO_GPU),
        (["--threads", "-1"], "--threads -1 must be at least 0"),
        (["--dtype", "bfloat61"], "did you mean bfloat16"),
        (["--parts", "--compile"], "--compile is for whole models"),
    ],
)
def test_wrong_words_are_one_error(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err
