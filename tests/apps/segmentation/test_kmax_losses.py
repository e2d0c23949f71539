"""Losses of kMaX-DeepLab, and the pixels drawn for them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.models import kmax_losses
from apps.segmentation.models.head import MaskOutput
from apps.segmentation.models.kmax_losses import (
    MapTargets,
    Matched,
    Options,
    all_losses,
    mask_losses,
    match,
    mean_of_nonzero,
    pixel_loss,
    semantic_loss,
)
from apps.segmentation.models.kmax_sampling import NEVER, draw_pixels, sampling_logits

CLASSES, QUERIES, SIDE = 3, 6, 5
EVERYTHING = Options(pixel_samples=0, semantic_samples=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets(segments: int = 3, seed: int = 0) -> MapTargets:
    """Segments that tile a map but for some void pixels."""
    owner = torch.randint(-1, segments, (SIDE, SIDE), generator=seeded(seed))
    masks = torch.stack([owner == number for number in range(segments)]) if segments else torch.zeros(0, SIDE, SIDE)
    return MapTargets.of(torch.arange(segments) % CLASSES, masks)


def output(seed: int = 0, images: int = 1, layers: int = 0) -> MaskOutput:
    generator = seeded(seed)
    found = [
        MaskOutput(
            classes=torch.randn(images, QUERIES, CLASSES + 1, generator=generator),
            masks=3 * torch.randn(images, QUERIES, SIDE, SIDE, generator=generator),
            features=F.normalize(torch.randn(images, 4, SIDE, SIDE, generator=generator), dim=1),
        )
        for _ in range(layers + 1)
    ]
    return found[0]._replace(auxiliary=tuple(found[1:]))


def literal_pixel_loss(features: Tensor, target: MapTargets, temperature: float) -> Tensor:
    """The published formula, with both matrices of pixel pairs."""
    wanted = target.masks.mT @ target.masks
    wanted = wanted / wanted.sum(0, keepdim=True).clamp(min=1)
    found = (features.mT @ features / temperature).log_softmax(0)
    return mean_of_nonzero(-(wanted * found).sum(0))


@pytest.mark.parametrize("overlapping", [False, True])
def test_pixel_loss_is_the_published_one_with_gradients(overlapping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmax_losses, "PIXELS_AT_ONCE", 7)  # the last part is a shorter one
    target = targets()
    if overlapping:
        target = MapTargets.of(target.classes, torch.cat([target.masks[:2], target.masks[:1] + target.masks[2:]]))
    target = target._replace(masks=target.masks.double())
    features = F.normalize(torch.randn(4, SIDE * SIDE, dtype=torch.float64, generator=seeded()), dim=0).requires_grad_()
    found = [pixel_loss(features, target, EVERYTHING), literal_pixel_loss(features, target, 0.3)]
    torch.testing.assert_close(found[0], found[1])
    gradients = [torch.autograd.grad(loss, features)[0] for loss in found]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_pixels_that_agree_with_their_segments_cost_less() -> None:
    target = targets(2)
    codes = torch.cat([target.masks, target.void[None].float()])  # a direction for every segment
    assert pixel_loss(codes, target, EVERYTHING) < pixel_loss(codes.roll(3, 1), target, EVERYTHING)


def test_matching_maximises_the_product_of_similarities() -> None:
    result, target = output(), targets()
    [pairs] = match(result, [target], EVERYTHING)
    shares = result.masks[0].flatten(1).softmax(0) * ~target.void
    dice = 2 * (shares @ target.masks.mT) / (shares.sum(1)[:, None] + target.masks.sum(1))
    named = result.classes[0].softmax(-1)[:, target.classes]
    product = (dice * named).tolist()
    best = max(
        sum(product[query][segment] for segment, query in enumerate(chosen))
        for chosen in itertools.permutations(range(QUERIES), 3)
    )
    assert (pairs.mask_similarity * pairs.class_similarity).sum() == pytest.approx(best, rel=1e-4)
    torch.testing.assert_close(pairs.mask_similarity, dice[pairs.queries, pairs.segments], rtol=1e-4, atol=1e-5)


def test_mask_losses_by_hand() -> None:
    """Two queries, three pixels, one segment on the first pixel, the last one void."""
    target = MapTargets.of(torch.tensor([1]), torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])[:1])
    target = target._replace(masks=torch.tensor([[1.0, 1.0, 0.0]]))
    logits = torch.tensor([[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]])
    classes = torch.zeros(2, 3)
    pairs = Matched(
        torch.tensor([0]), torch.tensor([0]), torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([0.9, 0.2])
    )
    own, dice, pixels = mask_losses(logits, classes, target, pairs, torch.ones(3), EVERYTHING)
    share = torch.tensor([0.5, torch.e / (torch.e + 1)])
    even = torch.log(torch.tensor(3.0))
    torch.testing.assert_close(own, (even * 0.75 * 0.5 + even * 0.25 * 0.2) / 2)
    expected = 0.25 * (1 - (2 * share.sum() + 1) / (share.sum() + 2 + 1)) * 0.75 / 2
    torch.testing.assert_close(dice, expected)
    torch.testing.assert_close(pixels, -share.log().sum() / 2)


def test_queries_count_at_least_so_much_in_the_loss_of_classes() -> None:
    """No mask is right and none is on void pixels: every query has the least weight."""
    target = MapTargets(torch.tensor([1]), torch.ones(1, 3))
    pairs = Matched(torch.tensor([0]), torch.tensor([0]), torch.zeros(1), torch.ones(1), torch.zeros(2))
    even = torch.log(torch.tensor(3.0))
    for least, options in ((1e-5, EVERYTHING), (0.2, Options(least_weight=0.2))):
        own, dice, _ = mask_losses(torch.zeros(2, 3), torch.zeros(2, 3), target, pairs, torch.ones(3), options)
        torch.testing.assert_close(own, even * least * (0.75 + 0.25) / 2)
        assert float(dice) == pytest.approx(0.75 / 2 * (1 - 4 / 5.5))


def test_void_pixels_can_count_in_masks() -> None:
    result, target = output(), targets()
    strict = all_losses(result, [target], torch.ones(4), Options(pixel_samples=0, ignore_void=False))
    free = all_losses(result, [target], torch.ones(4), EVERYTHING)
    assert strict[0].dice != free[0].dice and strict[0].masks == free[0].masks


def test_layers_share_the_final_matching_or_have_their_own() -> None:
    result, target = output(images=2, layers=2), [targets(), targets(2, seed=1)]
    shared = all_losses(result, target, torch.ones(4), EVERYTHING)
    own = all_losses(result, target, torch.ones(4), Options(pixel_samples=0, share_matching=False))
    assert len(shared) == len(own) == 3
    assert shared[0].dice == own[0].dice and shared[1].dice != own[1].dice
    alone = all_losses(result.auxiliary[0], target, torch.ones(4), EVERYTHING)
    torch.testing.assert_close(own[1], alone[0])


def test_an_image_without_segments_costs_classes_only() -> None:
    result = output()
    result.masks.requires_grad_()
    [terms] = all_losses(result, [targets(0)], torch.ones(4), EVERYTHING)
    assert terms.dice == 0 and terms.masks == 0 and terms.pixels == 0 and terms.classes > 0
    [unknown] = all_losses(result, [targets(0)], torch.ones(4), EVERYTHING, labelled=torch.zeros(1))
    assert unknown.classes == 0


def test_more_segments_than_queries() -> None:
    masks = torch.eye(SIDE * SIDE)[:9].reshape(9, SIDE, SIDE)
    [terms] = all_losses(output(), [MapTargets.of(torch.arange(9) % 3, masks)], torch.ones(4), EVERYTHING)
    assert all(torch.isfinite(term) for term in terms)


def test_similarities_carry_no_gradient() -> None:
    result, target = output(), targets()
    result.classes.requires_grad_()
    [terms] = all_losses(result, [target], torch.ones(4), EVERYTHING)
    [gradient] = torch.autograd.grad(terms.dice + terms.masks, result.classes)
    assert not gradient.any()


def test_overlapping_segments_share_their_pixels() -> None:
    target = MapTargets.of(torch.tensor([0, 1]), torch.tensor([[[True, True]], [[False, True]]]))
    assert target.masks.tolist() == [[1.0, 0.5], [0.0, 0.5]]


def test_averages_leave_out_what_is_exactly_zero() -> None:
    assert mean_of_nonzero(torch.tensor([0.0, 3.0, 1.0])) == 2
    assert mean_of_nonzero(torch.zeros(2)) == 0


def test_semantic_loss_leaves_void_out_and_weighs_classes() -> None:
    logits, labels = torch.randn(4, 6, generator=seeded()), torch.tensor([0, 1, -1, 2, 2, -1])
    known = F.cross_entropy(logits.mT, labels, ignore_index=-1)
    torch.testing.assert_close(semantic_loss(logits, labels, torch.ones(4), EVERYTHING), known)
    twice = semantic_loss(logits, labels, 2 * torch.ones(4), EVERYTHING)
    torch.testing.assert_close(twice, 2 * known)
    assert semantic_loss(logits, torch.full((6,), -1), torch.ones(4), EVERYTHING) == 0


def test_semantic_loss_draws_pixels_of_rare_classes_as_often() -> None:
    labels = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    logits = torch.stack([torch.zeros(1000), 2.0 - 4.0 * labels])  # both classes are wrong by as much
    options = Options(semantic_samples=50, semantic_balance=1.0)
    logits[:, labels == 1] *= 2  # but the rare one more
    losses = [semantic_loss(logits, labels, torch.ones(2), options, seeded(seed)) for seed in range(20)]
    per_class = [F.cross_entropy(logits[:, labels == c].mT, labels[labels == c]) for c in (0, 1)]
    assert torch.stack(losses).mean() == pytest.approx(float(sum(per_class)) / 2, rel=0.05)


def test_balance_makes_segments_as_likely_whatever_their_size() -> None:
    masks = torch.zeros(2, 100)
    masks[0, :80], masks[1, 80:90] = 1, 1
    logits = sampling_logits(masks, 1.0)
    likely = logits[:90].softmax(0)
    torch.testing.assert_close(likely[:80].sum(), likely[80:].sum())
    assert (logits[90:] == NEVER).all()


def test_void_pixels_are_drawn_only_where_others_are_too_few() -> None:
    masks = torch.zeros(1, 50)
    masks[0, 7:27] = 1
    drawn = draw_pixels(sampling_logits(masks, 1.5), 20, seeded())
    assert sorted(drawn.tolist()) == list(range(7, 27))
    assert len(set(draw_pixels(sampling_logits(masks, 1.5), 30, seeded()).tolist())) == 30


def test_draws_depend_on_the_generator_alone() -> None:
    logits = torch.zeros(500)
    first = draw_pixels(logits, 40, seeded(3))
    torch.rand(1)
    assert torch.equal(first, draw_pixels(logits, 40, seeded(3)))
    assert not torch.equal(first, draw_pixels(logits, 40, seeded(4)))


@pytest.mark.parametrize("count", [0, 9, 12])
def test_all_pixels_come_in_order(count: int) -> None:
    assert draw_pixels(torch.zeros(9), count).tolist() == list(range(9))
