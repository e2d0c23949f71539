"""Adapters of heads of pixels: official options count, by formulas and beside mmsegmentation; unknown ones fail."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import ConfigError
from tests.parity.adapters.segmentation_pixel import head_of, pixel_head, segmentor
from tests.parity.adapters.segmentation_pixel_losses import losses
from tests.parity.case import Case

CHANNELS = (6, 8, 10, 12)
SIZES = ((12, 10), (6, 5), (3, 3), (2, 2))
LABELS = (2, 45, 38)
WEIGHTS = [0.5, 1.0, 2.0, 0.7]
FCN: dict[str, Any] = {
    "type": "FCNHead",
    "in_channels": 6,
    "in_index": 0,
    "channels": 8,
    "num_convs": 1,
    "concat_input": False,
    "num_classes": 4,
    "norm_cfg": {"type": "BN"},
}
PYRAMID = {"in_channels": list(CHANNELS), "in_index": [0, 1, 2, 3], "concat_input": None, "num_convs": None}
UPER, SEGFORMER = {"type": "UPerHead", **PYRAMID}, {"type": "SegformerHead", **PYRAMID}


def official_of(options: dict[str, Any]) -> dict[str, Any]:
    """:data:`FCN` with other options; without those that are None, but for the activation."""
    return {key: value for key, value in {**FCN, **options}.items() if value is not None or key == "act_cfg"}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(classes: int = 4, ignored: int | None = 255) -> tuple[Tensor, Tensor]:
    """Logits and labels of one size, some of them ignored."""
    labels = torch.randint(0, max(classes, 2), LABELS, generator=torch.Generator().manual_seed(1))
    if ignored is not None:
        labels[:, :9] = ignored
    return random(LABELS[0], classes, *LABELS[1:]) * 2, labels


def fcn_weights(official: dict[str, Any], norm: str) -> dict[str, Tensor]:
    """Of :data:`FCN` under official names."""
    weights = {"convs.0.conv.weight": random(8, 6, 3, 3, seed=2)}
    outputs = official.get("out_channels") or official["num_classes"]
    weights |= {"conv_seg.weight": random(outputs, 8, 1, 1, seed=3), "conv_seg.bias": random(outputs, seed=4)}
    if norm:
        weights |= {f"convs.0.{norm}.weight": random(8, seed=5), f"convs.0.{norm}.bias": random(8, seed=6)}
    if norm == "bn":
        mean, variance = random(8, seed=7), random(8, seed=8).abs() * 1e-3
        weights |= {"convs.0.bn.running_mean": mean, "convs.0.bn.running_var": variance}
        weights["convs.0.bn.num_batches_tracked"] = torch.tensor(7)
    return weights


# -- heads by their formulas ------------------------------------------------------------------------------------------


def features(official: dict[str, Any], norm: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Ours before the classifier, the convolution by torch, and the weights."""
    weights, level = fcn_weights(official, norm), random(2, 6, 9, 7)
    head = head_of(official, weights, [6])
    with torch.no_grad():
        return head.fuse([level]), F.conv2d(level, weights["convs.0.conv.weight"], padding=1), weights


