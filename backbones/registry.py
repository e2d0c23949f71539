"""Where the names of the trunk live, as dotted paths: listing and help need no torch. Standard library only."""

from __future__ import annotations

REGISTRIES = {
    "mixer": "backbones.sequence.config:MIXERS",
}
"""Kind of component to its :class:`graftwork.components.Registry`, to be read with ``import_dotted``."""

OPERATORS = {
    "attend": "backbones.attention.attend:attend",
    "auto_correlation": "backbones.attention.autocorrelation:auto_correlation",
    "flow_attention": "backbones.attention.flow:flow_attention",
    "prob_sparse_attention": "backbones.attention.probsparse:prob_sparse_attention",
    "scan_attention": "backbones.attention.scan:scan_attention",
    "selective_scan": "backbones.attention.selective_scan:selective_scan",
}
"""Name of an attention operator, as ``attention.used()`` and the benchmark show it, to its function."""
