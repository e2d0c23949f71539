"""Adapters of segmentation, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import segmentation_kmax, segmentation_pixel

ADAPTERS = {
    "fcn_head": segmentation_pixel.pixel_head,
    "kmax": segmentation_kmax.kmax,
    "segformer_head": segmentation_pixel.pixel_head,
    "uper_head": segmentation_pixel.pixel_head,
}
