"""Where the names of the trunk live, as dotted paths: listing and help need no torch. Standard library only."""

from __future__ import annotations

REGISTRIES = {
    "mixer": "backbones.sequence.config:MIXERS",
    "backbone": "backbones.vision.config:BACKBONES",
}
"""Kind of component to its :class:`graftwork.components.Registry`, to be read with ``import_dotted``."""

OPERATORS = {
    "attend": "backbones.attention.attend:attend",
    "attend_packed": "backbones.attention.packed:attend_packed",
    "auto_correlation": "backbones.attention.autocorrelation:auto_correlation",
    "channel_attention": "backbones.attention.channel:channel_attention",
    "cluster_tokens": "backbones.vision.token_clustering:cluster_tokens",
    "deformable_attention": "backbones.attention.deformable:deformable_attention",
    "dynamic_convolution": "backbones.attention.dynamic:dynamic_convolution",
    "flow_attention": "backbones.attention.flow:flow_attention",
    "gated_linear_attention": "backbones.attention.gated_linear:gated_linear_attention",
    "grid_attention": "backbones.attention.window:grid_attention",
    "neighborhood_attention": "backbones.attention.neighborhood:neighborhood_attention",
    "overlapping_window_attention": "backbones.attention.window:overlapping_window_attention",
    "prob_sparse_attention": "backbones.attention.probsparse:prob_sparse_attention",
    "reconstruct_tokens": "backbones.vision.token_clustering:reconstruct_tokens",
    "routed_attention": "backbones.attention.routed:routed_attention",
    "scan_attention": "backbones.attention.scan:scan_attention",
    "selective_scan": "backbones.attention.selective_scan:selective_scan",
    "window_attention": "backbones.attention.window:window_attention",
}
"""Name of an attention operator, as ``attention.used()`` and the benchmark show it, to its function."""
