"""S-Mamba: the skeleton of iTransformer with two selective scans over the variates.

Paper: Wang et al., "Is Mamba Effective for Time Series Forecasting?", Neurocomputing 2024. Origin:
wzhwzhwzh0921/S-D-Mamba, published without a licence file; written here from the paper's formulas. Three surprises:
the scan runs over *variates*, so their order matters; the blocks use expand 1 and kernel 2, unlike Mamba's own
defaults, and their branch has no dropout; official checkpoints hold three modules per layer that are never used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.itransformer import VariateForecaster
from backbones.sequence.base import Mixer
from backbones.sequence.selective_scan import SelectiveScanMixer

if TYPE_CHECKING:
    from apps.forecasting.models.config import SMambaConfig


class SMamba(VariateForecaster):
    """S-Mamba.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
    """

    def __init__(self, config: SMambaConfig, info: SeriesInfo) -> None:
        def mixer() -> Mixer:
            return SelectiveScanMixer(
                config.width, state_size=config.state_size, kernel=2, expand=1, bidirectional=True
            )

        super().__init__(config, info, mixer, mixer_dropout=0.0)
