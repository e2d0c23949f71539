"""Low-rank adapters: the same function at first, a small trained share, and merged back exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.lora import LoRALinear, add_lora, merge_lora
from backbones.vision import create_backbone
from graftwork.errors import ConfigError
from tests.backbones.vision.toy import NAME


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Sequential(nn.Linear(8, 8, bias=False)), nn.Linear(8, 3))


def test_an_adapter_changes_nothing_at_first_and_the_keys_stay():
    model, x = net(), torch.randn(4, 6)
    expected, keys = model(x), set(model.state_dict())
    assert add_lora(model, rank=2) == ["0", "2.0", "3"]
    assert torch.equal(model(x), expected)
    assert keys <= set(model.state_dict())


def test_only_adapters_are_trained_and_the_update_has_their_rank():
    model, x = net(), torch.randn(64, 6)
    add_lora(model, rank=2, alpha=4.0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 2 * ((6 + 8) + (8 + 8) + (8 + 3))
    optimizer = torch.optim.Adam(trained, lr=0.05)
    before = model[0].weight.clone()
    for _ in range(30):
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight, before)
    outcome = model(x)
    update = model[0].merged().weight - before
    assert torch.linalg.matrix_rank(update, tol=1e-5) == 2
    assert merge_lora(model) == ["0", "2.0", "3"]
    torch.testing.assert_close(model(x), outcome, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets_choose_layers():
    model = net()
    assert add_lora(model, rank=1, targets=r"^2\.") == ["2.0"]
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "lora_rank=0 must be at least 1"),
        ({"rank": 1, "targets": "conv"}, "no linear layer of Sequential matches"),
        ({"rank": 1, "targets": "("}, "is no regular expression"),
    ],
)
def test_what_cannot_be_adapted_is_named(options, text):
    with pytest.raises(ConfigError, match=text):
        add_lora(net(), **options)


def test_backbones_take_adapters_by_option():
    backbone = create_backbone(NAME, lora_rank=2)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert backbone.layer_of(trained[0]) == 1
