"""Groups and learning rates."""

from __future__ import annotations

import math

import pytest
from torch import nn

from apps.core.config import OptimConfig, ScheduleConfig
from apps.core.run.optim import build_optimizer, learning_rate_factor, parameter_groups
from backbones.vision.base import Stage, VisionBackbone


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.table = nn.Linear(3, 4), nn.LayerNorm([2, 4]), nn.Embedding(5, 4)
        self.positions = nn.Parameter(nn.init.zeros_(nn.Linear(4, 6).weight))
        self.positions._no_weight_decay = True
        self.frozen = nn.Parameter(self.linear.weight.detach().clone(), requires_grad=False)


def names(net: nn.Module, group: dict) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in net.named_parameters() if id(parameter) in ids}


def test_only_matrices_are_decayed():
    net = Net()
    decayed, others = parameter_groups(net, 0.1)
    assert names(net, decayed) == {"linear.weight"} and decayed["weight_decay"] == 0.1
    assert names(net, others) == {"linear.bias", "norm.weight", "norm.bias", "table.weight", "positions"}
    assert others["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "sgd"])
def test_every_optimiser_builds(name):
    optimizer = build_optimizer(Net(), OptimConfig(name=name, lr=0.5))
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.5


def rates(total: int, per_epoch: int, **config) -> list[float]:
    factor = learning_rate_factor(ScheduleConfig(**config), total, per_epoch)
    return [factor(step) for step in range(total)]


def test_halving_keeps_the_first_two_epochs_at_the_peak():
    assert rates(10, 2, name="halving") == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_step_multiplies_after_its_milestones():
    found = rates(8, 2, name="step", milestones=(1, 3), gamma=0.1)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_is_linear_and_reaches_the_peak():
    assert rates(6, 6, name="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_goes_from_the_peak_to_its_floor():
    factor = learning_rate_factor(ScheduleConfig(warmup_steps=2, min_factor=0.1), 12, 4)
    assert factor(2) == 1
    assert factor(7) == pytest.approx(0.55)
    assert factor(12) == pytest.approx(0.1) == factor(1000)
    assert factor(4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 5)) / 2)


def test_poly_is_a_power_of_what_is_left_of_all_steps():
    factor = learning_rate_factor(ScheduleConfig(name="poly", warmup_steps=2, min_factor=0.1, power=2.0), 10, 4)
    assert factor(0) == 0.5
    assert factor(2) == pytest.approx(0.1 + 0.9 * 0.64)
    assert factor(1) == pytest.approx(0.1 + 0.9 * 0.81)
    assert factor(5) == pytest.approx(0.1 + 0.9 * 0.25)
    assert factor(10) == pytest.approx(0.1) == factor(1000)
    assert rates(4, 1, name="poly", power=1.0) == pytest.approx([1, 0.75, 0.5, 0.25])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)


class Backbone(VisionBackbone):
    def __init__(self) -> None:
        super().__init__(in_channels=3, channels=(2, 2), strides=(4, 8))
        self.stem = nn.Linear(2, 2)
        self.stages = nn.ModuleList([Stage(nn.Identity(), [Block()]), Stage(nn.Linear(2, 2), [Block(), Block()])])
        self.finish(output_norms=True)


def test_layers_of_a_backbone_learn_slower_the_nearer_they_are_to_the_image():
    model = nn.ModuleDict({"backbone": Backbone(), "head": nn.Linear(2, 2)})
    groups = parameter_groups(model, 0.1, lr=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in names(model, group)}
    # stem, three blocks and the output norms are layers 0 to 4 of 5; the head is beyond them
    assert rates["head.weight"] == rates["head.bias"] == 1.0
    assert rates["backbone.output_norms.0.weight"] == 0.5
    assert rates["backbone.stages.1.blocks.1.linear.weight"] == 0.5**2
    assert rates["backbone.stages.1.blocks.0.linear.bias"] == rates["backbone.stages.1.downsample.weight"] == 0.5**3
    assert rates["backbone.stages.0.blocks.0.linear.weight"] == 0.5**4
    assert rates["backbone.stem.weight"] == 0.5**5
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_backbones_learn_at_a_rate_of_their_own():
    model = nn.ModuleDict({"backbone": Backbone(), "head": nn.Linear(2, 2)})
    rates = {name: g["lr"] for g in parameter_groups(model, 0.1, 2.0, backbone_factor=0.1) for name in names(model, g)}
    assert all(rate == pytest.approx(0.2 if name.startswith("backbone.") else 2.0) for name, rate in rates.items())
    both = parameter_groups(model, 0.1, 1.0, layer_decay=0.5, backbone_factor=0.1)
    (stem,) = {group["lr"] for group in both if "backbone.stem.weight" in names(model, group)}
    assert stem == pytest.approx(0.1 * 0.5**5)


def test_without_layer_decay_there_are_two_groups():
    assert len(parameter_groups(nn.ModuleDict({"backbone": Backbone(), "head": nn.Linear(2, 2)}), 0.1)) == 2


def test_layer_decay_out_of_range_is_named():
    assert list(OptimConfig(layer_decay=0.0).problems()) == ["layer_decay=0.0 must be above 0 and up to 1 (off)"]
    assert list(OptimConfig(layer_decay=1.5).problems())
    assert list(OptimConfig(backbone_factor=0.0).problems()) and list(ScheduleConfig(power=0.0).problems())
