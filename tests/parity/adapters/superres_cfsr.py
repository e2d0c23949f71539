"""Adapter of CFSR, from official hyper-parameters to our outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.superres.models.cfsr import CFSR
from apps.superres.models.cfsr_config import CFSRConfig
from apps.superres.quality import psnr, ssim
from apps.superres.tiles import self_ensemble
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from checkpoints.reading import read_weights
from tests.conftest import SHARED
from tests.parity.adapters.superres_frame import image_info, training_outputs, upsampler
from tests.parity.case import Case
from tests.parity.recording import Tap, record

LEVELS = {"attn": "modulation", "mlp": "feedforward"}
"""Parts of a block whose outputs are recorded, official name to ours."""


def cfsr(case: Case) -> dict[str, Tensor]:
    """The form that the weights are in, and beside it the merged one."""
    official = case.config
    config = CFSRConfig(
        width=official.get("embed_dim", 48),
        depths=tuple(official.get("depths", (6, 6))),
        kernel=official.get("dw_size", 9),
        mlp_ratio=official.get("mlp_ratio", 2),
        edges="branches" if any(key.endswith("mask_sobel_x") for key in case.weights) else "merged",
        upsampler=upsampler(official, "pixelshuffledirect"),
        image_range=official.get("img_range", 1.0),
    )
    model = config.build(image_info(case, config.upsampler)).eval()
    if not case.weights:
        return _published(case, model)
    load_official(model, case.weights, KEYMAPS["cfsr"])
    with torch.no_grad(), record(model, _taps(model)) as seen:
        outputs = {"sr": model(case.inputs["lq"]), "sr_merged": model.merge()(case.inputs["lq"]), **seen}
    return outputs | training_outputs(case, model, KEYMAPS["cfsr"])


def _taps(model: CFSR) -> dict[str, Tap]:
    taps = {"conv_first": Tap("shallow"), "norm": Tap("norm"), "conv_after_body": Tap("after_body")}
    for number, layer in enumerate(model.layers):
        taps[f"l{number}"] = Tap(f"layers.{number}")
        for index in range(len(layer.blocks)):
            path = f"layers.{number}.blocks.{index}"
            taps[f"l{number}.b{index}"] = Tap(path)
            taps |= {f"l{number}.b{index}.{name}": Tap(f"{path}.{ours}") for name, ours in LEVELS.items()}
    return taps


def _published(case: Case, model: CFSR) -> dict[str, Tensor]:
    """A case with the published weights and 8-bit images, scored with a border of the scale."""
    scale = model.scale
    load_official(model, read_weights(SHARED / f"data/cfsr_weights/CFSR_x{scale}.safetensors"), KEYMAPS["cfsr"])
    low, high = (case.inputs[f"{name}_uint8_hwc_rgb"].permute(2, 0, 1)[None] for name in ("lq", "hr"))
    low = low.float() / 255
    with torch.no_grad():
        restored = model(low)
        ensemble = self_ensemble(model, low)
    scores = [metric(restored, high, border=scale, colour=colour) for colour in ("y", "rgb") for metric in (psnr, ssim)]
    return {
        "sr": restored,
        "sr_selfensemble_x8": ensemble,
        "metrics_psnrY_ssimY_psnrRGB_ssimRGB": torch.cat(scores),
    }
