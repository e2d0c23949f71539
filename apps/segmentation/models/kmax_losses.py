"""Losses of kMaX-DeepLab: matched masks and classes, and pixels that discriminate segments.

Source: Yu et al. 2022, and Wang et al., "MaX-DeepLab", CVPR 2021, with the published code's reductions. Surprises:
queries compete for pixels by a softmax, so void pixels are zeroed rather than left out; a class counts as much as its
mask is right and a mask as much as its class, both without gradient; averages are over the entries that are not 0.

Everything is float32, under autocast too.

Shape legend: B batch, N queries, C classes, S segments of an image, M matched pairs, P pixels of the map, K drawn
pixels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from apps.segmentation.matching import assign
from apps.segmentation.models.head import MaskOutput
from apps.segmentation.models.kmax_layers import full
from apps.segmentation.models.kmax_sampling import draw_pixels, sampling_logits
from backbones.attention.attend import without_autocast

SMALLEST = 1e-5
"""What keeps divisions finite."""
FOUND, UNFOUND = 0.75, 0.25
"""Share of matched and of unmatched queries in the loss."""

PIXELS_AT_ONCE = 512
"""Pixels compared with all others at once: measured, their similarities should stay near the processor."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the losses leave open.

    Args:
        pixel_samples: Pixels of an image that are compared with one another; 0 for all.
        pixel_balance: Exponent of their choice by the size of segments.
        pixel_temperature: Divisor of their similarity.
        semantic_samples: Pixels that the auxiliary head is trained on; 0 for all.
        semantic_balance: Exponent of their choice by the frequency of classes.
        share_matching: Whether the layers take the final output's matching and similarities.
        ignore_void: Whether masks are free at void pixels.
        least_weight: Least weight of a query in the loss of classes.
    """

    pixel_samples: int = 4096
    pixel_balance: float = 1.5
    pixel_temperature: float = 0.3
    semantic_samples: int = 4096
    semantic_balance: float = 2.0
    share_matching: bool = True
    ignore_void: bool = True
    least_weight: float = 1e-5


class MapTargets(NamedTuple):
    """What one image should give, at the size of the mask map.

    Args:
        classes: Label of each segment, [S] int64.
        masks: [S, P] float, at most 1 in sum over segments.
    """

    classes: Tensor
    masks: Tensor

    @property
    def void(self) -> Tensor:
        """Pixels in no segment, [P] bool."""
        return self.masks.sum(0) < 1e-6

    @classmethod
    def of(cls, classes: Tensor, masks: Tensor) -> MapTargets:
        """From labels [S] and masks [S, ...] that may overlap: shared pixels are shared out evenly."""
        flat = full(masks.flatten(1))
        return cls(classes.long(), flat / flat.sum(0).clamp(min=1.0))


class Matched(NamedTuple):
    """Pairs of one image.

    Args:
        queries: [M] int64.
        segments: [M] int64.
        mask_similarity: Dice coefficient of each pair, [M].
        class_similarity: Probability of the segment's class in the query, [M].
        astray: Share of each query's mask that is on void pixels, [N].
    """

    queries: Tensor
    segments: Tensor
    mask_similarity: Tensor
    class_similarity: Tensor
    astray: Tensor


def mean_of_nonzero(losses: Tensor) -> Tensor:
    """Sum of a vector by the number of its entries that are not exactly 0 (1 at least)."""
    return losses.sum() / torch.count_nonzero(losses).clamp(min=1)


@torch.no_grad()
def match(output: MaskOutput, targets: Sequence[MapTargets], options: Options) -> list[Matched]:
    """Pair queries and segments by the product of their similarities, image by image.

    Args:
        output: Classes [B, N, C + 1] and masks [B, N, h, w]; P is h * w.
        targets: Of every image.
        options: Only ``ignore_void`` counts here.

    Source: Wang et al. 2021 (MaX-DeepLab), section 3.2.
    """
    similarities = []
    for classes, masks, target in zip(output.classes, output.masks, targets, strict=True):
        shares = full(masks.flatten(1)).softmax(0)  # N, P
        total, lost = shares.sum(1), shares @ target.void.to(shares.dtype)
        sums = ((total - lost if options.ignore_void else total)[:, None] + target.masks.sum(1)) / 2
        # Targets are 0 at void pixels, so what queries take there is in the sums alone.
        alike = shares @ target.masks.mT / (sums + SMALLEST)  # N, S
        named = full(classes).softmax(-1)[:, target.classes]
        similarities.append((alike, named, lost / (total + SMALLEST)))
    pairs = assign([alike * named for alike, named, _ in similarities], maximise=True)
    return [
        Matched(rows, columns, alike[rows, columns], named[rows, columns], astray)
        for (rows, columns), (alike, named, astray) in zip(pairs, similarities, strict=True)
    ]


def mask_losses(
    logits: Tensor, classes: Tensor, target: MapTargets, pairs: Matched, weights: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the queries of one image.

    Args:
        logits: Masks, [N, P] float32.
        classes: [N, C + 1] float32.
        target: Segments.
        pairs: Which query has which segment.
        weights: Factor of each class, no object last, [C + 1].
        options: Only ``ignore_void`` and ``least_weight`` count here.

    Returns:
        Scalars: of classes, of the Dice coefficient, and of the cross-entropy of pixels over queries.
    """
    log_shares = logits.log_softmax(0)
    masks = target.masks[pairs.segments]  # M, P
    found = log_shares[pairs.queries].exp()
    if options.ignore_void:
        found = found * ~target.void
    dice = 1 - (2 * (found * masks).sum(1) + 1) / (found.sum(1) + masks.sum(1) + 1)
    dice_loss = (dice * pairs.class_similarity).sum() * FOUND / len(logits)
    pixels = -(log_shares[pairs.queries] * masks).sum(0)
    class_loss = _class_loss(classes, target, pairs, weights, options.least_weight)
    return class_loss, dice_loss, mean_of_nonzero(pixels)


