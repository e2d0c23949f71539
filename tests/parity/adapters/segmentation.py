"""Adapters of segmentation, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import segmentation_kmax, segmentation_mask2former, segmentation_pixel

ADAPTERS = {
    "fcn_head": segmentation_pixel.pixel_head,
    "kmax": segmentation_kmax.kmax,
    "mask2former": segmentation_mask2former.mask2former,
    "msdeformattn": segmentation_mask2former.msdeformattn,
    "msdeformattn_encoder": segmentation_mask2former.msdeformattn,
    "segformer_head": segmentation_pixel.pixel_head,
    "uper_head": segmentation_pixel.pixel_head,
}
