"""Adapter of kMaX-DeepLab's pixel decoder, transformer decoder, losses and post-processing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from apps.segmentation.models import kmax_panoptic
from apps.segmentation.models.head import MaskOutput
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.kmax import FINEST, KMaXHead
from apps.segmentation.models.kmax_config import KMaXConfig
from apps.segmentation.models.kmax_losses import MapTargets, Terms, all_losses, match
from checkpoints.keymap import load_official
from checkpoints.official.kmax import KEYMAPS
from tests.parity.case import Case
from tests.parity.recording import Tap, record

TERMS = {"classes": "loss_ce", "dice": "loss_dice", "masks": "loss_mask", "pixels": "loss_pixel_insdis"}
"""Our names of losses to the official ones."""
SEMANTIC = "loss_aux_semantic"
AUXILIARY = "predictor._auxiliary_semantic_predictor."


@dataclass
class Run:
    """A forward pass of the head as in training, with norms and dropout as in evaluation.

    Args:
        case: The golden case.
        head: Ours, loaded.
        features: Levels, fine to coarse.
    """

    case: Case
    head: KMaXHead
    features: dict[str, Tensor]

    def forward(self) -> MaskOutput:
        output: MaskOutput = self.head(list(self.features.values()), tuple(self.case.meta["input_size"]))
        return output


def kmax(case: Case) -> dict[str, Tensor]:
    run = _loaded(case)
    with torch.no_grad(), record(run.head, _taps(run.head)) as seen:
        output = run.forward()
    outputs = _forward_outputs(output, seen) | _post(case)
    if "target0.labels" in case.inputs:
        outputs |= _matching(run, output) | _losses(run, output) | _gradients(run)
    return outputs


def _loaded(case: Case) -> Run:
    # The official sort is stable: features of one stride stay in the backbone's order.
    coarse_first = sorted(case.meta["features"], key=lambda feature: -feature["declared_stride"])
    fine_first = coarse_first[::-1]
    info = HeadInfo(
        channels=tuple(feature["channels"] for feature in fine_first),
        strides=tuple(max(FINEST, feature["declared_stride"]) for feature in fine_first),
        classes=case.meta["transformer_decoder"]["num_classes"],
        things=tuple((case.meta.get("post") or {}).get("thing_classes", ())),
    )
    head = _config(case).build(info).eval()
    load_official(head, case.weights, KEYMAPS["kmax"])
    head.options = replace(head.options, ignore_void=(case.meta.get("loss") or {}).get("masking_void_pixel", True))
    head.training = True  # outputs of training; norms and dropout stay as in evaluation
    names = [feature["name"] for feature in fine_first]
    return Run(case, head, {name: case.inputs[f"feat.{name}"] for name in names})


def _config(case: Case) -> KMaXConfig:
    pixel, decoder, loss = (case.meta.get(part) or {} for part in ("pixel_decoder", "transformer_decoder", "loss"))
    width = decoder.get("query_dim", 256)
    return KMaXConfig(
        queries=decoder["num_queries"],
        width=width,
        key_width=decoder.get("base_filters", 128),
        heads=decoder.get("num_heads", 8),
        feedforward=decoder.get("ffn_dim", 2048),
        mask_width=decoder.get("mask_embedding_dim", 128),
        mask_hidden=decoder.get("predictor_pixel_hidden", 256),
        layers=tuple(decoder["dec_layers"]),
        stage_layers=tuple(pixel["dec_layers"]),
        stage_widths=tuple(pixel["dec_channels"]),
        stage_blocks=tuple(pixel["layer_types"]),
        axial_heads=pixel.get("num_heads", 8),
        pixel_samples=_samples(loss.get("pixel_insdis_sample_k", 0)),
        pixel_balance=loss.get("pixel_insdis_temperature", 1.5),
        pixel_temperature=loss.get("instance_discrimination_temperature", 0.3),
        semantic_samples=_samples(loss.get("aux_semantic_sample_k", 0)),
        semantic_balance=loss.get("aux_semantic_temperature", 2.0),
        least_weight=loss.get("eos", 1e-5),
        **_semantic(case.weights, decoder),
    )


def _samples(stated: Any) -> int:
    return stated if isinstance(stated, int) else 0  # "all pixels"


def _semantic(weights: Mapping[str, Tensor], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Which auxiliary head the weights hold, and its widths."""
    if f"{AUXILIARY}final_conv.conv.weight" in weights:
        projections = (decoder.get("aux_os8_projection", 64), decoder.get("aux_os4_projection", 32))
        return {
            "semantic": "aspp",
            "semantic_width": weights[f"{AUXILIARY}final_conv.conv.weight"].shape[1],
            "semantic_projections": projections,
        }
    if f"{AUXILIARY}1.conv.weight" in weights:
        return {"semantic": "light", "semantic_width": len(weights[f"{AUXILIARY}1.conv.weight"])}
    return {"semantic": "none"}


def _taps(head: KMaXHead) -> dict[str, Tap]:
    taps = {f"stage{index}": Tap(f"pixel_decoder.stages.{index}") for index in range(len(head.pixel_decoder.stages))}
    for index in range(len(head.decoder.layers)):
        taps |= {f"layer{index}.{item}": Tap(f"decoder.layers.{index}", item) for item in (0, 1)}
    return taps


