"""Batch statistics move once per step when activations are computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from backbones.vision.recomputation import keep_statistics, recomputing


class Net(nn.Module):
    def __init__(self, saving: bool, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Conv2d(4, 2, 1)
        )
        self.saving = saving

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.body, x, use_reentrant=False) if self.saving else self.body(x)


def step(net: Net) -> dict[str, torch.Tensor]:
    net.zero_grad()
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    (net(x) - 1).square().sum().backward()
    return {**net.state_dict(), **{f"{name}.grad": p.grad for name, p in net.named_parameters()}}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("copied", [False, True])
def test_statistics_and_gradients_equal_those_without_checkpointing(momentum, copied):
    torch.manual_seed(0)
    plain, saving = Net(False, momentum), Net(True, momentum)
    saving.load_state_dict(plain.state_dict())
    keep_statistics(saving)
    keep_statistics(saving)
    saving = copy.deepcopy(saving) if copied else saving
    for _ in range(2):
        expected, found = step(plain), step(saving)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)
    assert saving.body[1].momentum == momentum and int(saving.body[1].num_batches_tracked) == 2


def test_without_it_statistics_move_twice():
    plain, saving = Net(False), Net(True)
    saving.load_state_dict(plain.state_dict())
    step(plain), step(saving)
    assert int(saving.body[1].num_batches_tracked) == 2 * int(plain.body[1].num_batches_tracked)


def test_recomputing_is_true_in_the_backward_pass_only():
    seen = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(recomputing())
        return x.sin()

    checkpoint(note, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == [False, True]
    assert not recomputing()