def _class_loss(classes: Tensor, target: MapTargets, pairs: Matched, weights: Tensor, least: float) -> Tensor:
    """Cross-entropy of queries, [N, C + 1]; an unmatched one counts as far as its mask is on void pixels."""
    labels = torch.full_like(pairs.astray, classes.shape[1] - 1, dtype=torch.long)
    labels[pairs.queries] = target.classes[pairs.segments]
    shares = torch.full_like(pairs.astray, UNFOUND)
    shares[pairs.queries] = FOUND
    trust = pairs.astray.index_copy(0, pairs.queries, pairs.mask_similarity).clamp(min=least)
    losses = F.cross_entropy(classes, labels, reduction="none")
    return mean_of_nonzero(losses * shares * trust * weights[labels])


def pixel_loss(
    features: Tensor, target: MapTargets, options: Options, generator: torch.Generator | None = None
) -> Tensor:
    """Pixels of a segment shall be alike, those of others not.

    The published loss is the cross-entropy of the similarities G of target pixels, each column divided by its sum, and
    the softmax of the similarities S of features. The sum over G needs S only as a product with the sums of features of
    each segment, and the softmax only its log-sum-exp: no matrix of K x K is ever made.

    Args:
        features: Of every pixel, of length 1, [F, P] float32.
        target: Segments.
        options: Samples, balance and temperature.
        generator: Where random numbers come from.

    Returns:
        Scalar.

    Source: Yu et al. 2022, appendix; Wang et al. 2021, section 3.3 (pixel-wise instance discrimination).
    """
    chosen = draw_pixels(sampling_logits(target.masks, options.pixel_balance), options.pixel_samples, generator)
    drawn = features[:, chosen]
    masks = target.masks[:, chosen]  # S, K
    columns = masks.sum(1) @ masks  # sum of every column of G, K
    sums = drawn @ masks.mT  # F, S
    alike = ((sums.mT @ drawn) * masks).sum(0) / options.pixel_temperature  # sum of G * S over every column
    normal: Tensor = _Normaliser.apply(drawn, options.pixel_temperature)
    return mean_of_nonzero((columns * normal - alike) / columns.clamp(min=1.0))


