"""Adapter of bicubic resizing and the scores of images: the degradation and the evaluation of the reference code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.superres.quality import luma, psnr, ssim, ycbcr
from datamodules.superres.bicubic import imresize, resize_taps
from tests.parity.case import Case

Pixels = NDArray[Any]


def imresize_metrics(case: Case) -> dict[str, Tensor]:
    """Every output that the names of the golden tensors ask for."""
    bytes_ = case.inputs["hr_uint8_hwc_rgb"].numpy()
    outputs = {}
    for name, golden in case.expected.items():
        for pattern, make in _MAKERS:
            if found := re.fullmatch(pattern, name):
                outputs[name] = make(case, bytes_, golden, *found.groups())
                break
    return outputs


def _shrunk(case: Case, bytes_: Pixels, golden: Tensor, scale: str) -> Tensor:
    return torch.from_numpy(imresize(_scaled(_cropped(bytes_, int(scale))), 1 / int(scale)))


def _shrunk_bytes(case: Case, bytes_: Pixels, golden: Tensor, scale: str) -> Tensor:
    return _bytes(imresize(_scaled(_cropped(bytes_, int(scale))), 1 / int(scale), rounding="output"))


def _shrunk_whole(case: Case, bytes_: Pixels, golden: Tensor, scale: str) -> Tensor:
    return torch.from_numpy(imresize(_scaled(bytes_), 1 / int(scale)))


def _enlarged_bytes(case: Case, bytes_: Pixels, golden: Tensor, scale: str) -> Tensor:
    small = imresize(_scaled(_cropped(bytes_, int(scale))), 1 / int(scale), rounding="output")
    return _bytes(imresize(small, int(scale), rounding="output"))


def _enlarged(case: Case, bytes_: Pixels, golden: Tensor, whole: str, tenths: str) -> Tensor:
    """The reference enlarged the top left corner; its size follows from that of the result."""
    factor = float(f"{whole}.{tenths}")
    height, width = (math.floor(side / factor + 1e-9) for side in golden.shape[:2])
    return torch.from_numpy(imresize(_scaled(bytes_[:height, :width]), factor))


def _scores(case: Case, bytes_: Pixels, golden: Tensor, scale: str) -> Tensor:
    ours = _enlarged_bytes(case, bytes_, golden, scale).numpy()
    truth, border = _cropped(bytes_, int(scale)), int(scale)
    scores = [measure(ours, truth, border=border, colour=colour) for colour in ("y", "rgb") for measure in (psnr, ssim)]
    return torch.stack(scores)


def _first_rows(case: Case, bytes_: Pixels, golden: Tensor, scale: str) -> Tensor:
    height = _cropped(bytes_, int(scale)).shape[0]
    return torch.from_numpy(resize_taps(height, 1 / int(scale))[1][: len(golden)]).float()


def _luma(case: Case, bytes_: Pixels, golden: Tensor) -> Tensor:
    return luma(bytes_)[0].float()


def _ycbcr(case: Case, bytes_: Pixels, golden: Tensor) -> Tensor:
    return (ycbcr(bytes_) / 255).permute(1, 2, 0).float()


_MAKERS: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    (r"down_x(\d+)", _shrunk),
    (r"down_x(\d+)_uint8", _shrunk_bytes),
    (r"down_x(\d+)_unmodcropped", _shrunk_whole),
    (r"up_x(\d+)_uint8", _enlarged_bytes),
    (r"up_x(\d+)p(\d+)", _enlarged),
    (r"metrics_x(\d+)_psnrY_ssimY_psnrRGB_ssimRGB", _scores),
    (r"kernel_weights_x(\d+)_first_rows", _first_rows),
    (r"y_channel_float32_0_255", _luma),
    (r"ycbcr_float32_0_1", _ycbcr),
)


def _cropped(pixels: Pixels, scale: int) -> Pixels:
    return pixels[: pixels.shape[0] // scale * scale, : pixels.shape[1] // scale * scale]


def _scaled(pixels: Pixels) -> Pixels:
    return pixels.astype(np.float32) / 255


def _bytes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.round(pixels * 255).astype(np.uint8))
