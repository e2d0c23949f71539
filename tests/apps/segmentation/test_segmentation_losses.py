"""Losses of labelled pixels against their formulas, with ignored pixels, weights, half types and nothing to learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.segmentation.losses import binary_cross_entropy, cross_entropy, dice, hardest, one_hot, resize
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ShapeError


def example(seed: int, batch: int = 2, classes: int = 5, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 6, 7, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes, (batch, 6, 7), generator=generator)
    return logits, labels.masked_fill(torch.rand(batch, 6, 7, generator=generator) < ignored, IGNORED)


@settings(max_examples=15)
@given(seed=st.integers(0, 99), ignored=st.sampled_from([0.0, 0.4, 0.95]), weighted=st.booleans())
def test_cross_entropy_is_the_weighted_mean_of_valid_pixels(seed: int, ignored: float, weighted: bool) -> None:
    logits, labels = example(seed, ignored=ignored)
    weights = torch.rand(5, dtype=torch.float64) + 0.1 if weighted else torch.ones(5, dtype=torch.float64)
    total, share = 0.0, 0.0
    for image in range(2):
        for y, x in (labels[image] != IGNORED).nonzero().tolist():
            own = int(labels[image, y, x])
            total -= float(weights[own] * logits[image, :, y, x].log_softmax(0)[own])
            share += float(weights[own])
    found = cross_entropy(logits, labels, weights=weights if weighted else None)
    assert float(found) == pytest.approx(total / share if share else 0.0, abs=1e-12)


def test_all_pixels_as_divisor() -> None:
    logits, labels = example(1)
    share = (labels != IGNORED).double().mean()
    expected = cross_entropy(logits, labels) * share
    torch.testing.assert_close(cross_entropy(logits, labels, average="all"), expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_is_torchs(smoothing: float) -> None:
    logits, labels = example(2)
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing=smoothing), expected)


LOSSES = {
    "cross entropy": cross_entropy,
    "of all pixels": lambda logits, labels: cross_entropy(logits, labels, average="all"),
    "weighted": lambda logits, labels: cross_entropy(logits, labels, weights=torch.tensor([0.2, 1, 2, 3, 4])),
    "binary": binary_cross_entropy,
    "dice": dice,
    "dice of sigmoids": lambda logits, labels: dice(logits, labels, activation="sigmoid"),
    "plain dice": lambda logits, labels: dice(logits, labels, squared=False),
    "hard": lambda logits, labels: cross_entropy(logits, hardest(logits, labels, least=1)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("batch", [0, 2])
def test_nothing_to_learn_gives_zero_and_zero_gradients(loss: object, batch: int) -> None:
    logits = torch.randn(batch, 5, 4, 3, requires_grad=True)
    found = loss(logits, torch.full((batch, 4, 3), IGNORED))  # type: ignore[operator]
    found.backward()
    assert float(found.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_types_are_summed_in_float32(loss: object) -> None:
    logits, labels = example(3)
    half = logits.half()
    found = loss(half, labels)  # type: ignore[operator]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(half.float(), labels))  # type: ignore[operator]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients(loss: object) -> None:
    logits, labels = example(4)
    corner = labels[:, :3, :3]
    checked = logits[:, :, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, corner), checked)  # type: ignore[operator]


def test_dice_of_a_hand_made_image() -> None:
    logits = torch.tensor([[[[0.0, 50.0]], [[0.0, -50.0]]]], dtype=torch.float64)  # halves, then class 0 for sure
    labels = torch.tensor([[[0, 0]]])
    p, t = torch.tensor([0.5, 1, 0.5, 0]), torch.tensor([1.0, 1, 0, 0])
    expected = 1 - 2 * float(p @ t) / (float(p @ p) + float(t @ t) + 2e-3)
    assert float(dice(logits, labels)) == pytest.approx(expected)
    ignored = torch.tensor([[[0, IGNORED]]])  # no target there, but what is predicted counts
    expected = 1 - 2 * 0.5 / (float(p @ p) + 1 + 2e-3)
    assert float(dice(logits, ignored)) == pytest.approx(expected)


def test_dice_of_probabilities() -> None:
    logits, labels = example(5)
    for activation, probabilities in (("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(1))):
        expected = dice(logits, labels, activation=activation)  # type: ignore[arg-type]
        torch.testing.assert_close(dice(probabilities, labels, activation="none"), expected)


def test_dice_of_a_single_channel_is_that_of_label_one() -> None:
    logits, labels = torch.tensor([[[[2.0, -1.0, 3.0]]]]), torch.tensor([[[1, 0, IGNORED]]])
    p = logits.sigmoid().flatten()
    expected = 1 - 2 * p[0] / ((p * p).sum() + 1 + 2e-3)
    torch.testing.assert_close(dice(logits, labels, activation="sigmoid"), expected)


def test_dice_falls_to_almost_nothing() -> None:
    labels = torch.randint(0, 4, (2, 8, 8))
    assert float(dice(one_hot(labels, 4) * 60 - 30, labels)) < 1e-4
    assert float(dice(one_hot((labels + 1) % 4, 4) * 60 - 30, labels)) > 0.99


def test_a_single_channel_is_that_of_label_one() -> None:
    logits, labels = torch.tensor([[[[2.0, -1.0, 3.0]]]]), torch.tensor([[[1, 0, IGNORED]]])
    expected = (F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(-1.0))) / 2
    torch.testing.assert_close(binary_cross_entropy(logits, labels), expected)
    doubled = (2 * F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(-1.0))) / 2
    torch.testing.assert_close(binary_cross_entropy(logits, labels, weights=torch.tensor([2.0])), doubled)
    torch.testing.assert_close(binary_cross_entropy(logits, labels, average="all"), expected * 2 / 3)


def test_the_hardest_pixels_are_kept() -> None:
    logits = torch.tensor([4.0, 1.0, -1.0, -3.0, 0.0]).view(1, 1, 1, 5)
    logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
    labels = torch.tensor([[[0, 0, 0, 0, IGNORED]]])
    assert hardest(logits, labels, threshold=0.6, least=1).tolist() == [[[255, 255, 0, 0, 255]]]
    assert hardest(logits, labels, threshold=0.0, least=1).tolist() == [[[255, 255, 255, 0, 255]]]
    assert hardest(logits, labels, threshold=0.8, least=1).tolist() == [[[255, 0, 0, 0, 255]]]


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, dice, hardest])
def test_shapes_that_differ_are_named(loss: object) -> None:
    with pytest.raises(ShapeError, match=r"\[2, 5, 4, 4\].*\[2, 8, 8\].*resize"):
        loss(torch.zeros(2, 5, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long))  # type: ignore[operator]


def test_resize_takes_float32_and_leaves_the_size() -> None:
    logits = torch.randn(1, 3, 4, 4)
    assert resize(logits, (4, 4)) is logits
    assert resize(logits.bfloat16(), (9, 7)).dtype == torch.float32
