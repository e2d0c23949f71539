"""Adapters of mmsegmentation's heads of pixels and of its segmentor, from official hyper-parameters to our outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.confusion import ConfusionCounts, class_areas, class_scores, pixel_accuracy
from apps.segmentation.losses import resize
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.head import Size
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import FCNConfig, PixelHeadConfig, SegFormerConfig, UPerNetConfig
from apps.segmentation.windows import slide
from checkpoints.keymap import load_official
from checkpoints.official.segmentation import HEAD_KEYMAPS
from graftwork.errors import ConfigError
from tests.parity.adapters import refuse_unknown
from tests.parity.adapters.segmentation_pixel_losses import losses
from tests.parity.case import Case
from tests.parity.recording import Tap, record

STRIDES = (4, 8, 16, 32, 64)

SHARED_KEYS = (
    *("type", "in_channels", "in_index", "input_transform", "channels", "num_classes", "out_channels", "threshold"),
    *("dropout_ratio", "conv_cfg", "norm_cfg", "act_cfg", "align_corners"),
    *("ignore_index", "loss_decode", "sampler"),
    "init_cfg",  # weights are given
)

NORMS = {"BN": "batch", "BN2d": "batch", "SyncBN": "sync", "GN": "group", "IN": "group", "IN2d": "group"}
"""Official kinds of norms to ours; an instance norm is a group norm with a group for each channel."""

NORM_KEYS = ("type", "requires_grad", "eps", "momentum", "affine", "track_running_stats")

ACTIVATIONS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "GELU": "gelu", "SiLU": "silu", "Swish": "silu"}
"""Official kinds of activations to ours."""


def shared_options(official: Mapping[str, Any]) -> dict[str, Any]:
    """What all heads have."""
    if (official.get("conv_cfg") or {"type": "Conv2d"}) not in ({"type": "Conv2d"}, {"type": "Conv"}):
        raise ConfigError(f"no such convolution here: {official['conv_cfg']}", "conv_cfg", "Use Conv2d")
    return {
        "channels": official["channels"],
        "dropout": official.get("dropout_ratio", 0.1),
        "activation": _activation(official)[0],
        "align_corners": official.get("align_corners", False),
        "auxiliary_weight": 0.0,
        "binary_threshold": _threshold(official),
        **_norm(official),
    }


def _norm(official: Mapping[str, Any]) -> dict[str, Any]:
    norm = official.get("norm_cfg")
    if norm is None:
        return {"norm": "none"}
    kind = norm["type"]
    if kind not in NORMS:
        raise ConfigError(f"no such norm here: {kind}", "norm_cfg.type", f"Known: {', '.join(NORMS)}")
    grouped, single = kind == "GN", kind.startswith("IN")
    refuse_unknown(norm, (*NORM_KEYS, "num_groups") if grouped else NORM_KEYS, "norm_cfg")
    if norm.get("track_running_stats", not single) == single:
        raise ConfigError(f"{kind} is here with its default alone", "norm_cfg.track_running_stats", "Leave it out")
    options = {"norm": NORMS[kind], "norm_eps": norm.get("eps", 1e-5), "norm_momentum": norm.get("momentum", 0.1)}
    return {**options, "groups": norm["num_groups"] if grouped else official["channels"]}


def _is_affine(official: Mapping[str, Any]) -> bool:
    """Whether norms have weights."""
    norm = official.get("norm_cfg") or {"type": ""}
    return bool(norm.get("affine", not norm["type"].startswith("IN")))


def _activation(official: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our name of the activation, and its own options."""
    stated = official.get("act_cfg", {"type": "ReLU"})
    if stated is None:
        return "none", {}
    kind = stated["type"]
    if kind not in ACTIVATIONS:
        raise ConfigError(f"no such activation here: {kind}", "act_cfg.type", f"Known: {', '.join(ACTIVATIONS)}")
    own = ("negative_slope",) if kind == "LeakyReLU" else ()
    refuse_unknown(stated, ("type", "inplace", *own), "act_cfg")
    return ACTIVATIONS[kind], {name: stated[name] for name in own if name in stated}


