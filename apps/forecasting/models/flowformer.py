"""Flowformer as a forecaster: flow-attention in the encoder, the decoder, and between them.

Paper: Wu et al., "Flowformer: Linearizing Transformers with Conservation Flows", ICML 2022. Origin: thuml/Flowformer,
MIT. Three surprises: no softmax over queries times keys is ever formed, cost is linear in the number of steps; the
bound on the competition logits differs by task, and is absent for time series; causal flow-attention is an
approximation, since the flow out of a source counts queries up to its own step only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.forecasting.models.info import SeriesInfo
from apps.forecasting.models.transformer import StepTransformer
from backbones.sequence.base import Mixer
from backbones.sequence.flow import FlowMixer

if TYPE_CHECKING:
    from apps.forecasting.models.config import FlowformerConfig


class Flowformer(StepTransformer):
    """Encoder-decoder with flow-attention.

    Args:
        config: Sizes of the network.
        info: Sizes of the series.
        decoder_variates: Width of ``decoder_input``; as many as the history's if omitted.
    """

    def __init__(self, config: FlowformerConfig, info: SeriesInfo, decoder_variates: int | None = None) -> None:
        def mixer(causal: bool) -> Mixer:
            return FlowMixer(config.width, heads=config.heads, clamp=config.clamp, causal=causal)

        super().__init__(config, info, mixer, decoder_variates)
