"""Mamba forecaster: selective scans over time steps.

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023. Origin: the forecaster of
thuml/Time-Series-Library, MIT. Three surprises: the forecast is the *last S outputs* of the scanned history, so the
horizon cannot exceed the look-back; layers are pre-norm with RMSNorm, unlike all others here; the library calls the
state size ``d_ff``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from apps.forecasting.models.encoder_decoder import step_embedding
from apps.forecasting.models.forecast import Forecast, Forecaster
from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.normalisation import standardise
from backbones.sequence.selective_scan import SelectiveScanMixer
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from apps.forecasting.models.config import MambaConfig


class MambaLayer(nn.Module):
    """x + scan(RMSNorm(x)).

    Args:
        config: Sizes of the network.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.mixer = SelectiveScanMixer(
            config.width, state_size=config.state_size, kernel=config.kernel, expand=config.expand, causal=True
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        mixed, _ = self.mixer(self.norm(tokens))
        return tokens + mixed


class MambaForecaster(Forecaster):
    """Mamba layers over the time steps of the standardised history.

    Args:
        config: Sizes of the network.
        info: Sizes of the series; the horizon is at most the look-back.
        columns: Series the last Linear gives: one for each variate if omitted, or one curve that every variate gets at
            its own level and spread, which is what official weights with one output mean.

    Raises:
        ConfigError: ``columns`` is neither one nor the number of variates.
    """

    def __init__(self, config: MambaConfig, info: SeriesInfo, columns: int | None = None) -> None:
        super().__init__(info)
        columns = columns or info.variates
        if columns not in (1, info.variates):
            mend = f"Use 1 or {info.variates}"
            raise ConfigError(f"{columns} output columns do not fit the {info.variates} variates", mend=mend)
        self.embedding = step_embedding(config, info, info.variates, info.look_back)
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.projection = nn.Linear(config.width, columns, bias=False)

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        decoder_input: Tensor | None = None,
        decoder_marks: Tensor | None = None,
    ) -> Forecast:
        """Forecast the next S steps, see :meth:`Forecaster.forward`.

        Only ``history`` and ``history_marks`` have an effect.
        """
        self.check_history(history)
        normed, level = standardise(history)
        tokens = self.embedding(normed, history_marks)
        for layer in self.layers:
            tokens = layer(tokens)
        values = self.projection(self.norm(tokens)[:, -self.info.horizon :])
        return Forecast(self.scored(level.restore(values)))