def _outputs(official: Mapping[str, Any]) -> int:
    """Channels of the logits."""
    return int(official.get("out_channels") or official["num_classes"])


def _threshold(official: Mapping[str, Any]) -> float:
    """Of the probability of class 1, where there is a single logit."""
    if _outputs(official) > 1:
        return 0.0
    stated = official.get("threshold")
    return 0.3 if stated is None else float(stated)


def _upernet(official: Mapping[str, Any]) -> PixelHeadConfig:
    refuse_unknown(official, (*SHARED_KEYS, "pool_scales"), "UPerHead")
    scales = tuple(official.get("pool_scales", (1, 2, 3, 6)))
    return UPerNetConfig(in_levels=_levels(official), pool_scales=scales, **shared_options(official))


def _segformer(official: Mapping[str, Any]) -> PixelHeadConfig:
    refuse_unknown(official, (*SHARED_KEYS, "interpolate_mode"), "SegformerHead")
    mode = official.get("interpolate_mode", "bilinear")
    if mode not in ("bilinear", "bicubic"):  # others take no align_corners, which it always gives
        raise ConfigError(f"interpolate_mode={mode} fails in SegformerHead", mend="Use bilinear or bicubic")
    return SegFormerConfig(in_levels=_levels(official), interpolation=mode, **shared_options(official))


def _fcn(official: Mapping[str, Any]) -> PixelHeadConfig:
    refuse_unknown(official, (*SHARED_KEYS, "num_convs", "kernel_size", "concat_input", "dilation"), "FCNHead")
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
    """The head with its weights, for levels of these channels.

    Raises:
        ConfigError: An option that is unknown or cannot be expressed.
    """
    name, configure = CONFIGS[official["type"]]
    info = HeadInfo(channels=tuple(channels), strides=STRIDES[: len(channels)], classes=max(2, _outputs(official)))
    head: DecodeHead = configure(official).build(info)  # type: ignore[attr-defined]
    for layer in head.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.negative_slope = _activation(official)[1].get("negative_slope", layer.negative_slope)
    weights = {key.replace(".in.", ".gn."): value for key, value in weights.items()}
    if not _is_affine(official):  # ours are 1 and 0 then
        weights |= {k: v for k, v in head.state_dict().items() if k.endswith((".norm.weight", ".norm.bias"))}
    load_official(head, weights, HEAD_KEYMAPS[name])
    return head.eval()


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
        "predict_logits_argmax": _resized(head, output.logits, size).argmax(1).to(torch.uint8),
        **{f"loss.{name}": value for name, value in parts.items()},
        **gradients,
    }


def _resized(head: DecodeHead, logits: Tensor, size: Size) -> Tensor:
    """What the classifier gave, at a size."""
    return resize(logits, size, head.config.align_corners)


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
        return _resized(head, head(trunk(seen), area).logits, area)

    with torch.no_grad():
        windows = slide(scores, images, case.meta["crop"], case.meta["stride"])
        levels = trunk(images)
        outputs = {"whole_logits": scores(images), "slide_logits": windows}
        outputs |= {f"loss.decode.{k}": v for k, v in losses(decode, head(levels, size).logits, labels).items()}
        if auxiliary := case.meta.get("auxiliary"):
            second = head_of(auxiliary, _part(case, "auxiliary_head"), channels)
            outputs |= {f"loss.aux.{k}": v for k, v in losses(auxiliary, second(levels, size).logits, labels).items()}
    prediction = head.per_class(windows).argmax(1)
    return {
        **{name: value[0] for name, value in outputs.items() if name.endswith("_logits")},
        **{name: value for name, value in outputs.items() if not name.endswith("_logits")},
        "slide_pred": prediction.to(torch.uint8),
        **_scores(prediction, labels, decode["num_classes"]),
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
