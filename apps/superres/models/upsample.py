"""From features to images: the last layers that the networks share.

Shape legend: B batch, D features, C channels of images, H x W input, s scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from apps.superres.models.config_checks import doubles
from apps.superres.models.info import ImageInfo
from graftwork.errors import ConfigError

CLASSICAL_WIDTH = 64
"""Features between the convolutions of :class:`ClassicalReconstruction` and :class:`NearestReconstruction`."""


class ClassicalReconstruction(nn.Module):
    """Convolutions between steps of pixel shuffling, each step doubling (or tripling) the resolution.

    Args:
        width: D, features.
        scale: A power of two, 1 included, or 3.
        channels: C.

    Source: Lim et al. 2017 (EDSR) and SwinIR's ``pixelshuffle``. Surprise: the leaky ReLU has slope 0.01.
    """

    def __init__(self, width: int, scale: int, channels: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(width, CLASSICAL_WIDTH, 3, padding=1)
        self.activation = nn.LeakyReLU(0.01)
        steps: list[nn.Module] = []
        for factor in shuffle_factors(scale):
            steps += [nn.Conv2d(CLASSICAL_WIDTH, CLASSICAL_WIDTH * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.steps = nn.Sequential(*steps)
        self.last = nn.Conv2d(CLASSICAL_WIDTH, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W] to [B, C, s * H, s * W]."""
        images: Tensor = self.last(self.steps(self.activation(self.before(features))))
        return images


class LightReconstruction(nn.Module):
    """One convolution and one pixel shuffle.

    Args:
        width: D, features.
        scale: s.
        channels: C.

    Source: SwinIR's ``pixelshuffledirect``.
    """

    def __init__(self, width: int, scale: int, channels: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.Conv2d(width, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W] to [B, C, s * H, s * W]."""
        images: Tensor = self.steps(features)
        return images


class NearestReconstruction(nn.Module):
    """Steps that repeat every pixel and convolve, each doubling the resolution, between convolutions.

    Args:
        width: D, features.
        scale: A power of two from 2.
        channels: C.

    Source: SwinIR's ``nearest+conv``, for photographs of low quality. Surprise: the first leaky ReLU has slope 0.01,
    the others 0.2.
    """

    def __init__(self, width: int, scale: int, channels: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(width, CLASSICAL_WIDTH, 3, padding=1)
        self.steps = nn.ModuleList(
            nn.Conv2d(CLASSICAL_WIDTH, CLASSICAL_WIDTH, 3, padding=1) for _ in range(scale.bit_length() - 1)
        )
        self.refine = nn.Conv2d(CLASSICAL_WIDTH, CLASSICAL_WIDTH, 3, padding=1)
        self.last = nn.Conv2d(CLASSICAL_WIDTH, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W] to [B, C, s * H, s * W]."""
        x = F.leaky_relu(self.before(features), 0.01)
        for step in self.steps:
            x = F.leaky_relu(step(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        images: Tensor = self.last(F.leaky_relu(self.refine(x), 0.2))
        return images


class ResidualReconstruction(nn.Module):
    """One convolution that gives what to add to the input image; keeps the resolution.

    Args:
        width: D, features.
        channels: C.

    Source: the head of SwinIR for denoising.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W] to a correction [B, C, H, W]."""
        correction: Tensor = self.last(features)
        return correction


def reconstruction(kind: str, width: int, info: ImageInfo) -> nn.Module:
    """Build the last layers.

    Args:
        kind: ``classical``, ``light``, ``nearest`` or ``residual``.
        width: D, features.
        info: Scale and channels.

    Raises:
        ConfigError: Unknown kind, or one that cannot give this scale.
    """
    if kind == "classical":
        return ClassicalReconstruction(width, info.scale, info.channels)
    if kind == "light":
        return LightReconstruction(width, info.scale, info.channels)
    if kind == "nearest" and doubles(info.scale):
        return NearestReconstruction(width, info.scale, info.channels)
    if kind == "residual" and info.scale == 1:
        return ResidualReconstruction(width, info.channels)
    raise ConfigError(
        f"upsampler={kind} cannot give scale={info.scale}",
        mend="Use classical or light, nearest for scale 2, 4, 8, ..., or residual for scale 1",
    )


def begin_at_zero(layers: nn.Module) -> None:
    """Let the last convolution of these layers give zeros until it has learnt something."""
    last = [module for module in layers.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def shuffle_factors(scale: int) -> list[int]:
    """Factors of the steps of pixel shuffling that make ``scale`` together.

    Raises:
        ConfigError: The scale is neither a power of two nor 3.
    """
    if scale == 3:
        return [3]
    if scale < 1 or scale & (scale - 1):
        raise ConfigError(
            f"upsampler=classical cannot give scale={scale}", mend="Use scale 1, 2, 3, 4, 8, ... or upsampler=light"
        )
    return [2] * (scale.bit_length() - 1)


def channels_of(tensors: Mapping[str, Tensor]) -> int | None:
    """The channels of the images that a network was built for, by its weights; None where the names do not tell.

    Args:
        tensors: Weights of a network by our names.
    """
    shallow = tensors.get("shallow.weight")
    return None if shallow is None else shallow.shape[1]


def scale_of(tensors: Mapping[str, Tensor]) -> int | None:
    """The scale that the last layers of a network were built for, by its weights; None where the names do not tell.

    Args:
        tensors: Weights of a network by our names.
    """
    prefix = "reconstruction."
    steps = [value for key, value in tensors.items() if re.fullmatch(rf"{prefix}steps\.\d+\.weight", key)]
    if f"{prefix}refine.weight" in tensors:
        return 2 ** len(steps)
    if f"{prefix}before.weight" in tensors:
        return math.prod(math.isqrt(len(step) // CLASSICAL_WIDTH) for step in steps)
    if f"{prefix}last.weight" in tensors:
        return 1
    channels = channels_of(tensors)
    return math.isqrt(len(steps[0]) // channels) if len(steps) == 1 and channels else None


def reach(kind: str, scale: int) -> int:
    """Input pixels to each side that an output pixel depends on through the last layers alone."""
    if kind not in ("classical", "nearest"):
        return 1
    # Each convolution reaches one pixel of its own resolution further.
    resolutions = [1, 1] if kind == "classical" else [1]
    for factor in shuffle_factors(scale):
        resolutions.append(resolutions[-1] * factor)
    resolutions += [scale, scale] if kind == "nearest" else []
    return math.ceil(sum(1 / resolution for resolution in resolutions))
