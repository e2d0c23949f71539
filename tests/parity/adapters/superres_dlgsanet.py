"""Adapter of DLGSANet, from official hyper-parameters to our outputs."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from apps.superres.models.dlgsanet import DLGSANet, Group
from apps.superres.models.dlgsanet_attention import DynamicAttention
from apps.superres.models.dlgsanet_config import DLGSANetConfig
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from graftwork.errors import ConfigError
from tests.parity.adapters.superres_frame import image_info, training_outputs, upsampler
from tests.parity.case import Case
from tests.parity.recording import Tap, record


def dlgsanet(case: Case) -> dict[str, Tensor]:
    """With crops as the case has them, and beside it on whole images."""
    model = _build(case)
    low = case.inputs["lq"]
    with torch.no_grad(), record(model, _taps(model)) as seen:
        outputs = {"sr": model(low), **seen}
    with torch.no_grad():
        outputs["sr_global"] = _build(case, local_crops=False)(low)
    return outputs | training_outputs(case, model, KEYMAPS["dlgsanet"])


def _build(case: Case, *, local_crops: bool = True) -> DLGSANet:
    official = case.config
    for name in ("idynamic_ffn_type", "restormer_ffn_type"):
        if (official.get(name) or "GDFN") != "GDFN":
            raise ConfigError(f"{name}={official[name]} is of no released network", mend="Use GDFN")
    config = DLGSANetConfig(
        width=official.get("dim", 90),
        depths=_depths(case),
        block=official.get("buildblock_type", "sparseedge"),
        dynamic=official.get("idynamic", True),
        kernel=official.get("window_size", 7),
        group_width=official.get("idynamic_num_heads", 6),
        heads=official.get("restormer_num_heads", 6),
        activation=official.get("activation", "relu"),
        local_crops="auto" if local_crops and official.get("tlc_flag", True) else False,
        crop=official.get("tlc_kernel", 48),
        mlp_ratio=official.get("idynamic_ffn_expansion_factor", 2.0),
        global_mlp_ratio=official.get("restormer_ffn_expansion_factor", 2.0),
        body_norm=official.get("body_norm", False),
        upsampler=upsampler(official, "pixelshuffledirect"),
        image_range=official.get("img_range", 1.0),
    )
    model = config.build(image_info(case, config.upsampler)).train(case.meta.get("mode", "eval").startswith("train"))
    load_official(model, case.weights, KEYMAPS["dlgsanet"])
    return model


def _depths(case: Case) -> tuple[int, ...]:
    """Blocks of each group, by the layers that there are weights for: a block has one of a kind or two."""
    layers: dict[int, set[int]] = {}
    for key in case.weights:
        if match := re.match(r"deep_feature_extraction\.(\d+)\.body\.(\d+)\.norm", key):
            layers.setdefault(int(match[1]), set()).add(int(match[2]))
    kinds = 2 if case.config.get("buildblock_type", "sparseedge") in ("edge", "sparseedge") else 1
    return tuple(len(layers[group]) // kinds for group in sorted(layers))


def _taps(model: DLGSANet) -> dict[str, Tap]:
    """Names of the first layer of each kind in a group; later ones have their number behind."""
    taps = {"conv_first": Tap("shallow"), "conv_after_body": Tap("after_body")}
    for number, path in enumerate(name for name, module in model.named_modules() if isinstance(module, Group)):
        taps[f"g{number}"] = Tap(path)
        counts = {"mhdlsa": 0, "sparsegsa": 0}
        for index, layer in enumerate(model.get_submodule(path).layers):
            kind = "mhdlsa" if isinstance(layer.attention, DynamicAttention) else "sparsegsa"
            behind = str(counts[kind] or "")
            counts[kind] += 1
            taps[f"g{number}.{kind}{behind}"] = Tap(f"{path}.layers.{index}.attention")
            taps[f"g{number}.{kind}_block{behind}"] = Tap(f"{path}.layers.{index}")
            if kind == "mhdlsa":
                taps[f"g{number}.dynconv{behind}"] = Tap(f"{path}.layers.{index}.attention.convolution")
    return taps