def _forward_outputs(output: MaskOutput, seen: Mapping[str, Any]) -> dict[str, Tensor]:
    outputs: dict[str, Any] = {name: value for name, value in seen.items() if name.startswith("stage")}
    outputs["panoptic_features"] = outputs[f"stage{len(outputs) - 1}"]
    for index, layer in enumerate(output.auxiliary):
        own = seen[f"layer{index}.1"]
        outputs[f"layer{index}.cluster_centers"] = seen[f"layer{index}.0"]
        outputs |= {f"layer{index}.mask_logits": own.masks, f"layer{index}.class_logits": own.classes}
        outputs |= {f"aux{index}.pred_logits": layer.classes, f"aux{index}.pred_masks": layer.masks}
        outputs[f"aux{index}.pixel_feature"] = layer.features
    outputs |= {"pred_logits": output.classes, "pred_masks": output.masks, "pixel_feature": output.features}
    outputs["aux_semantic_pred"] = output.semantic
    return {name: value for name, value in outputs.items() if value is not None}


def _targets(case: Case) -> list[MapTargets]:
    found: list[MapTargets] = []
    while f"target{len(found)}.labels" in case.inputs:
        name = f"target{len(found)}"
        found.append(MapTargets.of(case.inputs[f"{name}.labels"], case.inputs[f"{name}.masks"]))
    return found


def _matching(run: Run, output: MaskOutput) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for image, pairs in enumerate(match(output, _targets(run.case), run.head.options)):
        outputs |= {f"match{image}.query": pairs.queries, f"match{image}.target": pairs.segments}
        outputs[f"match{image}.mask_similarity"] = pairs.mask_similarity
        outputs[f"match{image}.class_similarity"] = pairs.class_similarity
    return outputs


def _losses(run: Run, output: MaskOutput) -> dict[str, Tensor]:
    """Losses by their official names, with one matching for all outputs and with one for each."""
    outputs: dict[str, Tensor] = {}
    for prefix, shared in (("loss", True), ("loss_unshared", False)):
        outputs |= {f"{prefix}.{name}": value for name, value in _named_losses(run, output, shared).items()}
    return outputs


def _named_losses(run: Run, output: MaskOutput, shared: bool) -> dict[str, Tensor]:
    case, head = run.case, run.head
    factors = torch.ones(head.info.classes + 1, dtype=output.masks.dtype)
    options = replace(head.options, share_matching=shared)
    final, *layers = all_losses(output, _targets(case), factors, options)
    losses = _official(final)
    if output.semantic is not None and "target0.semantic" in case.inputs:
        known = torch.stack([case.inputs[f"target{image}.semantic"] for image in range(len(output.classes))])
        if case.meta["loss"].get("aux_semantic_included", True):
            losses[SEMANTIC] = head.semantic_loss(output.semantic, _strided(known, output.semantic))
    for index, layer in enumerate(layers):
        losses |= {f"{name}_{index}": value for name, value in _official(layer).items()}
    weights = case.meta["loss"]["weights"]
    factor = {
        name: next(value for key, value in weights.items() if name.rstrip("_0123456789") == key) for name in losses
    }
    losses["total_weighted"] = torch.stack([factor[name] * value for name, value in losses.items()]).sum()
    return losses


def _official(terms: Terms) -> dict[str, Tensor]:
    return {TERMS[name]: value for name, value in terms._asdict().items()}


def _strided(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels at the size of logits, by the official stride."""
    rows, columns = (
        (side - 1) // max(1, length - 1) for side, length in zip(labels.shape[1:], logits.shape[2:], strict=True)
    )
    return labels[:, :: max(1, rows), :: max(1, columns)][:, : logits.shape[2], : logits.shape[3]]


def _gradients(run: Run) -> dict[str, Tensor]:
    """Gradients of the weighted sum of all losses.

    In float64: the network has sums over whole clusters and unscaled similarities, which make rounding of its first
    layers a thousand times larger in their gradients, and the case was rounded already.
    """
    names = (run.case.meta.get("grad_norms") or {}).get("order", [])
    features = {name: feature.double().requires_grad_() for name, feature in run.features.items()}
    exact = Run(run.case, run.head.double(), features)
    with torch.enable_grad():
        total = _named_losses(exact, exact.forward(), shared=True)["total_weighted"]
        parameters = dict(run.head.named_parameters())
        leaves = [parameters[KEYMAPS["kmax"].rename(name)] for name in names]
        found = torch.autograd.grad(total, [*leaves, *features.values()], allow_unused=True)
    norms = [torch.zeros(()) if gradient is None else gradient.norm() for gradient in found[: len(leaves)]]
    outputs = {f"grad.feat.{name}": g for name, g in zip(features, found[len(leaves) :], strict=True) if g is not None}
    return outputs | ({"grad_norms": torch.stack(norms)} if norms else {})


def _post(case: Case) -> dict[str, Tensor]:
    rules = case.meta.get("post")
    if not rules or "post.mask_cls" not in case.inputs:
        return {}
    classes, shares = case.inputs["post.mask_cls"], case.inputs["post.mask_pred"].softmax(0)
    things = rules["thing_classes"]
    found = kmax_panoptic.panoptic(
        classes,
        shares,
        things,
        thing_threshold=rules["class_threshold_thing"],
        stuff_threshold=rules["class_threshold_stuff"],
        overlap=rules["overlap_threshold"],
        pixel_threshold=rules["pixel_confidence_threshold"],
        class_power=rules["reorder_class_weight"],
        mask_power=rules["reorder_mask_weight"],
    )
    table = [[number, int(label in things), label] for number, label in enumerate(found.classes.tolist(), 1)]
    semantic = torch.einsum("nc,nhw->chw", classes.softmax(-1)[:, :-1], shares)
    return {
        "post.panoptic": found.segments,
        "post.segments": torch.tensor(table, dtype=torch.int64).reshape(-1, 3),
        "post.semantic": semantic,
    }
