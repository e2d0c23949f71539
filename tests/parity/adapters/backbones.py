"""Adapters of the vision backbones and their operators, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import backbones_biformer, backbones_dinat, backbones_vig

ADAPTERS = {
    "biformer": backbones_biformer.biformer,
    "biformer_stl": backbones_biformer.biformer_stl,
    "dinat": backbones_dinat.dinat,
    "dinat_isotropic": backbones_dinat.dinat_isotropic,
    "dinat_s": backbones_dinat.dinat_s,
    "gated_linear_attention": backbones_vig.gated_linear,
    "nat": backbones_dinat.dinat,
    "nat_isotropic": backbones_dinat.dinat_isotropic,
    "neighborhood_attention": backbones_dinat.attention,
    "vig": backbones_vig.vig,
    "vig_h": backbones_vig.vig_h,
}
