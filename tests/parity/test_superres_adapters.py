"""Adapters are generic: options of the official constructors that no golden case has set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.superres.models.cfsr_config import CFSRConfig
from apps.superres.models.dlgsanet_config import DLGSANetConfig
from apps.superres.models.hat_config import HATConfig
from apps.superres.models.info import ImageInfo
from graftwork.errors import ConfigError
from tests.apps.superres.test_cfsr import official as official_cfsr
from tests.apps.superres.test_dlgsanet import official as official_dlgsanet
from tests.apps.superres.test_hat import official as official_hat
from tests.parity import adapters
from tests.parity.case import Case

CFSR = {"embed_dim": 6, "depths": [1], "dw_size": 3, "upscale": 2}
HAT = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "compress_ratio": 3, "squeeze_factor": 4,
       "mlp_ratio": 2.0, "upsampler": "pixelshuffle", "upscale": 2}  # fmt: skip
DLGSANET = {"dim": 12, "window_size": 3, "idynamic_num_heads": 3, "restormer_num_heads": 2, "tlc_kernel": 12,
            "upscale": 2}  # fmt: skip
IMAGES = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def outputs(system: str, weights: dict[str, Tensor], official: dict[str, Any], images: Tensor = IMAGES) -> Tensor:
    """What the adapter of a system makes of official weights and hyper-parameters."""
    case = Case(Path("made.json"), {"area": "superres", "system": system, "config": official})
    case.tensors = {f"weights.{key}": tensor for key, tensor in weights.items()} | {"input.lq": images}
    adapter = adapters.find("superres", system)
    assert adapter is not None
    found: Tensor = adapter(case)["sr"]
    return found


def cfsr(scale: int, upsampler: Any = "light") -> torch.nn.Module:
    torch.manual_seed(0)
    config = CFSRConfig(width=6, depths=(1,), kernel=3, edges="merged", layer_scale=0.5, upsampler=upsampler)
    return config.build(ImageInfo(scale=scale)).eval()


@pytest.mark.parametrize("official", [{"upsampler": None}, {"upsampler": ""}, {"upsampler": None, "upscale": 4}])
def test_without_an_upsampler_the_size_stays(official):
    model = cfsr(1, "residual")
    found = outputs("cfsr", _renamed(official_cfsr(model), {"reconstruction.last.": "conv_last."}), CFSR | official)
    with torch.no_grad():
        torch.testing.assert_close(found, model(IMAGES))


@pytest.mark.parametrize("scale", [2, 4])
def test_pixels_repeated_and_convolved_as_swinir_does(scale):
    names = {"upsample.0.": "conv_up1.", "upsample.1.": "conv_up2.", "reconstruction.refine.": "conv_hr.",
             "reconstruction.last.": "conv_last.", "reconstruction.before.": "conv_before_upsample.0."}  # fmt: skip
    model = cfsr(scale, "nearest")
    weights = _renamed(official_cfsr(model), names)
    found = outputs("cfsr", weights, CFSR | {"upsampler": "nearest+conv", "upscale": scale})

    def convolved(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    with torch.no_grad():
        x = F.leaky_relu(convolved(model.features(model.range.centre(IMAGES)), "conv_before_upsample.0"), 0.01)
        for name in ("conv_up1", "conv_up2")[: scale // 2]:
            x = F.leaky_relu(convolved(x.repeat_interleave(2, 2).repeat_interleave(2, 3), name), 0.2)
        x = convolved(F.leaky_relu(convolved(x, "conv_hr"), 0.2), "conv_last")
        torch.testing.assert_close(found, model.range.restore(x))


def test_unknown_upsamplers_are_named():
    with pytest.raises(ConfigError, match=r"upsampler=bicubic is no official kind. Use one of 'pixelshuffle', "):
        outputs("cfsr", official_cfsr(cfsr(2)), CFSR | {"upsampler": "bicubic"})


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ({"patch_size": 4}, {}),
        ({"patch_size": 16}, {"image_size": 4}),
        ({"patch_size": [4, 2], "img_size": [32, 8]}, {"image_size": 4}),
        ({"ape": True, "img_size": [8, 12]}, {"image_size": 8, "absolute_positions": (8, 12)}),
        ({"ape": True, "img_size": [16, 24], "patch_size": 2}, {"image_size": 8, "absolute_positions": (8, 12)}),
    ],
)
def test_patches_and_absolute_positions_of_hat(official, ours):
    torch.manual_seed(0)
    config = HATConfig(width=12, depths=(2,), heads=(2,), window=4, compress=3, squeeze=4, **ours)
    model = config.build(ImageInfo(scale=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        torch.testing.assert_close(outputs("hat", official_hat(model), HAT | official), model(IMAGES))


def test_plain_kernels_of_dlgsanet():
    torch.manual_seed(0)
    config = DLGSANetConfig(width=12, depths=(1,), dynamic=False, kernel=3, heads=2, crop=12)
    model = config.build(ImageInfo(scale=2)).eval()
    weights = official_dlgsanet(model)
    assert weights["deep_feature_extraction.0.body.0.IDynamicDWConv.conv.weight"].shape == (12, 1, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(outputs("dlgsanet", weights, DLGSANET | {"idynamic": False}), model(IMAGES))
    with pytest.raises(ConfigError, match=r"restormer_ffn_type=MLP is of no released network. Use GDFN"):
        outputs("dlgsanet", weights, DLGSANET | {"idynamic": False, "restormer_ffn_type": "MLP"})


def _renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for key, tensor in weights.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = tensor
    return found
