"""Instance normalisation: each window is forecast relative to its own level and spread.

Source: Liu et al. 2022 (Non-stationary Transformers); the form without learned scale that iTransformer uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5


class Level(NamedTuple):
    """Mean and spread of a window, each [B, 1, N]."""

    mean: Tensor
    sigma: Tensor

    def restore(self, values: Tensor) -> Tensor:
        """Bring forecasts [B, S, N] back to the units of the window."""
        return values * self.sigma + self.mean

    def restore_quantiles(self, quantiles: Tensor) -> Tensor:
        """The same for [B, S, N, Q]; their order is kept."""
        return quantiles * self.sigma.unsqueeze(-1) + self.mean.unsqueeze(-1)


def standardise(history: Tensor) -> tuple[Tensor, Level]:
    """Remove mean and spread over time, per window and variate.

    Args:
        history: [B, L, N].

    Returns:
        The standardised window and what :meth:`Level.restore` needs. No gradient flows through the mean; it does
        through sigma = sqrt(population variance + 1e-5).
    """
    mean = history.mean(dim=1, keepdim=True).detach()
    centred = history - mean
    sigma = torch.sqrt(centred.var(dim=1, keepdim=True, unbiased=False) + EPSILON)
    return centred / sigma, Level(mean, sigma)
