"""Losses of mmsegmentation's heads of pixels from official hyper-parameters, by our losses.

Shape legend: B batch, C channels of logits, H x W labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.segmentation.losses import (
    Probabilities,
    activated,
    binary_cross_entropy,
    cross_entropy,
    dice,
    hardest,
    resize,
)
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ConfigError
from tests.parity.adapters import refuse_unknown

SHARED_KEYS = ("type", "use_sigmoid", "reduction", "loss_weight", "loss_name")
CROSS_ENTROPY_KEYS = (*SHARED_KEYS, "use_mask", "class_weight", "avg_non_ignore")
DICE_KEYS = (*SHARED_KEYS, "activate", "naive_dice", "ignore_index", "eps")
SAMPLER_KEYS = ("type", "thresh", "min_kept")


class Pixels(NamedTuple):
    """What losses are taken of.

    Attributes:
        logits: [B, C, H, W].
        stated: Labels as they were given, [B, H, W] int64.
        known: The same with 255 for pixels that the head ignores.
        kept: The same with 255 for those that the sampler passes over, too.
        sampled: Whether there is a sampler.
    """

    logits: Tensor
    stated: Tensor
    known: Tensor
    kept: Tensor
    sampled: bool


def losses(official: Mapping[str, Any], logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses of a head and its accuracy, by their official names; labels are [B, H, W].

    Raises:
        ConfigError: An option that is unknown or cannot be expressed.
    """
    labels = labels.long()
    logits = resize(logits, (labels.shape[-2], labels.shape[-1]), official.get("align_corners", False))
    stated = official.get("loss_decode") or {"type": "CrossEntropyLoss"}
    parts = [stated] if isinstance(stated, Mapping) else list(stated)
    known, sampler = _known(official, labels), official.get("sampler")
    kept = known if sampler is None else _kept(sampler, parts, logits, known)
    pixels = Pixels(logits, labels, known, kept, sampler is not None)
    found: dict[str, Tensor] = {}
    for part in parts:
        kind = part["type"]
        if kind not in LOSSES:
            raise ConfigError(f"no such loss here: {kind}", "loss_decode.type", f"Known: {', '.join(LOSSES)}")
        default, loss = LOSSES[kind]
        name, value = part.get("loss_name", default), loss(part, pixels) * part.get("loss_weight", 1.0)
        found[name] = found[name] + value if name in found else value
    return {**found, "acc_seg": accuracy(logits, known)}


def _known(official: Mapping[str, Any], labels: Tensor) -> Tensor:
    ignored = official.get("ignore_index", IGNORED)
    if ignored is None:
        raise ConfigError("ignore_index=None is for masked losses, which are not here", "ignore_index")
    return labels.masked_fill((labels == ignored) | (labels < 0), IGNORED)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of valid pixels whose channel is right, [1]; a single channel is that of label 0 here."""
    valid, eps = labels != IGNORED, torch.finfo(torch.float32).eps
    right = ((logits.argmax(1) == labels) & valid).sum()
    return ((right + eps) * 100.0 / (valid.sum() + eps)).reshape(1)


# -- sampling ---------------------------------------------------------------------------------------------------------


def _kept(sampler: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], logits: Tensor, known: Tensor) -> Tensor:
    if sampler["type"] != "OHEMPixelSampler":
        raise ConfigError(f"no such sampler here: {sampler['type']}", "sampler.type", "Known: OHEMPixelSampler")
    refuse_unknown(sampler, SAMPLER_KEYS, "sampler")
    threshold, least = sampler.get("thresh"), sampler.get("min_kept", 100_000)
    if threshold is not None:
        return hardest(logits, known, threshold=threshold, least=least)
    costs = torch.stack([_costs(part, logits.detach(), known) for part in parts]).sum(0)
    order = costs.masked_fill(known == IGNORED, -torch.inf).flatten().argsort(descending=True)
    places = order[: least * len(known)]
    kept = torch.full_like(known, IGNORED).flatten()
    kept[places] = known.flatten()[places]
    return kept.view_as(known)


def _costs(part: Mapping[str, Any], logits: Tensor, known: Tensor) -> Tensor:
    """Weighted loss of every pixel, by which a sampler without a threshold chooses, [B, H, W]."""
    single = part.get("use_sigmoid", False)
    if part["type"] != "CrossEntropyLoss" or (single and logits.shape[1] > 1):
        raise ConfigError(f"{part['type']} has no loss per pixel for a sampler to choose by", "sampler", "Set thresh")
    weights = _class_weights(part)
    if single:
        costs = F.binary_cross_entropy_with_logits(
            logits[:, 0], (known == 1).to(logits), pos_weight=weights, reduction="none"
        )
    else:
        costs = F.cross_entropy(logits, known, weights, ignore_index=IGNORED, reduction="none")
    return costs * float(part.get("loss_weight", 1.0))


# -- cross entropy ----------------------------------------------------------------------------------------------------


def _cross_entropy(part: Mapping[str, Any], pixels: Pixels) -> Tensor:
    refuse_unknown(part, CROSS_ENTROPY_KEYS, "loss_decode")
    if part.get("use_mask", False):
        raise ConfigError("masked cross entropy is not here", "loss_decode.use_mask", "Set it to false")
    total, count = (_binary if part.get("use_sigmoid", False) else _softmax)(part, pixels)
    return total / (count + torch.finfo(torch.float32).eps) if _is_mean(part) else total


def _softmax(part: Mapping[str, Any], pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Sum over the pixels kept, and what makes a mean of it: the weights of all pixels, kept or not."""
    weights = _class_weights(part)
    shares = _shares(pixels.stated, weights)
    mean = cross_entropy(pixels.logits, pixels.kept, weights=weights)
    valid = pixels.known != IGNORED if part.get("avg_non_ignore", False) else torch.ones_like(pixels.known)
    return mean * (shares * (pixels.kept != IGNORED)).sum(), (shares * valid).sum()


