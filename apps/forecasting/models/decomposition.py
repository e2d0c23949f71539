"""Series decomposition into a moving average (trend) and the rest (seasonal).

Source: Wu et al. 2021 (Autoformer), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graftwork.errors import ConfigError


def check_window(window: int) -> None:
    """Refuse a moving average that would shorten the series.

    Raises:
        ConfigError: The window is even or below 1.
    """
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"moving_average={window} must be odd", mend=f"Try moving_average={max(1, window + 1)}")


class Decomposition(nn.Module):
    """Moving average over time with the first and the last step repeated at the ends.

    Args:
        window: Steps averaged; odd.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        check_window(window)
        self.window = window

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Split [B, L, N] into (seasonal, trend) of the same shape; their sum is the input."""
        half = self.window // 2
        first = series[:, :1].expand(-1, half, -1)
        last = series[:, -1:].expand(-1, half, -1)
        padded = torch.cat([first, series, last], dim=1).transpose(1, 2)  # B, N, L + window - 1
        trend = nn.functional.avg_pool1d(padded, self.window, stride=1).transpose(1, 2)
        return series - trend, trend
