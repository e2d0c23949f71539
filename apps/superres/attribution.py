"""Which input pixels a restored patch depends on: local attribution maps.

Source: Gu and Dong 2021, "Interpreting Super-Resolution Networks with Local Attribution Maps", sections 3.2 and 3.3.

Shape legend: C channels, H height, W width of the input; s scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLUR_SIGMA = 5.0
"""Of the image that the path starts from, in pixels."""


class Attribution(NamedTuple):
    """Importance of the pixels of one image.

    Attributes:
        weights: Of every input pixel, [H, W], 0 and above, summing to one.
        box: Top, left, height and width of the explained patch, in input pixels.
        diffusion_index: 0 where one pixel alone matters, 100 where all matter alike.
    """

    weights: Tensor
    box: tuple[int, int, int, int]
    diffusion_index: float


def local_attribution(
    model: nn.Module,
    image: Tensor,
    scale: int,
    *,
    side: int = 16,
    place: tuple[int, int] | None = None,
    steps: int = 20,
) -> Attribution:
    """Integrate the gradients of a patch's detail along a path from a blurred image to the image.

    Args:
        model: From [1, C, H, W] to [1, C, s * H, s * W].
        image: [C, H, W] in [0, 1].
        scale: Output pixels per input pixel and side.
        side: Of the patch, in output pixels.
        place: Its top left corner in output pixels; the middle of the image if omitted.
        steps: Points of the path.

    Returns:
        The importance of every input pixel for the edges inside the patch.
    """
    height, width = image.shape[1] * scale, image.shape[2] * scale
    side = min(side, height, width)
    top, left = place or ((height - side) // 2, (width - side) // 2)
    total = torch.zeros_like(image)
    for step in range(steps):
        sigma = BLUR_SIGMA * (1 - step / steps)
        nearer, here = _blurred(image, sigma - BLUR_SIGMA / steps), _blurred(image, sigma)
        point = here.clone().requires_grad_()
        with torch.enable_grad():
            restored = model(point[None])[0, :, top : top + side, left : left + side]
            (gradient,) = torch.autograd.grad(_detail(restored), point)
        total += gradient * (nearer - here)
    weights = total.abs().sum(0)
    weights = weights / weights.sum().clamp(min=1e-12)
    box = (top // scale, left // scale, -(-side // scale), -(-side // scale))
    return Attribution(weights.cpu(), box, diffusion_index(weights))


def diffusion_index(weights: Tensor) -> float:
    """How widely importance is spread: ``100 * (1 - Gini coefficient)`` of the weights [H, W]."""
    ordered = weights.cpu().double().flatten().sort().values  # some GPUs know no float64
    count = len(ordered)
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    gini = float((2 * ranks - count - 1) @ ordered / (count * ordered.sum().clamp(min=1e-30)))
    return 100 * (1 - gini)


def _detail(patch: Tensor) -> Tensor:
    """Sum of the absolute differences between neighbours in a patch [C, h, w]."""
    return patch.diff(dim=-1).abs().sum() + patch.diff(dim=-2).abs().sum()


def _blurred(image: Tensor, sigma: float) -> Tensor:
    if sigma <= 1e-3:
        return image
    radius = max(1, int(3 * sigma + 0.5))
    positions = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    bell = torch.exp(-positions.square() / (2 * sigma**2))
    kernel = (bell / bell.sum()).expand(image.shape[0], 1, 1, -1)
    padded = F.pad(image[None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=image.shape[0])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=image.shape[0])[0]