def _shares(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Weight of each pixel, [B, H, W]; 0 for labels that are no class, which the official code fails at."""
    if weights is None:
        return torch.ones(labels.shape)
    classes = len(weights)
    inside = (labels >= -classes) & (labels < classes)  # it counts negative ones from the end
    return weights[labels.masked_fill(~inside, 0)] * inside


def _binary(part: Mapping[str, Any], pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Sum over channels of the pixels kept, and the number of all values, or of all but the ignored ones."""
    mean = binary_cross_entropy(pixels.logits, pixels.kept, weights=_class_weights(part), average="all")
    count = torch.tensor(pixels.logits.numel())
    if part.get("avg_non_ignore", False):
        valid = (pixels.known != IGNORED).sum()
        return mean * count, valid * pixels.logits.shape[1]
    return mean * count, count


def _class_weights(part: Mapping[str, Any]) -> Tensor | None:
    weights = part.get("class_weight")
    if isinstance(weights, str):
        raise ConfigError("files of class weights are not read here", "loss_decode.class_weight", "State the numbers")
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)


def _is_mean(part: Mapping[str, Any]) -> bool:
    reduction = part.get("reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction={reduction} gives a map, not a loss", "loss_decode", "Use mean or sum")
    return bool(reduction == "mean")


# -- Dice -------------------------------------------------------------------------------------------------------------


def _dice(part: Mapping[str, Any], pixels: Pixels) -> Tensor:
    """The loss of each image, averaged or summed; it knows neither what the head ignores nor negative labels."""
    refuse_unknown(part, DICE_KEYS, "loss_decode")
    if pixels.sampled:
        raise ConfigError("DiceLoss takes no weights of pixels, as a sampler gives them", "sampler", "Leave it out")
    logits, channels = pixels.logits, pixels.logits.shape[1]
    labels = pixels.stated.clamp(0, channels)  # the last number is of no channel
    activation: Probabilities = "sigmoid" if part.get("use_sigmoid", True) else "softmax"
    activation = activation if part.get("activate", True) else "none"
    dropped = part.get("ignore_index", IGNORED)  # a channel, not a label
    if dropped is not None and dropped in range(channels):
        others = torch.arange(channels) != dropped
        logits, activation = activated(logits, activation) * others[:, None, None], "none"
        labels = labels.masked_fill(labels == dropped, channels)
    if channels == 1:
        labels = 1 - labels  # its single channel is that of label 0, ours that of label 1
    options = {"squared": not part.get("naive_dice", False), "eps": part.get("eps", 1e-3)}
    each = torch.stack(
        [dice(logits[i : i + 1], labels[i : i + 1], activation=activation, **options) for i in range(len(labels))]
    )
    return each.mean() if _is_mean(part) else each.sum()


LOSSES: Mapping[str, tuple[str, Callable[[Mapping[str, Any], Pixels], Tensor]]] = {
    "CrossEntropyLoss": ("loss_ce", _cross_entropy),
    "DiceLoss": ("loss_dice", _dice),
}
"""Official type to the name of its value and the loss before its weight."""
