"""Adapters of mmsegmentation's heads of pixels and of its segmentor, from official hyper-parameters to our outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.confusion import ConfusionCounts, class_areas, class_scores, pixel_accuracy
from apps.segmentation.losses import Average, binary_cross_entropy, cross_entropy, dice, hardest, resize
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import FCNConfig, PixelHeadConfig, SegFormerConfig, UPerNetConfig
from apps.segmentation.windows import slide
from checkpoints.keymap import load_official
from checkpoints.official.segmentation import HEAD_KEYMAPS
from datamodules.segmentation.info import IGNORED
from tests.parity.case import Case
from tests.parity.recording import Tap, record

NORMS = {"BN": "batch", "BN2d": "batch", "SyncBN": "sync", "GN": "group"}
"""Official kinds of norms to ours."""

STRIDES = (4, 8, 16, 32, 64)


def shared_options(official: Mapping[str, Any]) -> dict[str, Any]:
    """What all heads have."""
    norm = official.get("norm_cfg")
    groups = {"groups": norm["num_groups"]} if norm and "num_groups" in norm else {}
    return {
        "channels": official["channels"],
        "dropout": official.get("dropout_ratio", 0.1),
        "norm": NORMS[norm["type"]] if norm else "none",
        "align_corners": official.get("align_corners", False),
        "auxiliary_weight": 0.0,
        **groups,
    }


def _upernet(official: Mapping[str, Any]) -> PixelHeadConfig:
    scales = tuple(official.get("pool_scales", (1, 2, 3, 6)))
    return UPerNetConfig(in_levels=_levels(official), pool_scales=scales, **shared_options(official))


def _segformer(official: Mapping[str, Any]) -> PixelHeadConfig:
    return SegFormerConfig(in_levels=_levels(official), **shared_options(official))


def _fcn(official: Mapping[str, Any]) -> PixelHeadConfig:
    return FCNConfig(
        in_levels=_levels(official),
        convs=official.get("num_convs", 2),
        kernel=official.get("kernel_size", 3),
        dilation=official.get("dilation", 1),
        joined=official.get("concat_input", True),
        **shared_options(official),
    )


CONFIGS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], PixelHeadConfig]]] = {
    "UPerHead": ("upernet", _upernet),
    "SegformerHead": ("segformer", _segformer),
    "FCNHead": ("fcn", _fcn),
}
"""Official type to our name and the configuration."""


def _levels(official: Mapping[str, Any]) -> tuple[int, ...]:
    wanted = official.get("in_index", -1)
    return (wanted,) if isinstance(wanted, int) else tuple(wanted)


def head_of(official: Mapping[str, Any], weights: Mapping[str, Tensor], channels: list[int]) -> DecodeHead:
    """The head with its weights, for levels of these channels."""
    name, configure = CONFIGS[official["type"]]
    classes = official.get("out_channels") or official["num_classes"]
    info = HeadInfo(channels=tuple(channels), strides=STRIDES[: len(channels)], classes=classes)
    head: DecodeHead = configure(official).build(info)  # type: ignore[attr-defined]
    load_official(head, weights, HEAD_KEYMAPS[name])
    return head.eval()


def losses(official: Mapping[str, Any], logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses of a head and its accuracy, by their official names; labels are [B, H, W]."""
    logits = resize(logits, (labels.shape[-2], labels.shape[-1]), official.get("align_corners", False))
    stated = official.get("loss_decode") or {"type": "CrossEntropyLoss"}
    found: dict[str, Tensor] = {}
    sampler = official.get("sampler")
    for one in stated if isinstance(stated, list) else [stated]:
        name, value = _loss(one, sampler, logits, labels)
        found[name] = found[name] + value if name in found else value
    return {**found, "acc_seg": accuracy(logits, labels)}


def _loss(
    official: Mapping[str, Any], sampler: Mapping[str, Any] | None, logits: Tensor, labels: Tensor
) -> tuple[str, Tensor]:
    weight, kind = official.get("loss_weight", 1.0), official["type"]
    if kind == "DiceLoss":
        value = dice(
            logits,
            labels,
            activation="sigmoid" if official.get("use_sigmoid", True) else "softmax",
            squared=not official.get("naive_dice", False),
            eps=official.get("eps", 1e-3),
        )
        return official.get("loss_name", "loss_dice"), value * weight
    if kind != "CrossEntropyLoss":
        raise ValueError(f"no such loss here: {kind}")
    average: Average = "valid" if official.get("avg_non_ignore", False) else "all"
    weights = official.get("class_weight")
    factors = None if weights is None else torch.tensor(weights)
    if official.get("use_sigmoid", False):
        value = binary_cross_entropy(logits, labels, weights=factors, average=average)
    else:
        value = _sampled(sampler, logits, labels, factors, average)
    return official.get("loss_name", "loss_ce"), value * weight


