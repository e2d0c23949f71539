"""PolyMaX: dense prediction of anything by clusters; depth and normals of surfaces by Mask2Former's decoders.

Source: Yang et al. 2024, "PolyMaX: General Dense Prediction with Mask Transformer". Each query (cluster) has a value,
and every pixel mixes the values by its probabilities of belonging to the clusters, a softmax over queries. Nothing is
matched: the mixed map is compared with the target at once.

Unverified: the official code was not at hand. Known from the paper's summary are the mixing and its softmax; the number
of clusters, the losses and the activations of the values are chosen here (128; the square root of a scale-invariant
logarithmic error for depth; one less the cosine for normals; ``exp`` for depth), and the paper's decoder is
kMaX-DeepLab's, not this one. Published numbers are no goal of this file.

Shape legend: B batch, N queries, V numbers of a value, H x W image, h x w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.head import Size
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mask2former import masked_decoder, pixel_decoder
from apps.segmentation.models.mask2former_config import Mask2FormerConfig
from apps.segmentation.models.mask2former_decoder import Prediction
from apps.segmentation.models.mask2former_panoptic import resize_masks
from backbones.attention.attend import without_autocast
from graftwork.errors import ConfigError, ShapeError, all_problems

Kind = Literal["depth", "normals"]
WIDTHS: dict[str, int] = {"depth": 1, "normals": 3}
"""Numbers of a value."""
CLUSTERS = 128
"""Queries that a configuration should ask for where nothing else is known."""
SPREAD = 10.0
"""Largest logarithm of a depth, either way: e ** 10 m is beyond every sensor."""


class ClusterOutput(NamedTuple):
    """Values of clusters and where they hold.

    Args:
        values: Of each query, [B, N, V].
        masks: Logits, [B, N, h, w]; a softmax over queries says how much a pixel belongs to each.
        auxiliary: Outputs of earlier layers, first layer first, for the loss alone; empty outside of training.
    """

    values: Tensor
    masks: Tensor
    auxiliary: tuple[ClusterOutput, ...] = ()


def mix_clusters(values: Tensor, masks: Tensor) -> Tensor:
    """Values of pixels from those of clusters.

    Args:
        values: [B, N, V].
        masks: Logits, [B, N, H, W].

    Returns:
        [B, V, H, W], a convex combination at each pixel, at least float32.

    Raises:
        ShapeError: Tensors that do not fit each other; the message names both shapes.
    """
    if values.dim() != 3 or masks.dim() != 4 or values.shape[:2] != masks.shape[:2]:
        raise ShapeError(
            f"clusters: expected values [batch, queries, numbers] and masks [batch, queries, height, width], got "
            f"{list(values.shape)} and {list(masks.shape)}"
        )
    dtype = torch.promote_types(values.dtype, torch.float32)
    with without_autocast(values):
        shares = masks.to(dtype).flatten(2).softmax(1)  # B, N, H W
        return (values.to(dtype).transpose(1, 2) @ shares).unflatten(2, masks.shape[-2:])


def depth_loss(depths: Tensor, target: Tensor, balance: float = 0.85) -> Tensor:
    """Square root of the scale-invariant logarithmic error.

    Args:
        depths: Predicted, [B, 1, H, W], above 0, in metres.
        target: Measured, the same shape; 0 and below, and what is not finite, is unknown.
        balance: Share of a common factor of all depths that is forgiven, from 0 to 1.

    Returns:
        A scalar; 0 where nothing is known.

    Raises:
        ShapeError: Tensors of different shapes.

    Source: Eigen et al. 2014, equation 3; its root as in Bhat et al. 2021 (AdaBins). Differs: not scaled by 10.
    """
    _check("depths", depths, target)
    known = (target > 0) & target.isfinite()
    error = torch.where(known, depths.clamp(min=1e-6).log() - torch.where(known, target, 1.0).log(), 0.0)
    count = known.sum().clamp(min=1)
    variance = error.square().sum() / count - balance * (error.sum() / count).square()
    return variance.clamp(min=1e-12).sqrt() * (known.any() & (variance > 1e-12))


def normals_loss(normals: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of one less the cosine.

    Args:
        normals: Predicted, [B, 3, H, W], of any length.
        target: Of unit length, the same shape; vectors of length 0 are unknown.

    Returns:
        A scalar from 0 to 2; 0 where nothing is known.

    Raises:
        ShapeError: Tensors of different shapes.
    """
    _check("normals", normals, target)
    known = target.square().sum(1) > 1e-6
    cosine = F.cosine_similarity(normals, target, dim=1, eps=1e-6)
    return torch.where(known, 1 - cosine, 0.0).sum() / known.sum().clamp(min=1)


