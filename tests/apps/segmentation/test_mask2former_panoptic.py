"""What masks of Mask2Former mean, against loops over queries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.segmentation.config import PanopticConfig
from apps.segmentation.models.head import MaskOutput
from apps.segmentation.models.mask2former_panoptic import (
    CHUNK,
    class_scores,
    instances,
    panoptic,
    resize_masks,
)
from backbones.timing import peak_memory
from tests.apps.segmentation.test_mask2former import SWIN, built, levels_of


def by_loop(classes, masks, things, threshold, overlap):
    """Query by query."""
    scores, labels = classes.softmax(-1).max(-1)
    keep = [n for n in range(len(classes)) if labels[n] != classes.shape[1] - 1 and scores[n] > threshold]
    result, found, seen = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    if not keep:
        return result, found
    probability = masks[keep].sigmoid()
    owner = (scores[keep][:, None, None] * probability).argmax(0)
    for place, query in enumerate(keep):
        strongest = int((owner == place).sum())
        whole = int((probability[place] >= 0.5).sum())
        mask = (owner == place) & (probability[place] >= 0.5)
        if not strongest or not whole or not mask.any() or strongest / whole < overlap:
            continue
        label = int(labels[query])
        if label not in things and label in seen:
            result[mask] = seen[label]
            continue
        found.append(label)
        seen.setdefault(label, len(found))
        result[mask] = len(found)
    return result, found


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 9),
    classes=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    overlap=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    seed=st.integers(0, 999),
)
def test_panoptic_as_by_a_loop(queries, classes, threshold, overlap, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(queries, classes + 1, generator=generator)
    coarse = 4 * torch.randn(1, queries, 3, 4, generator=generator)
    masks = F.interpolate(coarse, size=(9, 14), mode="bilinear")[0]
    found = panoptic(logits, masks, {0}, thing_threshold=threshold, stuff_threshold=threshold, overlap=overlap)
    expected, labels = by_loop(logits, masks, {0}, threshold, overlap)
    assert torch.equal(found.segments, expected)
    assert found.classes.tolist() == labels
    assert len(found.scores) == len(labels) and bool((found.scores > threshold).all())


def test_things_and_stuff_have_thresholds_of_their_own():
    classes = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # both certain at 0.79
    masks = torch.full((2, 2, 4), -5.0)
    masks[0, :, :2], masks[1, :, 2:] = 5.0, 5.0
    found = panoptic(classes, masks, {0}, thing_threshold=0.7, stuff_threshold=0.9)
    assert found.segments.tolist() == [[1, 1, 0, 0]] * 2 and found.classes.tolist() == [0]
    assert panoptic(classes, masks, {0}).segments.max() == 0  # the published threshold is 0.8


def test_scores_of_classes_are_a_sum_over_queries():
    classes, masks = torch.randn(2, 35, 4), torch.randn(2, 35, 6, 5)
    expected = torch.einsum("bnc,bnhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    torch.testing.assert_close(class_scores(MaskOutput(classes, masks), (6, 5), 1), expected)


def test_masks_of_padded_images_are_cut():
    """The map of an image of 22 x 13 pixels at stride 4 is that of one of 24 x 16."""
    masks = torch.randn(1, 2, 6, 4)
    large = F.interpolate(masks, size=(24, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_masks(masks, (22, 13), 4), large[..., :22, :13])
    stretched = F.interpolate(masks, size=(50, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_masks(masks, (50, 50), 4), stretched)


def test_head_gives_the_same_at_the_size_of_images():
    head = built().eval()
    with torch.no_grad():
        output = head(levels_of(SWIN, (45, 70)), (45, 70))
        rules = PanopticConfig(thing_threshold=0.2, stuff_threshold=0.2, overlap=0.1)
        found = head.panoptic(output, (45, 70), rules)
        masks = resize_masks(output.masks, (45, 70), 4)
        scores = head.class_scores(output, (45, 70))
        torch.testing.assert_close(head.mask_probabilities(output, (45, 70)), masks.sigmoid())
    for image in range(2):
        expected, labels = by_loop(output.classes[image], masks[image], {0, 1}, 0.2, 0.1)
        assert torch.equal(found[image].segments, expected) and found[image].classes.tolist() == labels
    assert scores.shape == (2, 5, 45, 70)
    torch.testing.assert_close(head.probabilities(scores).sum(1), torch.ones(2, 45, 70))
    assert head.panoptic(output, (45, 70), PanopticConfig(thing_threshold=1, stuff_threshold=1))[0].segments.max() == 0


def test_objects_are_the_best_pairs_of_query_and_class():
    classes, masks = torch.randn(5, 4), torch.randn(5, 6, 7)
    found = instances(classes, masks, (6, 7), 1, top=6)
    scores = classes.softmax(-1)[:, :-1]
    order = scores.flatten().argsort(descending=True)[:6]
    for place, pair in enumerate(order.tolist()):
        query, label = divmod(pair, 3)
        inside = masks[query] > 0
        mean = masks[query].sigmoid()[inside].sum() / (inside.sum() + 1e-6)
        assert int(found.classes[place]) == label and torch.equal(found.masks[place], inside)
        torch.testing.assert_close(found.scores[place], scores[query, label] * mean)
    things = instances(classes, masks, (6, 7), 1, top=6, things={1})
    assert things.classes.tolist() == [1] * int((found.classes == 1).sum())
    assert len(instances(classes, masks, (6, 7), 1, top=100).classes) == 15
    assert len(built().eval().instances(MaskOutput(torch.randn(2, 7, 6), torch.randn(2, 7, 4, 4)), (16, 16), 9)) == 2


def all_at_once(classes, masks, size, stride, top, things):
    """Every mask enlarged, then the pairs."""
    large = resize_masks(masks[None], size, stride)[0]
    scores = classes.softmax(-1)[:, :-1]
    best, pairs = scores.flatten().topk(min(top, scores.numel()))
    wanted = torch.isin(pairs % scores.shape[1], torch.tensor(things, dtype=torch.long))
    best, pairs = best[wanted], pairs[wanted]
    chosen = large[pairs // scores.shape[1]]
    inside = chosen > 0
    means = (chosen.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    return pairs % scores.shape[1], best * means, inside


@pytest.mark.parametrize(("queries", "size"), [(50, (48, 64)), (3, (45, 61)), (20, (30, 31))])
@pytest.mark.parametrize("things", [(0, 2), (1,), ()])
def test_objects_are_those_of_masks_enlarged_all_at_once(queries, size, things):
    generator = torch.Generator().manual_seed(queries)
    classes, masks = (torch.randn(queries, *rest, generator=generator) for rest in ((5,), (12, 16)))
    found = instances(classes, masks, size, 4, top=60, things=things)
    labels, scores, inside = all_at_once(classes, masks, size, 4, 60, things)
    assert torch.equal(found.classes, labels) and torch.equal(found.masks, inside)
    torch.testing.assert_close(found.scores, scores)
    assert bool(len(labels)) == bool(things) and found.masks.shape[1:] == size


def test_objects_take_memory_for_themselves_and_a_few_masks():
    classes, masks, size = torch.randn(100, 20), torch.randn(100, 32, 64), (128, 256)
    pixels = size[0] * size[1]
    peak = peak_memory(lambda: instances(classes, masks, size, 4, things=range(8)))
    assert peak < 100 * pixels + 6 * CHUNK * 4 * pixels  # the enlarged masks alone are 400 bytes per pixel
    assert peak < peak_memory(lambda: all_at_once(classes, masks, size, 4, 100, range(8))) / 2
