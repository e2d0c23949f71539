"""Adapters of the forecasting systems, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import forecasting_data, forecasting_models, forecasting_operators, forecasting_steps

ADAPTERS = {
    "itransformer": forecasting_models.itransformer,
    "iflowformer": forecasting_models.iflowformer,
    "s_mamba": forecasting_models.smamba,
    "patchtst": forecasting_models.patchtst,
    "dlinear": forecasting_models.dlinear,
    "mamba_forecaster": forecasting_models.mamba,
    "flowformer_uea": forecasting_models.flowformer_classifier,
    "informer": forecasting_steps.informer,
    "informer_tsl": forecasting_steps.informer_library,
    "autoformer": forecasting_steps.autoformer,
    "flow_attention": forecasting_operators.flow_attention,
    "mamba_block": forecasting_operators.mamba_block,
    "time_features": forecasting_data.time_features,
    "ett_protocol": forecasting_data.ett_protocol,
}