class _Normaliser(torch.autograd.Function):
    """Log-sum-exp of the similarities of every pixel with all, [F, K] to [K], some pixels at a time."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, temperature: float) -> Tensor:
        parts = (features / temperature).split(PIXELS_AT_ONCE, dim=1)
        normal = torch.cat([(part.mT @ features).logsumexp(1) for part in parts])
        ctx.save_for_backward(features, normal)
        ctx.temperature = temperature
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        features, normal = ctx.saved_tensors
        gradient = torch.zeros_like(features)
        with without_autocast(features):
            for start in range(0, features.shape[1], PIXELS_AT_ONCE):
                own = slice(start, start + PIXELS_AT_ONCE)
                part = features[:, own] / ctx.temperature
                shares = (part.mT @ features).sub_(normal[own, None]).exp_().mul_(above[own, None])
                gradient.addmm_(part, shares)  # as one of all
                gradient[:, own] += features @ shares.mT / ctx.temperature  # as the pixel itself
        return gradient, None


def semantic_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, options: Options, generator: torch.Generator | None = None
) -> Tensor:
    """Cross-entropy of the auxiliary head in one image.

    Args:
        logits: [C, P] or, with no object, [C + 1, P]; float32.
        labels: [P] int64, negative where void.
        weights: Factor of each class, no object last, [C + 1].
        options: Samples and balance; "the pixel's segment" is all pixels of its class here.
        generator: Where random numbers come from.

    Returns:
        Scalar.
    """
    if 0 < options.semantic_samples < len(labels):
        known = F.one_hot(labels.clamp(min=0), logits.shape[0]).mT * (labels >= 0)  # C, P
        likely = sampling_logits(known.to(logits.dtype), options.semantic_balance)
        chosen = draw_pixels(likely, options.semantic_samples, generator)
        logits, labels = logits[:, chosen], labels[chosen]
    losses = F.cross_entropy(logits.mT, labels, reduction="none", ignore_index=-1)
    return mean_of_nonzero(losses * weights[labels.clamp(min=0)])


class Terms(NamedTuple):
    """Losses of one output before their weights, means over images; scalars."""

    classes: Tensor
    dice: Tensor
    masks: Tensor
    pixels: Tensor


def output_losses(
    output: MaskOutput,
    targets: Sequence[MapTargets],
    pairs: Sequence[Matched],
    weights: Tensor,
    options: Options,
    generator: torch.Generator | None = None,
    labelled: Tensor | None = None,
) -> Terms:
    """Losses of one output.

    Args:
        output: Classes, masks and features of pixels, at the size of the targets.
        targets: Of every image.
        pairs: Of every image.
        weights: Factor of each class, no object last, [C + 1].
        options: What the losses leave open.
        generator: Where random numbers come from.
        labelled: Factor of the class loss of each image, [B]: 0 keeps images of which nothing is known out of it.
    """
    found = []
    for image, (target, pair) in enumerate(zip(targets, pairs, strict=True)):
        logits = full(output.masks[image].flatten(1))
        classes, dice, masks = mask_losses(logits, full(output.classes[image]), target, pair, weights, options)
        if labelled is not None:
            classes = classes * labelled[image]
        pixels = torch.zeros_like(classes)
        if output.features is not None:
            pixels = pixel_loss(full(output.features[image].flatten(1)), target, options, generator)
        found.append(torch.stack([classes, dice, masks, pixels]))
    return Terms(*torch.stack(found).mean(0))


def all_losses(
    output: MaskOutput,
    targets: Sequence[MapTargets],
    weights: Tensor,
    options: Options,
    generator: torch.Generator | None = None,
    labelled: Tensor | None = None,
) -> list[Terms]:
    """Losses of the final output and then of every layer, first layer first; arguments as for :func:`output_losses`."""
    dtype = torch.promote_types(output.masks.dtype, torch.float32)
    targets = [target._replace(masks=target.masks.to(dtype)) for target in targets]
    with without_autocast(output.masks):
        final = match(output, targets, options)
        terms = [output_losses(output, targets, final, weights, options, generator, labelled)]
        for layer in output.auxiliary:
            pairs = final if options.share_matching else match(layer, targets, options)
            terms.append(output_losses(layer, targets, pairs, weights, options, generator, labelled))
    return terms
