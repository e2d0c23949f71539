"""Losses of restored images, as pure functions of tensors. All values are in [0, 1].

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import ShapeError

KINDS = ("l1", "mse", "charbonnier", "focus_power", "focus_exponential")


def restoration_loss(
    restored: Tensor,
    target: Tensor,
    kind: str = "l1",
    *,
    frequency_weight: float = 0.0,
    focus_gamma: float = 1.0,
    epsilon: float = 1e-3,
) -> dict[str, Tensor]:
    """The training loss and its parts.

    Args:
        restored: What the model gives, [B, C, H, W].
        target: Truth of the same shape.
        kind: One of :data:`KINDS`: ``l1`` and ``mse`` are means; ``charbonnier`` is a smooth l1; the two focus losses
            weigh large errors up, see :func:`pixel_focus`.
        frequency_weight: Weight of the mean absolute error between Fourier spectra; 0 leaves it out.
        focus_gamma: Strength of the focus losses; 0 makes them l1.
        epsilon: Rounds the tip of ``charbonnier``.

    Returns:
        ``loss``, and its parts by name where there are several.

    Raises:
        ShapeError: The shapes differ.

    Source: Charbonnier et al. 1994; the frequency term as in Tu et al. 2022, "MAXIM", section 3.4.
    """
    if restored.shape != target.shape:
        raise ShapeError(f"restored images are {list(restored.shape)}, the truth is {list(target.shape)}")
    functions: dict[str, Callable[[], Tensor]] = {
        "l1": lambda: F.l1_loss(restored, target),
        "mse": lambda: F.mse_loss(restored, target),
        "charbonnier": lambda: charbonnier(restored, target, epsilon),
        "focus_power": lambda: pixel_focus(restored, target, focus_gamma, "power"),
        "focus_exponential": lambda: pixel_focus(restored, target, focus_gamma, "exponential"),
    }
    pixels = functions[kind]()
    if not frequency_weight:
        return {"loss": pixels}
    spectrum = frequency_l1(restored, target)
    return {"loss": pixels + frequency_weight * spectrum, kind: pixels, "frequency": spectrum}


def supervised_loss(pairs: Sequence[tuple[Tensor, Tensor]], kind: str = "l1", **settings: Any) -> dict[str, Tensor]:
    """The sum of the losses of several images that one network gives, and of their parts.

    Args:
        pairs: Restored images and the truth for each, as a network's ``supervised(images, truth)`` gives them.
        kind: See :func:`restoration_loss`.
        settings: See :func:`restoration_loss`.
    """
    losses = [restoration_loss(restored.float(), truth, kind, **settings) for restored, truth in pairs]
    return {name: torch.stack([loss[name] for loss in losses]).sum() for name in losses[0]}


def charbonnier(restored: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of ``sqrt(d^2 + epsilon^2)`` over all values."""
    return ((restored - target).square() + epsilon**2).sqrt().mean()


def pixel_focus(restored: Tensor, target: Tensor, gamma: float = 1.0, form: str = "power") -> Tensor:
    """Mean absolute error with more weight on large errors, which mosaics leave few of but visible ones.

    ``power`` weighs an error d by ``(d / mean d) ** gamma``, ``exponential`` by ``exp(gamma * d)`` over its mean. The
    weights carry no gradient; with a gamma of 0 all are one.

    Source: after Lu et al. 2024, "Event Camera Demosaicing via Swin Transformer and Pixel-focus Loss"; its constants
    are not published with code, so ``gamma`` is a setting here.
    """
    error = (restored - target).abs()
    with torch.no_grad():
        if form == "power":
            weights = (error / error.mean().clamp(min=1e-12)) ** gamma
        else:
            weights = torch.exp(gamma * error)
            weights = weights / weights.mean()
    return (weights * error).mean()


def frequency_l1(restored: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the orthonormal 2D Fourier transforms, real and imaginary parts alike.

    Computed in float32: half types have no such transform on every device.
    """
    with torch.autocast(restored.device.type, enabled=False):
        precise = torch.promote_types(restored.dtype, torch.float32)
        difference = torch.fft.rfft2(restored.to(precise) - target.to(precise), norm="ortho")
    return torch.view_as_real(difference).abs().mean()