def _check(name: str, found: Tensor, target: Tensor) -> None:
    if found.shape != target.shape:
        raise ShapeError(f"{name}: expected the target's {list(target.shape)}, got {list(found.shape)}")


class ClusterHead(nn.Module):
    """Levels of a backbone to depth or normals, by the decoders of Mask2Former.

    Args:
        info: Channels and strides of the backbone; its classes are not looked at.
        kind: ``depth``, in metres, or ``normals``, of unit length.
        config: Sizes of the decoders; those with :data:`CLUSTERS` queries if omitted. Its matching and its exits are
            not used.

    Raises:
        ConfigError: Unknown kind, values out of range, or levels that cannot be used.
    """

    def __init__(self, info: HeadInfo, kind: Kind, config: Mask2FormerConfig | None = None) -> None:
        super().__init__()
        if kind not in WIDTHS:
            raise ConfigError(f"kind='{kind}' is unknown", mend=f"Use {' or '.join(WIDTHS)}")
        config = Mask2FormerConfig(queries=CLUSTERS) if config is None else config
        if problems := list(config.problems()):
            raise all_problems(problems)
        self.kind, self.deep_supervision = kind, config.deep_supervision
        self.pixel_decoder = pixel_decoder(info, config)
        plan = self.pixel_decoder.plan
        self.decoder = masked_decoder(config, outputs=WIDTHS[kind], maps=plan.read)
        self.stride = plan.stride

    def forward(self, levels: Sequence[Tensor]) -> ClusterOutput:
        """Levels of the backbone, each [B, channels, ceil(H / stride), ceil(W / stride)], to clusters."""
        every = self.training and self.deep_supervision
        outputs = [self._output(found) for found in self.decoder(*self.pixel_decoder(levels), every=every)]
        return outputs[-1]._replace(auxiliary=tuple(outputs[:-1]))

    def _output(self, prediction: Prediction) -> ClusterOutput:
        values = prediction.values.to(torch.promote_types(prediction.values.dtype, torch.float32))
        if self.kind == "depth":
            values = values.clamp(-SPREAD, SPREAD).exp()
        else:
            values = F.normalize(values, dim=-1, eps=1e-6)
        return ClusterOutput(values, prediction.masks)

    def predict(self, output: ClusterOutput, size: Size) -> Tensor:
        """Values of the pixels of images of ``size``: depths [B, 1, H, W] or unit normals [B, 3, H, W]."""
        mixed = mix_clusters(output.values, resize_masks(output.masks.float(), size, self.stride))
        return F.normalize(mixed, dim=1, eps=1e-6) if self.kind == "normals" else mixed

    def loss(self, output: ClusterOutput, target: Tensor) -> Tensor:
        """Mean over the outputs of the loss of :func:`depth_loss` or :func:`normals_loss`.

        Args:
            output: Of :meth:`forward`.
            target: [B, 1 or 3, H, W] at the size of the images.
        """
        size = (target.shape[-2], target.shape[-1])
        compare = depth_loss if self.kind == "depth" else normals_loss
        outputs = (*output.auxiliary, output)
        return torch.stack([compare(self.predict(one, size), target) for one in outputs]).mean()
