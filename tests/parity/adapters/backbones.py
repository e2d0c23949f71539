"""Adapters of the vision backbones and their operators, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import backbones_biformer

ADAPTERS = {
    "biformer": backbones_biformer.biformer,
    "biformer_stl": backbones_biformer.biformer_stl,
}
