"""Adapters of TransKD, from official hyper-parameters to our outputs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from apps.segmentation.distill_config import DistillConfig, Kind
from apps.segmentation.pyramid import PyramidSizes
from apps.segmentation.transkd import Distiller, embedding_terms
from apps.segmentation.transkd_losses import channel_loss, pyramid_loss
from checkpoints.keymap import load_official
from checkpoints.official.transkd import TRANSKD
from tests.parity.case import Case

TEMPERATURE = 4.0
PUBLISHED_STRIDES = (4, 8, 16, 32)


def transkd(case: Case) -> dict[str, Tensor]:
    distiller = _distiller(case).eval()
    load_official(distiller, case.weights, TRANSKD)
    count = len(case.meta["student_channels"])
    levels = [case.inputs[f"feat{i}"] for i in range(count)]
    teacher = [case.inputs[f"teacher.feat{i}"] for i in range(count)]
    embeddings = [_map(case.inputs[f"embed{i}"], levels[i]) for i in range(count)]
    targets = [_map(case.inputs[f"teacher.embed{i}"], levels[i]) for i in range(count)]
    with torch.no_grad():
        fused = distiller.fuse(levels)
        aligned = distiller.align(embeddings, levels, case.inputs["image"])
        outputs = {f"fused{i}": tensor for i, tensor in enumerate(fused)}
        outputs |= {f"embed_proj{i}": tensor.flatten(2).mT for i, tensor in enumerate(aligned)}
        outputs["loss.hcl"] = torch.stack([pyramid_loss(*pair) for pair in zip(fused, teacher, strict=True)]).sum()
        outputs["loss.embed_mse"] = torch.stack(embedding_terms(aligned, targets))
        return outputs | _channel_losses(case, fused, teacher)


def _distiller(case: Case) -> Distiller:
    official = case.meta
    config = DistillConfig(
        kind=cast("Kind", official["kind"]),
        width=official["mid_channel"],
        heads=official.get("num_heads_gl") or 8,
        residual=bool((official.get("options") or {}).get("add", False)),
        separate_single=True,
        embedding_weights=(1.0,) * len(official["student_channels"]),
    )
    ours, theirs = (
        PyramidSizes(channels=tuple(widths), strides=PUBLISHED_STRIDES, embeddings=tuple(widths))
        for widths in (official["student_channels"], official["teacher_channels"])
    )
    squeezed = case.weights["skfs.1.fc.0.weight"].shape[0]
    return Distiller(config, ours, theirs, image_channels=case.inputs["image"].shape[1], squeezed=squeezed)


def _map(tokens: Tensor, level: Tensor) -> Tensor:
    """Tokens [B, H * W, C] in raster order as the map [B, C, H, W] of a level."""
    return tokens.mT.unflatten(2, level.shape[2:])


def _channel_losses(case: Case, fused: list[Tensor], teacher: list[Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for name in case.expected:
        if not name.startswith("loss.cwd_"):
            continue
        norm, divergence = name.removeprefix("loss.cwd_").rsplit("_", 1)
        pairs = list(zip(fused, teacher, strict=True))
        share = 1
        if norm == "none":  # the reference compares the first sample alone, and divides by the whole batch
            pairs, share = [(ours[:1], theirs[:1]) for ours, theirs in pairs], len(fused[0])
        temperature = case.meta.get("temperature", TEMPERATURE)
        terms = [
            channel_loss(*pair, norm=norm, divergence=divergence, temperature=temperature)  # type: ignore[arg-type]
            for pair in pairs
        ]
        outputs[name] = torch.stack(terms).sum() / share
    return outputs