def test_norms_take_their_official_options() -> None:
    found, mixed, weights = features({**FCN, "norm_cfg": {"type": "BN", "eps": 0.1, "momentum": 0.01}}, "bn")
    mean, variance, weight, bias = (
        weights[f"convs.0.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    expected = F.relu(F.batch_norm(mixed, mean, variance, weight, bias, eps=0.1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    head = head_of({**FCN, "norm_cfg": {"type": "BN", "momentum": 0.01}}, fcn_weights(FCN, "bn"), [6])
    assert [m.momentum for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)] == [0.01]
    found, mixed, _ = features({**FCN, "norm_cfg": {"type": "IN", "eps": 0.1}}, "")
    torch.testing.assert_close(found, F.relu(F.instance_norm(mixed, eps=0.1)), rtol=1e-4, atol=1e-5)
    found, mixed, weights = features({**FCN, "norm_cfg": {"type": "IN", "affine": True}}, "in")
    affine = (weights["convs.0.in.weight"], weights["convs.0.in.bias"])
    torch.testing.assert_close(found, F.relu(F.instance_norm(mixed, None, None, *affine)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stated", "activation"),
    [
        ({"type": "GELU"}, F.gelu),
        ({"type": "SiLU", "inplace": True}, F.silu),
        ({"type": "LeakyReLU", "negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
        (None, lambda x: x),
    ],
)
def test_activations_are_the_official_ones(stated: Any, activation: Any) -> None:
    found, mixed, weights = features({**FCN, "norm_cfg": {"type": "GN", "num_groups": 2}, "act_cfg": stated}, "gn")
    normed = F.group_norm(mixed, 2, weights["convs.0.gn.weight"], weights["convs.0.gn.bias"])
    torch.testing.assert_close(found, activation(normed), rtol=1e-4, atol=1e-5)


# -- losses by their formulas -----------------------------------------------------------------------------------------


def loss(logits: Tensor, labels: Tensor, *stated: dict[str, Any], **official: Any) -> dict[str, Tensor]:
    return losses({**FCN, "loss_decode": list(stated), **official}, logits, labels)


def test_another_label_is_ignored() -> None:
    logits, labels = pixels(ignored=0)
    found = loss(logits, labels, {"type": "CrossEntropyLoss", "avg_non_ignore": True}, ignore_index=0)
    torch.testing.assert_close(found["loss_ce"], F.cross_entropy(logits, labels, ignore_index=0))
    valid = labels != 0
    torch.testing.assert_close(found["acc_seg"], (logits.argmax(1) == labels)[valid].float().mean()[None] * 100)
    weighted = loss(logits, labels, {"type": "CrossEntropyLoss", "class_weight": WEIGHTS}, ignore_index=0)
    every = torch.tensor(WEIGHTS)[labels].sum()  # the weight of the ignored label counts
    total = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=0, reduction="sum")
    torch.testing.assert_close(weighted["loss_ce"], total / every)


def test_sums_are_not_divided() -> None:
    logits, labels = pixels()
    stated = {"type": "CrossEntropyLoss", "reduction": "sum", "class_weight": WEIGHTS, "loss_weight": 0.5}
    expected = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=255, reduction="sum") / 2
    torch.testing.assert_close(loss(logits, labels, stated)["loss_ce"], expected)
    binary = loss(logits, labels, {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum"})
    mean = loss(logits, labels, {"type": "CrossEntropyLoss", "use_sigmoid": True})
    torch.testing.assert_close(binary["loss_ce"], mean["loss_ce"] * logits.numel())


def test_hard_pixels_are_divided_by_the_weights_of_all() -> None:
    logits, labels = pixels()
    weights, valid = torch.tensor(WEIGHTS), labels != 255
    costs = F.cross_entropy(logits, labels, weights, ignore_index=255, reduction="none")
    stated = {"type": "CrossEntropyLoss", "class_weight": WEIGHTS, "avg_non_ignore": True}
    divisor = weights[labels[valid]].sum()
    chance = logits.softmax(1).gather(1, labels.masked_fill(~valid, 0)[:, None])[:, 0]
    sampler: dict[str, Any] = {"type": "OHEMPixelSampler", "thresh": 0.2, "min_kept": 20}
    hard = valid & (chance < max(0.2, float(chance[valid].sort().values[40])))
    found = loss(logits, labels, stated, sampler=sampler)["loss_ce"]
    torch.testing.assert_close(found, costs[hard].sum() / divisor)
    del sampler["thresh"]  # the costliest 20 of an image on average
    found = loss(logits, labels, stated, sampler=sampler)["loss_ce"]
    torch.testing.assert_close(found, costs[valid].sort().values[-40:].sum() / divisor)


def literal_dice(p: Tensor, t: Tensor, eps: float = 1e-3) -> Tensor:
    p, t = p.flatten(1), t.flatten(1)
    return 1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + (t * t).sum(1) + 2 * eps)


def test_dice_takes_its_official_options() -> None:
    logits, labels = pixels()
    chances, t = logits.sigmoid(), (labels[:, None] == torch.arange(4)[:, None, None]).float()
    found = loss(chances, labels, {"type": "DiceLoss", "activate": False, "reduction": "sum"})
    torch.testing.assert_close(found["loss_dice"], literal_dice(chances, t).sum())
    found = loss(logits, labels, {"type": "DiceLoss", "ignore_index": 1, "use_sigmoid": False})
    kept, chances = [0, 2, 3], logits.softmax(1)
    torch.testing.assert_close(found["loss_dice"], literal_dice(chances[:, kept], t[:, kept]).mean())
    found = loss(logits, labels, {"type": "DiceLoss"}, ignore_index=0)  # it knows nothing of the head's
    torch.testing.assert_close(found["loss_dice"], literal_dice(logits.sigmoid(), t).mean())


def test_a_single_channel_of_dice_is_that_of_label_zero() -> None:
    logits, labels = pixels(1)
    found = loss(logits, labels, {"type": "DiceLoss"}, num_classes=2, out_channels=1)
    torch.testing.assert_close(
        found["loss_dice"], literal_dice(logits.sigmoid(), (labels == 0)[:, None].float()).mean()
    )


# -- a single logit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_a_single_logit_is_compared_with_the_threshold(threshold: float | None) -> None:
    binary = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    official = {**FCN, "num_classes": 2, "out_channels": 1, "loss_decode": binary}
    official |= {} if threshold is None else {"threshold": threshold}
    weights = {f"weights.decode_head.{key}": value for key, value in fcn_weights(official, "bn").items()}
    weights |= {"weights.backbone.st.0.weight": random(6, 3, 3, 3), "weights.backbone.st.0.bias": random(6)}
    record = {"decode_head": official, "crop": [24, 24], "stride": [16, 16], "backbone": "strides 4"}
    case = Case(Path("made.json"), record)
    labels = torch.randint(0, 2, (1, 40, 36), generator=torch.Generator().manual_seed(1))
    case.tensors = {**weights, "input.image": random(1, 3, 40, 36), "input.label": labels}
    outputs = segmentor(case)
    assert outputs["slide_logits"].shape == (1, 40, 36)
    expected = outputs["slide_logits"].sigmoid() > (threshold or 0.3)
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(outputs["slide_pred"], expected.to(torch.uint8))
    assert len(outputs["metric.IoU"]) == 2
    assert int(outputs["area.intersect"][1]) == int((expected & (labels == 1)).sum())


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_conv": 2}, "FCNHead: unknown option 'num_conv'; did you mean num_convs"),
        ({"norm_cfg": {"type": "BN", "epsilon": 1}}, "norm_cfg: unknown option 'epsilon'"),
        ({"norm_cfg": {"type": "BN", "num_groups": 1}}, "norm_cfg: unknown option 'num_groups'"),
        ({"norm_cfg": {"type": "BN", "track_running_stats": False}}, "norm_cfg.track_running_stats"),
        ({"norm_cfg": {"type": "LN"}}, "no such norm here: LN"),
        ({"act_cfg": {"type": "PReLU"}}, "no such activation here: PReLU"),
        ({"act_cfg": {"type": "GELU", "approximate": "tanh"}}, "act_cfg: unknown option 'approximate'"),
        ({"conv_cfg": {"type": "DCN"}}, "no such convolution here"),
        ({**SEGFORMER, "interpolate_mode": "nearest"}, "interpolate_mode=nearest"),
        ({**UPER, "num_convs": 2}, "UPerHead: unknown option 'num_convs'"),
    ],
)
def test_options_of_heads_that_would_be_passed_over(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        head_of(official_of(options), {}, [6])


@pytest.mark.parametrize(
    ("stated", "options", "message"),
    [
        ({"type": "FocalLoss"}, {}, "no such loss here: FocalLoss"),
        ({"type": "CrossEntropyLoss", "smoothing": 0.1}, {}, "loss_decode: unknown option 'smoothing'"),
        ({"type": "CrossEntropyLoss", "use_mask": True}, {}, "use_mask"),
        ({"type": "CrossEntropyLoss", "class_weight": "weights.npy"}, {}, "class_weight: files"),
        ({"type": "CrossEntropyLoss", "reduction": "none"}, {}, "reduction=none gives a map"),
        ({"type": "CrossEntropyLoss"}, {"ignore_index": None}, "ignore_index=None"),
        ({"type": "DiceLoss", "smooth": 1}, {}, "loss_decode: unknown option 'smooth'"),
        ({"type": "DiceLoss"}, {"sampler": {"type": "OHEMPixelSampler", "thresh": 0.7}}, "DiceLoss takes no weights"),
        ({"type": "DiceLoss"}, {"sampler": {"type": "OHEMPixelSampler"}}, "DiceLoss has no loss per pixel.*thresh"),
        ({"type": "CrossEntropyLoss"}, {"sampler": {"type": "Random"}}, "no such sampler here: Random"),
        (
            {"type": "CrossEntropyLoss"},
            {"sampler": {"type": "OHEMPixelSampler", "treshold": 1}},
            "sampler: unknown option 'treshold'",
        ),
    ],
)
def test_options_of_losses_that_would_be_passed_over(stated: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(*pixels(), stated, **options)


# -- beside mmsegmentation --------------------------------------------------------------------------------------------

CE, DICE = {"type": "CrossEntropyLoss"}, {"type": "DiceLoss"}
OHEM = {"type": "OHEMPixelSampler", "min_kept": 300}
BINARY = {"num_classes": 2, "out_channels": 1}
OFFICIAL: dict[str, dict[str, Any]] = {
    "joined": {"num_convs": 2, "concat_input": True, "act_cfg": {"type": "LeakyReLU", "negative_slope": 0.2}},
    "resized": {"in_channels": [6, 10], "in_index": [0, 2], "input_transform": "resize_concat"},
    "norms": {**UPER, "norm_cfg": {"type": "BN", "eps": 0.01, "momentum": 0.01}, "align_corners": True},
    "groups": {**UPER, "norm_cfg": {"type": "GN", "num_groups": 2, "eps": 0.01}, "act_cfg": {"type": "GELU"}},
    "bare": {**SEGFORMER, "norm_cfg": None, "act_cfg": None},
    "bicubic": {**SEGFORMER, "interpolate_mode": "bicubic", "act_cfg": {"type": "SiLU"}},
    "instances": {**SEGFORMER, "norm_cfg": {"type": "IN", "eps": 0.01}},
    "affine instances": {"norm_cfg": {"type": "IN", "affine": True}},
    "plain batch norm": {"norm_cfg": {"type": "BN", "affine": False}},
    "ignored class": {"ignore_index": 1, "loss_decode": [{**CE, "class_weight": WEIGHTS}, DICE]},
    "ignored minus one": {"ignore_index": -1, "loss_decode": [{**CE, "avg_non_ignore": True}, DICE]},
    "sums": {"loss_decode": [{**CE, "reduction": "sum"}, {**DICE, "reduction": "sum"}]},
    "sigmoids": {"loss_decode": [{**CE, "use_sigmoid": True, "avg_non_ignore": True, "loss_weight": 2.0}]},
    "dice": {"loss_decode": [{**DICE, "activate": False}, {**DICE, "ignore_index": 2, "use_sigmoid": False}]},
    "naive dice": {"loss_decode": {**DICE, "naive_dice": True, "eps": 1.0, "loss_name": "loss_naive"}},
    "hard": {"sampler": {**OHEM, "thresh": 0.3}, "loss_decode": {**CE, "avg_non_ignore": True}},
    "hard and weighted": {  # class weights fail at ignored labels that are no class
        "ignore_index": 1,
        "sampler": {**OHEM, "thresh": 0.3},
        "loss_decode": {**CE, "class_weight": WEIGHTS, "avg_non_ignore": True},
    },
    "hard sigmoids": {"sampler": {**OHEM, "thresh": 0.3}, "loss_decode": {**CE, "use_sigmoid": True}},
    "hardest": {
        "ignore_index": 1,
        "sampler": OHEM,
        "loss_decode": [{**CE, "loss_weight": 0.4}, {**CE, "class_weight": WEIGHTS, "avg_non_ignore": True}],
    },
    "single": {**BINARY, "loss_decode": [{**CE, "use_sigmoid": True, "class_weight": [2.0]}, DICE]},
    "hardest single": {**BINARY, "sampler": OHEM, "loss_decode": {**CE, "use_sigmoid": True}},
}


@pytest.mark.skipif(find_spec("mmseg") is None, reason="needs mmsegmentation: pip install 'graftwork[mmseg]'")
@pytest.mark.parametrize("options", OFFICIAL.values(), ids=OFFICIAL)
def test_options_count_as_in_mmsegmentation(options: dict[str, Any]) -> None:
    from apps.segmentation.mmseg_bridge import build
    from apps.segmentation.models.mmseg_head import labelled

    official = official_of(options)
    levels = [random(2, c, *size, seed=c) for c, size in zip(CHANNELS, SIZES, strict=True)]
    ignored = official.get("ignore_index", 255)
    classes = official["num_classes"]
    labels = torch.randint(0, classes, LABELS, generator=torch.Generator().manual_seed(1))
    labels[:, :9] = ignored
    torch.manual_seed(0)
    theirs = build("MODELS", official).eval()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(random(*tensor.shape, seed=len(name)) * 0.5 + 0.1)
            if name.endswith("running_var"):
                tensor.abs_()
    case = Case(Path("made.json"), {"area": "segmentation", "system": "made", "config": official})
    inputs = {f"input.feat{place}": level for place, level in enumerate(levels)} | {"input.label": labels}
    case.tensors = inputs | {f"weights.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = pixel_head(case)
    wanted = [level.clone().requires_grad_() for level in levels]
    logits = theirs(wanted)
    parts = theirs.loss_by_feat(logits, labelled(labels))
    total = torch.stack([value for name, value in parts.items() if name.startswith("loss")]).sum()
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    expected = {f"grad.feat{place}": gradient for place, gradient in enumerate(found) if gradient is not None}
    expected |= {"logits": logits, **{f"loss.{name}": value for name, value in parts.items()}}
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
