"""Losses of Mask2Former against their sums written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.segmentation.models import mask2former_losses
from apps.segmentation.models.head import MaskOutput, Segments, Targets
from apps.segmentation.models.mask2former_losses import (
    LossPoints,
    PointLosses,
    Weights,
    class_loss,
    match,
    matching_costs,
    pair_losses,
    query_labels,
    read_logits,
    read_targets,
    read_together,
    segments_per_device,
    uncertain_points,
)
from graftwork.errors import ShapeError


def sampled(masks, points):
    """Torch's own sampling of whole masks as numbers, [S, H, W] at [S, P, 2]."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(masks[:, None].to(points.dtype), grid, align_corners=False)[:, 0, 0]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    together=st.booleans(),
    seed=st.integers(0, 99),
)
def test_targets_are_read_as_torch_samples(count, height, width, together, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height, width, generator=generator) > 0.5
    own = 1 if together else count
    points = torch.rand(own, 30, 2, dtype=torch.float64, generator=generator) * 1.4 - 0.2  # some outside
    expected = sampled(masks, points.expand(count, -1, -1))
    torch.testing.assert_close(read_targets(masks, points), expected)


def test_targets_of_padded_images():
    """Points that are shares of a padded image read the same pixels as those of the image, and zeros in the padding."""
    masks = torch.rand(3, 5, 6) > 0.5
    padded = F.pad(masks, (0, 2, 0, 3))
    points = torch.rand(3, 50, 2, dtype=torch.float64)
    torch.testing.assert_close(read_targets(masks, points, (8, 8)), sampled(padded, points))


def test_maps_of_an_image_are_read_together():
    masks, points = torch.randn(2, 3, 6, 5).double(), torch.rand(2, 11, 2).double()
    expected = torch.stack([sampled(m, p.expand(3, -1, -1)) for m, p in zip(masks, points, strict=True)])
    torch.testing.assert_close(read_together(masks, points), expected)
    torch.testing.assert_close(read_logits(masks[0], points[:1].expand(3, -1, -1)), expected[0])


def test_costs_by_the_formula():
    torch.manual_seed(0)
    classes, masks = torch.randn(4, 6).double(), 3 * torch.randn(4, 20).double()
    labels, targets = torch.tensor([2, 0, 2]), torch.rand(3, 20).double()
    weights = Weights(class_cost=1.5, mask_cost=0.7, dice_cost=0.3)
    found = matching_costs(classes, masks, labels, targets, weights)
    for n in range(4):
        for s in range(3):
            entropy = F.binary_cross_entropy_with_logits(masks[n], targets[s])
            p, t = masks[n].sigmoid(), targets[s]
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            expected = 0.7 * entropy + 0.3 * dice - 1.5 * classes[n].softmax(0)[labels[s]]
            torch.testing.assert_close(found[n, s], expected)


def test_pair_losses_by_the_formula():
    logits, targets = torch.randn(3, 9).double(), torch.rand(3, 9).double()
    entropy, dice = pair_losses(logits, targets, 2.0)
    p = logits.sigmoid()
    torch.testing.assert_close(entropy, -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(1).sum() / 2)
    expected = sum(1 - (2 * (p[m] @ targets[m]) + 1) / (p[m].sum() + targets[m].sum() + 1) for m in range(3)) / 2
    torch.testing.assert_close(dice, expected)


def test_class_loss_is_a_weighted_mean():
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, 3, 3], [2, 1, 3]])
    weights = torch.tensor([1.0, 2.0, 1.0, 0.1])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weights)
    torch.testing.assert_close(class_loss(logits, labels, weights[labels]), expected)


def test_the_least_certain_candidates_are_kept():
    masks = torch.linspace(-1, 2, 16).reshape(1, 1, 16)
    x = (torch.arange(16) + 0.5) / 16
    candidates = torch.stack([x, torch.full_like(x, 0.5)], -1)[None]
    fresh = torch.rand(1, 2, 2)
    points = uncertain_points(masks, LossPoints(candidates, fresh), 5)
    torch.testing.assert_close(points[:, 3:], fresh)
    assert sorted((points[0, :3, 0] * 16).long().tolist()) == [4, 5, 6]  # logits nearest to zero: -0.2, 0.0 and 0.2


