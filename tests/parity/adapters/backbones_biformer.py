"""Adapters of BiFormer and BiFormerSTL, from official hyper-parameters to our outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbones.vision.base import VisionBackbone
from backbones.vision.biformer import BiFormer, BiFormerSTL
from backbones.vision.biformer_blocks import RoutedAttention
from backbones.vision.classifier import Classifier
from checkpoints.keymap import load_official
from checkpoints.official.biformer import KEYMAPS
from tests.parity.case import Case
from tests.parity.recording import Tap, record

NORMS = {"BatchNorm2d": "batch", "LayerNorm2d": "channel", "LayerNorm": "channel"}
UNUSED = ("param_routing", "diff_routing", "soft_routing", "pe", "representation_size", "qk_scale")
"""Options of the official classes that no released model uses, and that ours do not have."""


def biformer(case: Case) -> dict[str, Tensor]:
    """The official ``auto_pad`` needs no counterpart: ours pads where the official class would refuse the image."""
    official = case.config
    _refuse_unused(case)
    backbone = BiFormer(
        **_shared(case),
        depths=official.get("depth", (3, 4, 8, 3)),
        channels=official.get("embed_dim", (64, 128, 320, 512)),
        topks=official.get("topks", (8, 8, -1, -1)),
        regions=official.get("n_win", 7),
        head_width=official.get("head_dim", 64),
        qk_widths=official.get("qk_dims"),
        position_kernel=max(0, official.get("before_attn_dwconv", 3)),
        layer_scale=max(0.0, float(official.get("layer_scale_init_value", -1))),
        mlp_convolution=bool(official.get("mlp_dwconv", False)),
        pre_norm=bool(official.get("pre_norm", True)),
    )
    return _outputs(case, backbone, "stages.{}.{}.attn.router")


def biformer_stl(case: Case) -> dict[str, Tensor]:
    official = case.config
    _refuse_unused(case)
    topks, regions = official.get("topks", (1, 4, 16, -2)), official.get("n_wins", (7, 7, 7, 7))
    backbone = BiFormerSTL(
        **_shared(case),
        depths=official.get("depth", (2, 2, 6, 2)),
        channels=official.get("embed_dim", (96, 192, 384, 768)),
        topks=[topks] * 4 if isinstance(topks, int) else topks,
        regions=regions,
        head_width=official.get("head_dim", 32),
        norm=NORMS[str(official.get("norm_layer", "LayerNorm2d")).rsplit(".", 1)[-1]],
    )
    return _outputs(case, backbone, "stages.{}.blocks.{}.attn.router")


def _shared(case: Case) -> dict[str, Any]:
    official = case.config
    return {
        "mlp_ratio": official.get("mlp_ratios", (4, 4, 4, 4)),
        "lepe_kernel": max(0, official.get("side_dwconv", 5)),
        "drop_path": official.get("drop_path_rate", 0.0),
        "in_channels": official.get("in_chans", 3),
        "output_norms": any(key.startswith("extra_norms.") for key in case.weights),
    }


def _refuse_unused(case: Case) -> None:
    found = {name: case.config[name] for name in UNUSED if case.config.get(name)}
    if case.config.get("kv_downsample_mode", "identity") != "identity":
        found["kv_downsample_mode"] = case.config["kv_downsample_mode"]
    if case.config.get("param_attention", "qkvo") != "qkvo":
        found["param_attention"] = case.config["param_attention"]
    if found:
        raise NotImplementedError(f"options of no released model: {found}")


def _outputs(case: Case, backbone: VisionBackbone, router: str) -> dict[str, Tensor]:
    """Every number of a case; ``router`` is the official name of a block's router."""
    classifier = Classifier(backbone, case.config.get("num_classes", 1000)).eval()
    load_official(classifier, case.weights, KEYMAPS[case.system])
    taps, routed = {}, {}
    for level, stage in enumerate(backbone.built_stages):
        taps[f"stage{level}_in"] = Tap(f"stages.{level}.downsample")
        for number, block in enumerate(stage.blocks):
            if isinstance(block.attention, RoutedAttention):
                name = f"route.{router.format(level, number)}"
                taps[name] = Tap(f"stages.{level}.blocks.{number}.attention", before=True)
                routed[name] = block.attention
    with torch.no_grad(), record(backbone, taps) as seen:
        levels = backbone.extract(case.inputs["image"])
        outputs = {**seen, "logits": classifier.head(levels[-1])}
        for name, attention in routed.items():
            outputs[name] = attention.routes(seen[name]).sort(dim=-1).values.to(torch.int32)
        for level, features in enumerate(levels):
            outputs[f"stage{level}"] = features
            if backbone.output_norms is not None:
                outputs[f"dense{level}"] = backbone.output_norms[str(level)](features)
    return outputs
