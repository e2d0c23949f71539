"""Pixels drawn for a loss, those of small segments more often.

Shape legend: P pixels, K drawn ones, S segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -99999.0
"""Logit of void pixels: drawn only where there are too few others."""


def sampling_logits(masks: Tensor, balance: float) -> Tensor:
    """How likely each pixel is to be drawn.

    Args:
        masks: Segments, [S, P] from 0 to 1, at most 1 in sum; a pixel in none is void.
        balance: Exponent: a pixel counts as (P / pixels of its segment) to this power.

    Returns:
        Logits, [P].
    """
    areas = masks.sum(1)
    rarity = balance * torch.log(masks.shape[1] / areas.clamp(min=1.0))  # S
    owned = masks.sum(0)
    # Pixels of two segments, whose masks are normalised, count as between them.
    logits = rarity @ masks / owned.clamp(min=1e-6)
    return torch.where(owned > 0, logits, NEVER)


def draw_pixels(logits: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw pixels without replacement, as softmax probabilities say.

    Args:
        logits: [P].
        count: K; 0, or P and more, takes all pixels in their order.
        generator: Where random numbers come from, on the device of the logits; torch's own if omitted.

    Returns:
        Numbers of the pixels, [K] int64.

    Source: the Gumbel top-k trick (Kool et al. 2019, section 2.3).
    """
    pixels = logits.shape[0]
    if count == 0 or count >= pixels:
        return torch.arange(pixels, device=logits.device)
    waits = torch.empty_like(logits).exponential_(generator=generator)
    gumbel = -waits.clamp(min=torch.finfo(logits.dtype).tiny).log()
    return (logits + gumbel).topk(count).indices