def scene(batch=2, queries=6, classes=4, size=(24, 20), stride=4, seed=0, outputs=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (batch, *size), generator=generator)
    labels[:, :6] = 255
    found = []
    for image in labels:
        present = image[image != 255].unique()
        found.append(Segments(present, image == present[:, None, None]))
    small = [-(-side // stride) for side in size]
    logits = [torch.randn(batch, queries, classes + 1, generator=generator) for _ in range(outputs)]
    masks = [torch.randn(batch, queries, *small, generator=generator) for _ in range(outputs)]
    parts = [MaskOutput(c.requires_grad_(), m.requires_grad_()) for c, m in zip(logits, masks, strict=True)]
    return parts[-1]._replace(auxiliary=tuple(parts[:-1])), Targets(labels, found)


def test_every_output_is_matched_by_itself():
    output, targets = scene()
    outputs = (output, *output.auxiliary)
    points = torch.rand(3, 2, 40, 2)
    found = match(outputs, targets.segments, points, Weights())
    assert [len(pairs) for pairs in found] == [2, 2, 2]
    alone = [match([one], targets.segments, points[i : i + 1], Weights())[0] for i, one in enumerate(outputs)]
    for pairs, expected in zip(found, alone, strict=True):
        torch.testing.assert_close([list(pair) for pair in pairs], [list(pair) for pair in expected])
    assert any(bool((a[0] != b[0]).any()) for a, b in zip(found[0], found[1], strict=True))


def test_loss_is_the_sum_of_its_parts_and_of_all_outputs():
    output, targets = scene()
    torch.manual_seed(0)
    losses = PointLosses(Weights(), points=64, stride=4)
    found = losses(output, targets)
    torch.testing.assert_close(found["loss"], found["classes"] + found["masks"] + found["dice"])
    found["loss"].backward()
    for one in (output, *output.auxiliary):
        assert one.masks.grad.abs().sum() > 0 and one.classes.grad.abs().sum() > 0
    last = losses(output._replace(auxiliary=()), targets)
    assert float(last["loss"]) < 0.5 * float(found["loss"])
    halved = PointLosses(Weights(), points=64, generator=torch.Generator().manual_seed(5))
    again = PointLosses(Weights(), points=64, generator=torch.Generator().manual_seed(5))
    half = halved(output._replace(weight=torch.tensor(0.5)), targets)
    torch.testing.assert_close(half["loss"], 0.5 * again(output, targets)["loss"])


@pytest.mark.parametrize("queries", [6, 2])  # fewer than segments, too
def test_outputs_together_cost_what_they_cost_one_by_one(queries, monkeypatch):
    """Targets are read for all outputs at once; the draws and the sums are those of one output after the other."""
    output, targets = scene(queries=queries)
    outputs, weights, count, calls = (output, *output.auxiliary), Weights(), 64, []
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(3, 2, count, 2, generator=generator)
    expected = torch.zeros(())
    for one, places in zip(outputs, points, strict=True):
        (pairs,) = match([one], targets.segments, places[None], weights, (24, 20))
        labels = query_labels(one.classes, pairs, targets.segments)
        expected = expected + 2 * class_loss(one.classes, labels, torch.tensor([1.0] * 4 + [0.1])[labels])
        masks = torch.cat([one.masks[image, rows] for image, (rows, _) in enumerate(pairs)])
        wanted = torch.cat([found.masks[columns] for found, (_, columns) in zip(targets.segments, pairs, strict=True)])
        candidates = torch.rand(len(masks), 3 * count, 2, generator=generator)
        fresh = torch.rand(len(masks), count // 4, 2, generator=generator)
        chosen = uncertain_points(masks, LossPoints(candidates, fresh), count)
        normaliser = segments_per_device(targets.segments)
        entropy, dice = pair_losses(read_logits(masks, chosen), sampled(wanted, chosen), normaliser)
        expected = expected + 5 * entropy + 5 * dice
    read = mask2former_losses.read_targets
    monkeypatch.setattr(mask2former_losses, "read_targets", lambda *given: calls.append(given) or read(*given))
    losses = PointLosses(weights, points=count, stride=4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(losses(output, targets)["loss"], expected)
    assert len(calls) == 2 * len(targets.segments)  # for the matching and for the losses, whatever the outputs


def test_points_of_a_generator_repeat():
    output, targets = scene()
    values = [
        PointLosses(Weights(), points=64, generator=torch.Generator().manual_seed(seed))(output, targets)["loss"]
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_nothing_labelled_costs_nothing():
    output, targets = scene()
    empty = Targets(
        torch.full_like(targets.labels, 255), [Segments(s.classes[:0], s.masks[:0]) for s in targets.segments]
    )
    found = PointLosses(Weights(), points=64)(output, empty)
    assert float(found["loss"]) == 0
    found["loss"].backward()
    assert all(torch.isfinite(one.masks.grad).all() for one in (output, *output.auxiliary))
    assert float(output.classes.grad.abs().max()) == 0


def test_an_image_without_labels_beside_another_counts_for_nothing():
    output, targets = scene()
    labels = targets.labels.clone()
    labels[1] = 255
    blank = Segments(targets.segments[1].classes[:0], targets.segments[1].masks[:0])
    found = PointLosses(Weights(), points=64)(output, Targets(labels, [targets.segments[0], blank]))
    found["loss"].backward()
    assert float(output.classes.grad[1].abs().max()) == 0 and float(output.classes.grad[0].abs().max()) > 0


def test_more_segments_than_queries():
    output, targets = scene(queries=2)
    labels = query_labels(
        output.classes, match([output], targets.segments, torch.rand(1, 2, 9, 2), Weights())[0], targets.segments
    )
    assert (labels < 4).all()
    assert segments_per_device(targets.segments) == sum(len(s.classes) for s in targets.segments)
    assert torch.isfinite(PointLosses(Weights(), points=64)(output, targets)["loss"])


def test_class_weights_and_half_types():
    output, targets = scene()
    plain = PointLosses(Weights(masks=0, dice=0), points=16, generator=torch.Generator().manual_seed(0))
    heavy = PointLosses(
        Weights(masks=0, dice=0), points=16, class_weights=(9, 1, 1, 1), generator=torch.Generator().manual_seed(0)
    )
    assert plain(output, targets)["loss"] != heavy(output, targets)["loss"]
    half = MaskOutput(output.classes.detach().bfloat16(), output.masks.detach().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = PointLosses(Weights(), points=64, generator=torch.Generator().manual_seed(0))(half, targets)
    assert found["loss"].dtype == torch.float32
    full = MaskOutput(half.classes.float(), half.masks.float())
    same = PointLosses(Weights(), points=64, generator=torch.Generator().manual_seed(0))(full, targets)
    torch.testing.assert_close(found["loss"], same["loss"])


def test_images_and_targets_must_be_as_many():
    output, targets = scene()
    with pytest.raises(ShapeError, match="expected segments of 2 images, got 1"):
        PointLosses(Weights())(output, Targets(targets.labels, targets.segments[:1]))


def test_a_perfect_prediction_costs_little():
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, 16:] = 2
    segments = [Segments(torch.tensor([0, 2]), torch.stack([labels[0] == 0, labels[0] == 2]))]
    masks = torch.full((1, 3, 32, 32), -20.0)
    masks[0, 2][labels[0] == 0] = 20
    masks[0, 0][labels[0] == 2] = 20
    classes = 20 * F.one_hot(torch.tensor([[2, 4, 0]]), 5).float()
    found = PointLosses(Weights(), points=200, stride=1)(MaskOutput(classes, masks), Targets(labels, segments))
    assert float(found["classes"]) < 1e-6
    assert float(found["dice"]) < 5 * 2 * 0.1  # points on the border of both read half of each
