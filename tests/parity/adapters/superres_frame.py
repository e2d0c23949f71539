"""What the adapters of restoration networks share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.info import ImageInfo
from checkpoints.keymap import KeyMap
from graftwork.errors import ConfigError
from tests.parity.case import Case
from tests.parity.recording import gradient_keys, official_gradients

UPSAMPLERS = {
    "pixelshuffle": "classical",
    "pixelshuffledirect": "light",
    "nearest+conv": "nearest",
    "": "residual",
}
"""Official kinds of last layers to ours."""


def upsampler(official: dict[str, Any], usual: str) -> Any:
    """Our kind of last layers.

    Args:
        official: Official hyper-parameters; null says the same as empty text.
        usual: Official kind where nothing is said.

    Raises:
        ConfigError: None of the code bases has this kind.
    """
    kind = official.get("upsampler", usual) or ""
    if kind not in UPSAMPLERS:
        names = ", ".join(f"'{name}'" for name in UPSAMPLERS)
        raise ConfigError(f"upsampler={kind} is no official kind", mend=f"Use one of {names}, or null")
    return UPSAMPLERS[kind]


def image_info(case: Case, kind: str = "light") -> ImageInfo:
    """Scale and channels of a case; without an upsampler, official networks keep the size whatever scale they are told.

    Args:
        case: The case.
        kind: Our kind of last layers.
    """
    scale = 1 if kind == "residual" else case.config.get("upscale", 2)
    return ImageInfo(scale=scale, channels=case.config.get("in_chans", 3))


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
