from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from apps.core.run.benchmark import benchmark, measured, rows
from apps.core.run.workload import affordable, flops, forward_call, parameter_count, state_bytes, train_call
from apps.core.task import VerbOptions
from graftwork.errors import UserError
from tests.apps.core.inference.toy_model import ATTENDING, TASK, AttendingToy, LoneToy
from tests.toy_task import LinesConfig, NetConfig, ToyConfig, ZeroConfig


def test_figures_of_a_model_by_hand():
    module = LoneToy(ToyConfig(model=NetConfig(width=8)), {"inputs": 3})
    figures = measured(module, module.example_batch(4), 4, budget_s=0.01)
    assert figures["parameters"] == figures["trained_parameters"] == (3 * 8 + 8) + (8 + 8) + (8 + 1)
    assert figures["flops"]["forward"] == 2 * 4 * (3 * 8 + 8 * 1)
    # backward: both products for the weights, and for the inputs of the second layer only
    assert figures["flops"]["train_step"] == figures["flops"]["forward"] * 2 + 2 * 4 * 8
    assert figures["attention"] == {}  # no attention: nothing to compare
    forward = figures["calls"]["forward"]["backends"]
    assert list(forward) == ["auto"] and "ratio" not in figures["calls"]["forward"]
    assert forward["auto"]["samples_per_s"] == pytest.approx(4 / forward["auto"]["p50_s"])
    assert forward["auto"]["min_s"] <= forward["auto"]["p50_s"] <= forward["auto"]["p90_s"] <= forward["auto"]["max_s"]
    assert forward["auto"]["peak_bytes"] >= 4 * 8 * 4


def test_attention_is_measured_beside_the_plain_formula():
    module = AttendingToy(ToyConfig(), {"inputs": 3})
    figures = measured(module, module.example_batch(4), 4, budget_s=0.01)
    for call in figures["calls"].values():
        assert list(call["backends"]) == ["auto", "math"]
        assert call["ratio"]["min"] <= call["ratio"]["median"] <= call["ratio"]["max"]
    assert "attend" in figures["attention"]
    table = rows({**figures, "machine": {}})
    assert table[0] == ["", "attention auto", "attention math", "math / auto"]
    assert {len(row) for row in table} == {4}
    assert list(measured(module, module.example_batch(2), 2, "math", 0.01)["calls"]["forward"]["backends"]) == ["math"]


def test_a_training_step_leaves_weights_and_memory_as_they_were():
    module = LoneToy(ToyConfig(model=NetConfig(dropout=0.0)), {"inputs": 3})
    before = [parameter.clone() for parameter in module.model.parameters()]
    call = train_call(module, module.example_batch(4))
    call()
    assert all(torch.equal(old, new) for old, new in zip(before, module.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in module.model.parameters())


def test_the_forward_pass_is_one_of_evaluation():
    module = LoneToy(ToyConfig(model=NetConfig(dropout=0.9)), {"inputs": 3}).train()
    call = forward_call(module, module.example_batch(4))
    assert torch.equal(call(), call()) and not call().requires_grad


def test_mixed_precision_is_that_of_the_configuration():
    config = ToyConfig()
    config.trainer.precision = "bf16-mixed"
    module = LoneToy(config, {"inputs": 3})
    assert forward_call(module, module.example_batch(2))().dtype == torch.bfloat16


def test_a_model_without_weights_has_no_training_step():
    module = LoneToy(ToyConfig(model=ZeroConfig()), {"inputs": 3})
    figures = measured(module, module.example_batch(2), 2, budget_s=0.01)
    assert list(figures["calls"]) == ["forward"] and figures["parameters"] == 0


def test_frozen_weights_need_no_gradients_and_no_moments():
    module = LoneToy(ToyConfig(), {"inputs": 3})
    total, _ = parameter_count(module)
    assert state_bytes(module) == 4 * total * 4
    module.model[0].weight.requires_grad_(False)
    assert parameter_count(module) == (total, total - 24) and state_bytes(module) == 4 * (4 * total - 3 * 24)


def test_rounds_fit_the_budget():
    calls = []
    assert affordable([lambda: calls.append(1)], budget_s=1e9) == 50
    assert affordable([lambda: sum(range(100_000))], budget_s=0.0) == 3
    assert len(calls) == 2


def test_flops_of_a_product():
    layer, x = nn.Linear(10, 20, bias=False), torch.ones(3, 10)
    assert flops(lambda: layer(x)) == 2 * 3 * 10 * 20


def test_verb_prints_a_table_and_writes_json(tmp_path, capsys, monkeypatch):
    quick = measured
    monkeypatch.setattr("apps.core.run.benchmark.measured", lambda *args: quick(*args, budget_s=0.01))
    target = tmp_path / "new" / "figures.json"
    config = ToyConfig(data=LinesConfig(batch_size=6))
    assert benchmark(ATTENDING, config, VerbOptions(json=str(target))) == 0
    out = capsys.readouterr().out
    assert "toy: net on lines, batch 6" in out and "math / auto" in out and "train step p50" in out
    figures = json.loads(target.read_text())
    assert figures["batch_size"] == 6 and figures["machine"]["threads"] == torch.get_num_threads()
    assert benchmark(TASK, config, VerbOptions()) == 0


def test_a_place_for_the_figures_is_checked_first(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, expected the name of a file\. .* by --json"):
        benchmark(TASK, ToyConfig(), VerbOptions(json=str(tmp_path)))
