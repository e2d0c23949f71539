"""Adapters of gated linear attention, ViG and ViG-H, from official hyper-parameters to our outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.attention.gated_linear import gated_linear_attention
from backbones.vision import vig_blocks
from backbones.vision.classifier import Classifier
from backbones.vision.vig import ViG, ViGBase, ViGH
from checkpoints.keymap import load_official
from checkpoints.official.vig import KEYMAPS
from tests.parity.case import Case
from tests.parity.recording import Tap, official_gradients, record

GRADIENTS = {
    "grad_pos_embed": "pos_embed",
    "gk_proj0": "attn.gk_proj.0.weight",
    "gk_proj1": "attn.gk_proj.1.weight",
    "gk_proj1_bias": "attn.gk_proj.1.bias",
    "in_proj": "attn.in_proj.0.weight",
    "g_norm": "attn.g_norm.weight",
    "l_norm": "attn.l_norm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "down_proj": "mlp.down_proj.weight",
}
"""What an expected gradient is called, whole or after ``grad_block<i>_``, to its official key or the part of it that
follows ``blocks.<i>.``; other projections of the mixer have the name of their module."""


def gated_linear(case: Case) -> dict[str, Tensor]:
    """Layout [B, heads, T, channels]; each direction alone, their mean, and the gradients of that."""
    names = ("q", "k", "v", "gate_logit_fwd", "gate_logit_bwd")
    leaves = {name: case.inputs[name].clone().requires_grad_() for name in names}
    q, k, v, *logits = (leaves[name].transpose(1, 2) for name in names)
    ahead, back = (F.logsigmoid(logit) / case.config.get("gate_logit_normalizer", 16) for logit in logits)
    flipped = (x.flip(1) for x in (q, k, v, back))
    found = {
        "fwd": gated_linear_attention(q, k, v, ahead)[0],
        "bwd": gated_linear_attention(*flipped)[0].flip(1),
        "out": gated_linear_attention(q, k, v, ahead, backward_gate=back)[0],
    }
    outputs = {name: mixed.transpose(1, 2) for name, mixed in found.items()}
    if "grad_out" in case.inputs:
        gradients = torch.autograd.grad(outputs["out"], list(leaves.values()), case.inputs["grad_out"])
        outputs |= {f"grad_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    return outputs


def vig(case: Case) -> dict[str, Tensor]:
    """Tokens stay B,N,C there; the evaluation path of the reference is ours with the sum of both directions halved."""
    classifier = _classifier(case, ViG.from_official(case.config))
    image = case.inputs["image"]
    taps = {"patch_embed": Tap("backbone.stem")}
    for number in range(len(classifier.backbone.built_stages[0].blocks)):
        taps[f"block{number}"] = Tap(f"backbone.stages.0.blocks.{number}")
        taps[f"block{number}_attn"] = Tap(f"backbone.stages.0.blocks.{number}.mixer")
    with torch.no_grad():
        with record(classifier, taps) as seen:
            logits = classifier(image)
        with _evaluation_kernel():
            halved = classifier(image)
    tokens = {name: value.flatten(1, 2) for name, value in seen.items()}
    return {**tokens, "logits": logits, "logits_eval_kernel_path": halved, **_gradients(case, classifier)}


def vig_h(case: Case) -> dict[str, Tensor]:
    dense = any(key.startswith("outnorm") for key in case.weights)
    classifier = _classifier(case, ViGH.from_official(case.config, output_norms=dense))
    backbone, image = classifier.backbone, case.inputs["image"]
    with torch.no_grad(), record(backbone, {"patch_embed": Tap("stem")}) as seen:
        levels = backbone.extract(image)
        outputs = {
            "patch_embed": seen["patch_embed"].permute(0, 3, 1, 2),
            "logits": classifier.head(levels[len(levels) - 1]),
        }
        for level in range(len(levels)):
            outputs[f"stage{level}"] = levels[level]
            if backbone.output_norms is not None:
                outputs[f"dense{level}"] = backbone.output_norms[str(level)](levels[level])
    return {**outputs, **_gradients(case, classifier)}


def _classifier(case: Case, backbone: ViGBase) -> Classifier:
    classifier = Classifier(backbone, case.config.get("num_classes", 1000)).eval()
    load_official(classifier, case.weights, KEYMAPS[case.system])
    return classifier


def _evaluation_kernel() -> AbstractContextManager[Any]:
    def halved(*args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        mixed, state = gated_linear_attention(*args, **kwargs)
        return mixed / 2, state

    return mock.patch.object(vig_blocks, "gated_linear_attention", halved)


def _gradients(case: Case, classifier: Classifier) -> dict[str, Tensor]:
    """Gradients of the logits, weighted from -1 to 1, with respect to the image and to official tensors."""
    wanted = {name: _official_key(name) for name in case.expected if name.startswith("grad_")}
    if not wanted:
        return {}
    image = case.inputs["image"].clone().requires_grad_()

    def loss(call: Callable[..., Any]) -> Tensor:
        logits: Tensor = call(image)
        return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()

    keys = [key for key in wanted.values() if key]
    found = official_gradients(classifier, KEYMAPS[case.system], case.weights, keys, loss)
    by_image = torch.autograd.grad(loss(classifier), image)[0] if "grad_image" in wanted else image
    return {name: found[key] if key else by_image for name, key in wanted.items()}


def _official_key(name: str) -> str:
    """The official key behind ``grad_<name>``; empty for the image."""
    if name == "grad_image":
        return ""
    if name in GRADIENTS:
        return GRADIENTS[name]
    block, part = name.removeprefix("grad_block").split("_", 1)
    return f"blocks.{block}.{GRADIENTS.get(part, f'attn.{part}.weight')}"
