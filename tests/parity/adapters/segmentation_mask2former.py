"""Adapters of Mask2Former, from official hyper-parameters to our outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apps.segmentation.models.head import MaskOutput, Segments
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mask2former import Mask2Former
from apps.segmentation.models.mask2former_config import Mask2FormerConfig
from apps.segmentation.models.mask2former_losses import (
    LossPoints,
    Weights,
    class_loss,
    match,
    matched_masks,
    pair_losses,
    query_labels,
    read_logits,
    read_matched,
    segments_per_device,
    uncertain_points,
)
from apps.segmentation.models.mask2former_panoptic import class_scores, panoptic
from apps.segmentation.models.mask2former_pixel_decoder import DeformableAttention
from checkpoints.keymap import KeyMap, load_official
from checkpoints.official.mask2former import keymap
from tests.parity.case import Case
from tests.parity.recording import Tap, record

DEFORMABLE = KeyMap(
    renames=(
        (r"^sampling_offsets\.", "offsets."),
        (r"^attention_weights\.", "weights."),
        (r"^value_proj\.", "value."),
        (r"^output_proj\.", "out."),
    )
)


def msdeformattn(case: Case) -> dict[str, Tensor]:
    """Deformable attention by itself, with and without padding."""
    official = {**case.meta, **case.config}
    module = DeformableAttention(official["d_model"], official["n_levels"], official["n_heads"], official["n_points"])
    load_official(module.eval(), case.weights, DEFORMABLE)
    inputs = case.inputs
    around = (inputs["query"], inputs["reference_points"], inputs["value"], official["spatial_shapes"])
    outputs = {"out": module(*around)}
    if "padding_mask" in inputs:
        outputs["out_with_padding_mask"] = module(*around, inputs["padding_mask"])
    return outputs


def mask2former(case: Case) -> dict[str, Tensor]:
    """Pixel decoder, masked decoder, matching, losses, gradients and post-processing."""
    head = _build(case)
    load_official(head, case.weights, keymap(len(head.pixel_decoder.merges)))
    head.train()  # for the outputs of all layers; nothing is random
    names = sorted(name for name in case.inputs if name.startswith("feat."))
    levels = [case.inputs[name].clone().requires_grad_() for name in names]
    with record(head, _taps(head)) as seen:
        output = head(levels, tuple(case.meta["input_size"]))
    outputs = dict(seen) | {f"pred_{name}": value for name, value in _logits(output).items()}
    for number, auxiliary in enumerate(output.auxiliary):
        outputs |= {f"aux{number}.pred_{name}": value for name, value in _logits(auxiliary).items()}
    outputs |= _pixel_outputs(head, levels)
    outputs = {name: value.transpose(0, 1) if ".query" in name else value for name, value in outputs.items()}
    found = _losses(case, output)
    if "loss.total_weighted" in found:
        gradients = torch.autograd.grad(found["loss.total_weighted"], levels, retain_graph=True)
        found |= {f"grad.{name}": value for name, value in zip(names, gradients, strict=True)}
    return outputs | found | _post(case)


def _build(case: Case) -> Mask2Former:
    pixel, decoder = case.meta["pixel_decoder"], case.meta["decoder"]
    info = HeadInfo(
        channels=tuple(case.meta["feature_channels"]),
        strides=tuple(case.meta["strides"]),
        classes=decoder["num_classes"],
    )
    loss = case.meta.get("loss") or {}
    config = Mask2FormerConfig(
        width=pixel["conv_dim"],
        mask_width=pixel["mask_dim"],
        encoder_heads=pixel["nheads"],
        encoder_layers=pixel["enc_layers"],
        encoder_mlp=pixel["dim_feedforward"],
        encoder_points=pixel["n_points"],
        encoder_levels=pixel["levels"],
        groups=pixel["groupnorm_groups"],
        merge_groups=pixel["groupnorm_groups"] if pixel["conv_dim"] % 32 else 32,  # detectron2 always has 32
        query_width=decoder["hidden_dim"],
        heads=decoder["nheads"],
        mlp=decoder["dim_feedforward"],
        layers=decoder["dec_layers"],
        queries=decoder["num_queries"],
        norm_first=decoder.get("pre_norm", False),
        project=decoder.get("enforce_input_project", False),
        void_weight=loss.get("eos", 0.1),
        loss_points=loss.get("num_points", 12544),
    )
    return config.build(info)


def _taps(head: Mask2Former) -> dict[str, Tap]:
    taps = {
        f"encoder{i}": Tap(f"pixel_decoder.encoder.layers.{i}") for i in range(len(head.pixel_decoder.encoder.layers))
    }
    return taps | {f"decoder{i}.query": Tap(f"decoder.layers.{i}") for i in range(len(head.decoder.layers))}


def _logits(output: MaskOutput) -> dict[str, Tensor]:
    return {"logits": output.classes, "masks": output.masks}


def _pixel_outputs(head: Mask2Former, levels: list[Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        decoded = head.pixel_decoder(levels)
    maps = {f"multi_scale{number}": found for number, found in enumerate(decoded.maps)}
    return maps | {"mask_features": decoded.mask_features}


def _weights(loss: dict[str, Any]) -> Weights:
    factors, costs = loss.get("weights", {}), loss.get("matching_costs", {})
    return Weights(
        classes=factors.get("loss_ce", 2.0),
        masks=factors.get("loss_mask", 5.0),
        dice=factors.get("loss_dice", 5.0),
        class_cost=costs.get("class", 2.0),
        mask_cost=costs.get("mask", 5.0),
        dice_cost=costs.get("dice", 5.0),
    )


def _losses(case: Case, output: MaskOutput) -> dict[str, Tensor]:
    """Matching and losses of the last output, at the case's points."""
    inputs, loss = case.inputs, case.meta.get("loss")
    if not loss:
        return {}
    batch = len(output.masks)
    segments = [Segments(inputs[f"target{i}.labels"], inputs[f"target{i}.masks"]) for i in range(batch)]
    weights = _weights(loss)
    points = torch.stack([inputs[f"rand.matcher{image}"][0] for image in range(batch)])
    matches = match([output], segments, points[None], weights)[0]
    found = {f"match{i}.query": rows for i, (rows, _) in enumerate(matches)}
    found |= {f"match{i}.target": columns for i, (_, columns) in enumerate(matches)}
    labels = query_labels(output.classes, matches, segments)
    of_classes = torch.tensor([1.0] * (output.classes.shape[-1] - 1) + [loss["eos"]])
    masks = matched_masks(output.masks, matches)
    places = LossPoints(inputs["rand.oversampled_points"], inputs["rand.random_points"])
    chosen = uncertain_points(masks, places, loss["num_points"])
    (read,) = read_matched(segments, [matches], [chosen])
    found["loss.loss_ce"] = class_loss(output.classes, labels, of_classes[labels])
    pairs = pair_losses(read_logits(masks, chosen), read, segments_per_device(segments))
    found["loss.loss_mask"], found["loss.loss_dice"] = pairs
    parts = zip((weights.classes, weights.masks, weights.dice), ("ce", "mask", "dice"), strict=True)
    found["loss.total_weighted"] = torch.stack([factor * found[f"loss.loss_{name}"] for factor, name in parts]).sum()
    return found


def _post(case: Case) -> dict[str, Tensor]:
    """Post-processing of given masks, which are at the size of the image."""
    rules = case.meta.get("post")
    if not rules:
        return {}
    classes, masks = case.inputs["post.mask_cls"], case.inputs["post.mask_pred"]
    threshold, things = rules["object_mask_threshold"], rules["thing_classes"]
    found = panoptic(
        classes,
        masks,
        things,
        thing_threshold=threshold,
        stuff_threshold=threshold,
        overlap=rules["overlap_threshold"],
    )
    table = [[i, int(label in things), label] for i, label in enumerate(found.classes.tolist(), 1)]
    size = (masks.shape[-2], masks.shape[-1])
    return {
        "post.panoptic": found.segments,
        "post.segments": torch.tensor(table, dtype=torch.int64).reshape(-1, 3),
        "post.semantic": class_scores(MaskOutput(classes[None], masks[None]), size, 1)[0],
    }
