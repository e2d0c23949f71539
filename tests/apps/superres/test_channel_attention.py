"""Layers around channel attention: products of matrices for convolutions, activations, memory order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apps.superres.models.channel_attention import ChannelCrossAttention, GatedFeedForward, Pointwise
from backbones.attention import force


def maps(width=6, height=5, columns=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(width)
    return torch.randn(2, width, height, columns, generator=generator, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_product_of_matrices_is_the_convolution(bias, order):
    layer, x = Pointwise(6, 4, bias=bias).double(), maps().contiguous(memory_format=order).requires_grad_()
    results = []
    for run in (layer, lambda x: nn.Conv2d.forward(layer, x)):
        output = run(x)
        results.append([output, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert {name: list(tensor.shape) for name, tensor in layer.state_dict().items()} == {
        "weight": [4, 6, 1, 1],
        **({"bias": [4]} if bias else {}),
    }


def test_a_part_of_the_channels_is_read_in_place():
    layer, x = Pointwise(3, 4).double(), maps().contiguous(memory_format=torch.channels_last)
    for part in x.chunk(2, 1):
        torch.testing.assert_close(layer(part), F.conv2d(part, layer.weight))


@pytest.mark.parametrize("activation", ["softmax", "relu", "gelu", "sigmoid"])
def test_both_forms_of_attention_with_its_convolutions(activation):
    torch.manual_seed(0)
    layer = ChannelCrossAttention(6, heads=2, activation=activation).double()
    nn.init.normal_(layer.temperature)
    queries, keys = maps(), maps().flip(0).sin()
    fast = layer(queries, keys)
    with force("math"):
        torch.testing.assert_close(layer(queries, keys), fast)
    q = layer.q_depthwise(F.conv2d(queries, layer.q.weight)).unflatten(1, (2, 3)).flatten(3)
    k, v = (x.unflatten(1, (2, 3)).flatten(3) for x in layer.kv_depthwise(F.conv2d(keys, layer.kv.weight)).chunk(2, 1))
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * layer.temperature
    functions = {"softmax": lambda x: x.softmax(-1), "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid}
    mixed = (functions[activation](logits) @ v).flatten(1, 2).unflatten(2, (5, 4))
    torch.testing.assert_close(fast, F.conv2d(mixed, layer.out.weight))


def test_one_half_of_the_feed_forward_network_gates_the_other():
    torch.manual_seed(0)
    layer, x = GatedFeedForward(6, hidden=5).double(), maps()
    hidden = F.conv2d(F.conv2d(x, layer.expand.weight), layer.depthwise.weight, padding=1, groups=10)
    expected = F.conv2d(F.gelu(hidden[:, :5]) * hidden[:, 5:], layer.contract.weight)
    torch.testing.assert_close(layer(x), expected)
    assert all(parameter.dim() == 4 for parameter in layer.parameters())  # no biases
