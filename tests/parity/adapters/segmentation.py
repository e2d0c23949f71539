"""Adapters of segmentation, from official hyper-parameters to our outputs."""

from __future__ import annotations

from tests.parity.adapters import (
    segmentation_clustering,
    segmentation_kmax,
    segmentation_mask2former,
    segmentation_pixel,
    segmentation_transkd,
)

ADAPTERS = {
    "fcn_head": segmentation_pixel.pixel_head,
    "kmax": segmentation_kmax.kmax,
    "mask2former": segmentation_mask2former.mask2former,
    "msdeformattn": segmentation_mask2former.msdeformattn,
    "msdeformattn_encoder": segmentation_mask2former.msdeformattn,
    "mmseg_segmentor": segmentation_pixel.segmentor,
    "segformer_head": segmentation_pixel.pixel_head,
    "token_clustering": segmentation_clustering.token_clustering,
    "transkd": segmentation_transkd.transkd,
    "uper_head": segmentation_pixel.pixel_head,
}