def _sampled(
    sampler: Mapping[str, Any] | None, logits: Tensor, labels: Tensor, weights: Tensor | None, average: Average
) -> Tensor:
    if sampler is None:
        return cross_entropy(logits, labels, weights=weights, average=average)
    options = {"threshold": sampler["thresh"], "least": sampler.get("min_kept", 100_000)}
    kept = hardest(logits, labels, **options)
    # the official divisor is that of all pixels, sampled or not
    share = (kept != IGNORED).sum() / ((labels != IGNORED).sum() if average == "valid" else labels.numel())
    return cross_entropy(logits, kept, weights=weights) * share


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of valid pixels whose class is right, [1]."""
    valid, eps = labels != IGNORED, torch.finfo(torch.float32).eps
    right = ((logits.argmax(1) == labels) & valid).sum()
    return ((right + eps) * 100.0 / (valid.sum() + eps)).reshape(1)


def levels_of(case: Case) -> list[Tensor]:
    count = sum(name.startswith("feat") for name in case.inputs)
    return [case.inputs[f"feat{index}"] for index in range(count)]


def pixel_head(case: Case) -> dict[str, Tensor]:
    """Logits, losses, and the gradient of their sum with respect to the levels."""
    official, labels = case.config, case.inputs["label"]
    levels = [level.clone().requires_grad_() for level in levels_of(case)]
    head = head_of(official, case.weights, [level.shape[1] for level in levels])
    size = (labels.shape[-2], labels.shape[-1])
    with record(head, {"features_before_classifier": Tap("classifier", before=True)}) as seen:
        output = head(levels, size)
    parts = losses(official, output.logits, labels)
    total = torch.stack([value for name, value in parts.items() if name.startswith("loss")]).sum()
    found = torch.autograd.grad(total, levels, allow_unused=True)
    gradients = {f"grad.feat{i}": g for i, g in enumerate(found) if g is not None}
    return {
        **seen,
        "logits": output.logits,
        "predict_logits_argmax": head.class_scores(output, size).argmax(1).to(torch.uint8),
        **{f"loss.{name}": value for name, value in parts.items()},
        **gradients,
    }


class Trunk(nn.Module):
    """The backbone of segmentor cases: convolutions with bias and ReLU, a level after each.

    Args:
        weights: Its state dict, ``st.<number>.weight`` and ``st.<number>.bias``.
        strides: Of the convolutions.
    """

    def __init__(self, weights: Mapping[str, Tensor], strides: Sequence[int]) -> None:
        super().__init__()
        self.weights, self.strides = weights, strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images to levels, fine to coarse."""
        levels = [images]
        for number, stride in enumerate(self.strides):
            weight, bias = (self.weights[f"st.{number}.{kind}"] for kind in ("weight", "bias"))
            levels.append(F.relu(F.conv2d(levels[-1], weight, bias, stride=stride, padding=weight.shape[-1] // 2)))
        return levels[1:]


def _trunk(case: Case) -> tuple[Trunk, list[int]]:
    """The backbone that the case describes in words, and channels of its levels."""
    weights = _part(case, "backbone")
    words = re.search(r"strides ([\d,\s]+)", case.meta.get("backbone", ""))
    count = sum(name.endswith(".weight") for name in weights)
    strides = [int(number) for number in re.findall(r"\d+", words[1])] if words else [4] + [2] * (count - 1)
    return Trunk(weights, strides), [weights[f"st.{number}.weight"].shape[0] for number in range(count)]


def _part(case: Case, name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in case.weights.items() if key.startswith(prefix)}


def segmentor(case: Case) -> dict[str, Tensor]:
    """Logits of whole images and of windows, losses of both heads, and scores of the classes found in windows."""
    images, labels = case.inputs["image"], case.inputs["label"]
    trunk, channels = _trunk(case)
    decode = case.meta.get("head") or case.meta["decode_head"]
    head = head_of(decode, _part(case, "decode_head"), channels)
    size = (labels.shape[-2], labels.shape[-1])

    def scores(seen: Tensor) -> Tensor:
        area = (seen.shape[-2], seen.shape[-1])
        return head.class_scores(head(trunk(seen), area), area)

    with torch.no_grad():
        windows = slide(scores, images, case.meta["crop"], case.meta["stride"])
        levels = trunk(images)
        outputs = {"whole_logits": scores(images), "slide_logits": windows}
        outputs |= {f"loss.decode.{k}": v for k, v in losses(decode, head(levels, size).logits, labels).items()}
        if auxiliary := case.meta.get("auxiliary"):
            second = head_of(auxiliary, _part(case, "auxiliary_head"), channels)
            outputs |= {f"loss.aux.{k}": v for k, v in losses(auxiliary, second(levels, size).logits, labels).items()}
    prediction = windows.argmax(1)
    return {
        **{name: value[0] for name, value in outputs.items() if name.endswith("_logits")},
        **{name: value for name, value in outputs.items() if not name.endswith("_logits")},
        "slide_pred": prediction.to(torch.uint8),
        **_scores(prediction, labels, windows.shape[1]),
    }


def _scores(prediction: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """Areas of the classes and their scores, official names; -1 for scores that divide by nothing."""
    counts = ConfusionCounts(classes)
    counts.update(prediction, labels)
    areas = class_areas(counts.compute())
    scores = class_scores(areas)
    names = {"IoU": scores.iou, "Acc": scores.accuracy, "Fscore": scores.fscore}
    names |= {"Precision": scores.precision, "Recall": scores.recall, "aAcc": pixel_accuracy(areas)}
    found = {"intersect": areas.intersection, "union": areas.union, "pred": areas.predicted, "label": areas.labelled}
    return {
        **{f"area.{name}": value.float() for name, value in found.items()},
        **{f"metric.{name}": value.float().nan_to_num(nan=-1.0) for name, value in names.items()},
    }
