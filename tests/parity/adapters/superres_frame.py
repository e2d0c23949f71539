"""What the adapters of restoration networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.info import ImageInfo
from checkpoints.keymap import KeyMap
from tests.parity.case import Case
from tests.parity.recording import gradient_keys, official_gradients

UPSAMPLERS = {"pixelshuffle": "classical", "pixelshuffledirect": "light", "": "residual"}
"""Official kinds of last layers to ours."""


def image_info(case: Case) -> ImageInfo:
    return ImageInfo(scale=case.config.get("upscale", 2), channels=case.config.get("in_chans", 3))


def training_outputs(case: Case, model: nn.Module, keymap: KeyMap) -> dict[str, Tensor]:
    """The loss of a case that has a target, and gradients of official tensors; the model is in the case's mode."""
    target = case.inputs.get("gt")
    if target is None:
        return {}
    with torch.no_grad():
        outputs = {"l1_loss": F.l1_loss(model(case.inputs["lq"]), target).reshape(1)}
    keys = gradient_keys(case.expected, "grad")
    found = official_gradients(
        model, keymap, case.weights, keys, lambda call: F.l1_loss(call(case.inputs["lq"]), target)
    )
    return outputs | {f"grad.{key}": value for key, value in found.items()}
