"""Adapters of super-resolution and restoration, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import superres_cfsr, superres_craft, superres_dlgsanet, superres_hat, superres_metrics

ADAPTERS = {
    "cfsr": superres_cfsr.cfsr,
    "craft": superres_craft.craft,
    "craft_rect_window_attention": superres_craft.rectangle_attention,
    "dlgsanet": superres_dlgsanet.dlgsanet,
    "hat": superres_hat.hat,
    "imresize_metrics": superres_metrics.imresize_metrics,
}
