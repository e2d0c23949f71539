"""Losses against numbers worked out by hand, and against the dense formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.classification.losses import SparseTargets, cross_entropy, distillation
from graftwork.errors import ShapeError


def log(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def sparse(probabilities: torch.Tensor, kept: int) -> SparseTargets:
    top = probabilities.log().topk(kept, dim=1)
    return SparseTargets(top.indices, top.values)


def dense(targets: SparseTargets, classes: int) -> torch.Tensor:
    kept = targets.values.exp()
    rest = (1 - kept.sum(1, keepdim=True)) / max(1, classes - kept.shape[1])
    return rest.expand(-1, classes).scatter(1, targets.indices, kept)


# -- cross entropy ----------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    logits = log(0.7, 0.2, 0.1)  # logarithms of probabilities are their own log-softmax
    assert float(cross_entropy(logits, torch.tensor([1]))) == pytest.approx(-math.log(0.2))


def test_smoothing_spreads_its_share_evenly():
    logits = log(0.7, 0.2, 0.1)
    wanted = -(0.7 + 0.1) * math.log(0.7) - 0.1 * math.log(0.2) - 0.1 * math.log(0.1)
    assert float(cross_entropy(logits, torch.tensor([0]), smoothing=0.3)) == pytest.approx(wanted)
    soft = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    wanted = -0.45 * (math.log(0.7) + math.log(0.2)) - 0.1 * math.log(0.1)
    assert float(cross_entropy(logits, soft, smoothing=0.3)) == pytest.approx(wanted)


def test_cross_entropy_sums_half_precision_in_full():
    logits = torch.zeros(1, 4000, dtype=torch.bfloat16)
    loss = cross_entropy(logits, torch.tensor([3]))
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(math.log(4000), rel=1e-5)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"logits are \[2, 3\], targets \[3\]"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"targets \[2, 4\]"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))


# -- distillation -----------------------------------------------------------------------------------------------------


def test_distillation_by_hand():
    # the teacher keeps 0.6 and 0.3; the other two classes share 0.1
    teacher = SparseTargets(torch.tensor([[2, 0]]), log(0.6, 0.3))
    student = log(0.25, 0.25, 0.25, 0.25)
    wanted = sum(p * math.log(p / 0.25) for p in (0.6, 0.3, 0.05, 0.05))
    assert float(distillation(student, teacher)) == pytest.approx(wanted)


def test_distillation_is_zero_where_both_agree():
    teacher = SparseTargets(torch.tensor([[2, 0]]), log(0.6, 0.3))
    for temperature in (0.5, 1.0, 4.0):
        agreed = log(0.3, 0.05, 0.6, 0.05)
        assert float(distillation(agreed, teacher, temperature)) == pytest.approx(0, abs=1e-9)


def test_temperature_by_hand():
    teacher = SparseTargets(torch.tensor([[0]]), log(0.9))  # two classes: 0.9 and 0.1
    student = log(0.5, 0.5)
    soft = [0.9**0.5, 0.1**0.5]
    soft = [value / sum(soft) for value in soft]
    wanted = 4 * sum(p * math.log(p / 0.5) for p in soft)
    assert float(distillation(student, teacher, temperature=2.0)) == pytest.approx(wanted)


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(2, 12), st.integers(1, 12), st.floats(0.3, 5.0), st.integers(0, 2**31))
def test_sparse_targets_agree_with_dense_ones(batch, classes, kept, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(batch, classes, generator=generator, dtype=torch.float64).mul(3).softmax(1)
    targets = sparse(probabilities, min(kept, classes))
    logits = torch.randn(batch, classes, generator=generator, dtype=torch.float64).requires_grad_()
    soft = (dense(targets, classes).log() / temperature).softmax(1)
    wanted = F.kl_div((logits / temperature).log_softmax(1), soft, reduction="batchmean") * temperature**2
    found = distillation(logits, targets, temperature)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found, wanted)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_all_classes_kept_is_plain_distillation():
    probabilities = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    logits = log(0.2, 0.2, 0.6)
    wanted = sum(p * math.log(p / q) for p, q in ((0.5, 0.2), (0.3, 0.2), (0.2, 0.6)))
    assert float(distillation(logits, sparse(probabilities, 3))) == pytest.approx(wanted)


def test_half_precision_of_a_certain_teacher_is_harmless():
    # rounded to half precision these sum to more than 1
    targets = SparseTargets(torch.tensor([[0, 1]]), torch.tensor([[-1e-4, -9.0]]).half())
    assert float(targets.values.float().exp().sum()) > 1
    logits = torch.randn(1, 5, requires_grad=True)
    loss = distillation(logits, targets)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    exact = distillation(logits, SparseTargets(targets.indices, torch.tensor([[-1e-4, -9.0]])))
    assert float(loss) == pytest.approx(float(exact), rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "indices", "values"), [((2, 5), (3, 2), (3, 2)), ((2, 5), (2, 6), (2, 6)), ((2, 5), (2, 2), (2, 3))]
)
def test_targets_that_do_not_belong_to_the_logits(logits, indices, values):
    with pytest.raises(ShapeError, match=r"K up to C"):
        distillation(torch.zeros(logits), SparseTargets(torch.zeros(indices, dtype=torch.int64), torch.zeros(values)))
