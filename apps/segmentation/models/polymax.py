"""PolyMaX: dense prediction of anything by clusters; depth and normals of surfaces by kMaX-DeepLab's decoders.

Source: Yang et al. 2024, "PolyMaX: General Dense Prediction with Mask Transformer". Each query (cluster) has a value,
and every pixel mixes the values by its probabilities of belonging to the clusters, a softmax over queries. Nothing is
matched: the mixed map is compared with the target at once.

Unverified: the official code was not at hand. Known from the paper's summary are the mixing, its softmax and that the
decoder is kMaX-DeepLab's. Chosen here are the number of clusters (128), the losses (for depth the square root of a
scale-invariant logarithmic error, for normals one less the cosine; of the last output at every pixel, of the layers at
the positions of the masks) and the activations of the values (``exp`` for depth). Published numbers are no goal here.

Shape legend: B batch, N queries, V numbers of a value, H x W image, h x w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.head import MaskOutput, Size
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.kmax import build_decoders, choose_levels, sampled
from apps.segmentation.models.kmax_config import KMaXConfig
from apps.segmentation.models.kmax_layers import full
from apps.segmentation.models.kmax_panoptic import resize_masks
from backbones.attention.attend import without_autocast
from graftwork.errors import ConfigError, ShapeError, all_problems

Kind = Literal["depth", "normals"]
WIDTHS: dict[str, int] = {"depth": 1, "normals": 3}
"""Numbers of a value."""
SPREAD = 10.0
"""Largest logarithm of a depth, either way: e ** 10 m is beyond every sensor."""


class ClusterOutput(NamedTuple):
    """Values of clusters and where they hold.

    Args:
        values: Of each query, [B, N, V].
        masks: Logits, [B, N, h, w]; a softmax over queries says how much a pixel belongs to each.
        auxiliary: Outputs of the layers, first layer first, for the loss alone; empty outside of training.
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
    """Levels of a backbone to depth or normals, by the decoders of kMaX-DeepLab.

    Args:
        info: Channels and strides of the backbone; its classes are not looked at.
        kind: ``depth``, in metres, or ``normals``, of unit length.
        config: Sizes of the decoders, and whether layers are supervised; its losses and auxiliary head are not used.

    Raises:
        ConfigError: Unknown kind, values out of range, or levels that cannot be used.
    """

    def __init__(self, info: HeadInfo, kind: Kind, config: KMaXConfig | None = None) -> None:
        super().__init__()
        if kind not in WIDTHS:
            raise ConfigError(f"kind='{kind}' is unknown", mend=f"Use {' or '.join(WIDTHS)}")
        config = KMaXConfig() if config is None else config
        if problems := list(config.problems()):
            raise all_problems(problems)
        self.kind, self.supervise_layers = kind, config.supervise_layers
        self.places = choose_levels(info.strides, len(config.stage_layers))
        self.channels = [info.channels[place] for place in self.places]
        self.stride = info.strides[self.places[-1]]
        self.pixel_decoder, self.decoder = build_decoders(config, self.channels, WIDTHS[kind])

    def forward(self, levels: Sequence[Tensor]) -> ClusterOutput:
        """Levels of the backbone, each [B, channels, ceil(H / stride), ceil(W / stride)], to clusters.

        Raises:
            ShapeError: Fewer levels than the backbone was said to have, or of other channels.
        """
        chosen = [levels[place] for place in self.places if place < len(levels)]
        found = [level.shape[1] for level in chosen]
        if found != self.channels:
            raise ShapeError(f"levels {self.places}: expected channels {self.channels}, got {found}")
        last: MaskOutput = self.decoder(self.pixel_decoder(chosen), self.training and self.supervise_layers)
        return self._output(last)._replace(auxiliary=tuple(self._output(layer) for layer in last.auxiliary))

    def _output(self, output: MaskOutput) -> ClusterOutput:
        values = full(output.classes)
        if self.kind == "depth":
            values = values.clamp(-SPREAD, SPREAD).exp()
        else:
            values = F.normalize(values, dim=-1, eps=1e-6)
        return ClusterOutput(values, output.masks)

    def _mixed(self, values: Tensor, masks: Tensor) -> Tensor:
        mixed = mix_clusters(values, masks)
        return F.normalize(mixed, dim=1, eps=1e-6) if self.kind == "normals" else mixed

    def predict(self, output: ClusterOutput, size: Size) -> Tensor:
        """Values of the pixels of images of ``size``: depths [B, 1, H, W] or unit normals [B, 3, H, W]."""
        return self._mixed(output.values, resize_masks(full(output.masks), size, self.stride))

    def loss(self, output: ClusterOutput, target: Tensor) -> Tensor:
        """Mean over the outputs of the loss of :func:`depth_loss` or :func:`normals_loss`.

        The last output is compared with every pixel, the layers with those at the positions of the masks: masks of the
        size of images take sixteen times the memory.

        Args:
            output: Of :meth:`forward`.
            target: [B, 1 or 3, H, W] at the size of the images.
        """
        compare = depth_loss if self.kind == "depth" else normals_loss
        losses = [compare(self.predict(output, (target.shape[-2], target.shape[-1])), target)]
        size = (output.masks.shape[-2], output.masks.shape[-1])
        small = sampled(target.flatten(0, 1), size, self.stride).unflatten(0, target.shape[:2])
        losses += [compare(self._mixed(layer.values, layer.masks), small) for layer in output.auxiliary]
        return torch.stack(losses).mean()
