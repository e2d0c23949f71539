"""Transformer decoder of kMaX-DeepLab: queries are the centres of clusters of pixels.

Paper: Yu et al., "k-means Mask Transformer", ECCV 2022, section 3. Three surprises: a pixel goes to one query alone,
the argmax over queries, and queries take the sum, not the mean, of their pixels; no gradient passes the assignment, so
a layer's masks are trained by its own losses or not at all; self-attention looks at the queries as they were before
they took their pixels.

Shape legend: B batch, D features of a query, N queries, C classes, F features that masks are compared by, h x w map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.segmentation.models.head import MaskOutput
from apps.segmentation.models.kmax_clusters import cluster_sizes, cluster_sums
from apps.segmentation.models.kmax_layers import (
    BatchNorm,
    ConvNorm,
    QueryConvNorm,
    affine,
    fixed,
    full,
    init_truncated,
    resize,
    table,
)
from backbones.attention.attend import attend
from backbones.vision.layers import DropPath

if TYPE_CHECKING:
    from apps.segmentation.models.kmax_config import KMaXConfig

VOID_PRIOR = 0.9
"""Share of queries expected to have no object, which the logit of no object starts from."""


def prior_logit(classes: int) -> float:
    """Added to the logit of no object where there are so many classes, in training and afterwards."""
    return math.log(classes * VOID_PRIOR / (1 - VOID_PRIOR))


class LayerOutput(NamedTuple):
    """What a layer gives.

    Args:
        queries: [B, D, N].
        output: Masks and classes before the layer, at the size of its map; None where no loss asks for them.
    """

    queries: Tensor
    output: MaskOutput | None


class Predictor(nn.Module):
    """Classes and masks of queries.

    Args:
        pixels: Channels of the map.
        queries: Features of the queries.
        outputs: Numbers that every query gives: C + 1 for classes.
        config: Further widths.
        void_logit: Added to the last of these numbers.
    """

    def __init__(self, pixels: int, queries: int, outputs: int, config: KMaXConfig, void_logit: float = 0.0) -> None:
        super().__init__()
        width = config.mask_width
        self.depthwise = ConvNorm(pixels, pixels, 5, depthwise=True)
        self.hidden = ConvNorm(pixels, config.mask_hidden)
        self.features = ConvNorm(config.mask_hidden, width, activate=False, bias=True, std=0.01)
        self.kernels = QueryConvNorm(queries, width, activate=False)
        self.mask_norm = BatchNorm(1, scale=0.1)
        self.classes = nn.Conv1d(queries, outputs, 1)
        init_truncated(self.classes.weight, 0.01)
        nn.init.zeros_(self.classes.bias)  # type: ignore[arg-type]
        self.void_logit = void_logit

    def forward(self, pixels: Tensor, masks: Tensor, classes: Tensor) -> MaskOutput:
        """Classify queries and compare them with pixels.

        Args:
            pixels: [B, pixels, h, w].
            masks: Queries that masks are made of, [B, queries, N].
            classes: Queries that are classified, [B, queries, N].

        Returns:
            Classes [B, N, C + 1], masks [B, N, h, w] and features of length 1, [B, F, h, w].
        """
        features = F.normalize(self._features(pixels), dim=1, eps=1e-12)
        masks = self.kernels(masks).mT @ features.flatten(2)  # B, N, h * w
        masks = self.mask_norm(masks.unsqueeze(1)).squeeze(1).unflatten(2, pixels.shape[2:])
        logits = self.classes(classes).mT
        if self.void_logit:
            logits = torch.cat([logits[..., :-1], logits[..., -1:] + self.void_logit], dim=-1)
        return MaskOutput(classes=logits, masks=masks, features=features)

    def _features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.features(self.hidden(self.depthwise(pixels)))
        return features

    @torch.no_grad()
    def assign(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Query with the largest mask logit at every pixel, [B, h * w]; arguments as for :meth:`forward`.

        The length of a pixel's features is the same for all queries, and an evaluated norm is monotonous: neither
        changes which query is the largest, but for the norm's sign.
        """
        if not fixed(self.mask_norm, "cluster_sums"):
            return self(pixels, masks, masks).masks.flatten(2).argmax(1)
        kernels = self.kernels(masks) * self.mask_norm.weight.sign()
        return (kernels.mT @ self._features(pixels).flatten(2)).argmax(1)


class ClusterUpdate(nn.Module):
    """Values of pixels, summed by cluster.

    Args:
        width: Channels of pixels and values.
        queries: Features of the queries, D.
    """

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.values = ConvNorm(width, width, activate=False)
        self.norm = BatchNorm(width)
        self.out = QueryConvNorm(width, queries, activate=False, scale=0.0)

    def forward(self, pixels: Tensor, assignment: Tensor, clusters: int) -> Tensor:
        """Map [B, width, h, w] and the cluster of every pixel [B, h * w] to [B, D, N]."""
        update: Tensor = self.out(self.norm(self._sums(pixels, assignment, clusters)))
        return update

    def _sums(self, pixels: Tensor, assignment: Tensor, clusters: int) -> Tensor:
        if not fixed(self.values.norm, "cluster_sums"):
            return cluster_sums(self.values(pixels).flatten(2), assignment, clusters)
        # The projection is affine then: it may follow the sum, on N clusters instead of all pixels.
        sums = cluster_sums(pixels.flatten(2), assignment, clusters)
        sizes = cluster_sizes(assignment, clusters).to(sums.dtype)
        factor, offset = affine(self.values.norm)
        with torch.autocast(sums.device.type, enabled=False):
            projected = (factor[:, None] * self.values.conv.weight.flatten(1)).to(sums.dtype) @ sums
            return projected + offset.to(sums.dtype)[:, None] * sizes[:, None]


class QueryAttention(nn.Module):
    """Attention among queries, with norms on similarities and values.

    Args:
        inputs: Features of the projected queries.
        queries: Features given, D.
        keys: Features of the keys of all heads; values have twice as many.
        heads: Number of heads.
    """

    def __init__(self, inputs: int, queries: int, keys: int, heads: int) -> None:
        super().__init__()
        self.heads, self.widths = heads, (keys, keys, 2 * keys)
        self.qkv = QueryConvNorm(inputs, 4 * keys, activate=False, std=inputs**-0.5)
        self.similarity_norm = BatchNorm(heads)
        self.value_norm = BatchNorm(2 * keys)
        self.out = QueryConvNorm(2 * keys, queries, activate=False, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, N] to [B, D, N]."""
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in self.qkv(x).split(self.widths, dim=1))  # B, h, d, N
        if fixed(self.similarity_norm, "query_attention"):
            # A factor per head, and an offset that the softmax does not see.
            q = q * affine(self.similarity_norm)[0].to(q.dtype)[:, None, None]
            mixed = attend(*(part.permute(0, 3, 1, 2) for part in (q, k, v)), scale=1.0).flatten(2).mT
        else:
            weights = full(self.similarity_norm(q.mT @ k)).softmax(-1).to(v.dtype)  # B, h, N, N
            mixed = (v @ weights.mT).flatten(1, 2)
        update: Tensor = self.out(F.gelu(self.value_norm(mixed)))
        return update


class KMaXLayer(nn.Module):
    """Queries take their pixels, look at one another, and pass a feed-forward network.

    Args:
        pixels: Channels of the map.
        outputs: See :class:`Predictor`.
        config: Further widths.
        void_logit: See there.
    """

    def __init__(self, pixels: int, outputs: int, config: KMaXConfig, void_logit: float = 0.0) -> None:
        super().__init__()
        inner, width = 2 * config.key_width, config.width
        self.pixel_in = ConvNorm(pixels, inner)
        self.query_in = QueryConvNorm(width, inner)
        self.predictor = Predictor(inner, inner, outputs, config, void_logit)
        # no gradient passes the assignment: processes that train together would wait for it
        self.predictor.requires_grad_(config.supervise_layers)
        self.update = ClusterUpdate(inner, width)
        self.attention = QueryAttention(inner, width, config.key_width, config.heads)
        self.expand = QueryConvNorm(width, config.feedforward)
        self.contract = QueryConvNorm(config.feedforward, width, activate=False, scale=0.0)
        self.drop_path = DropPath(config.drop_path)

    def forward(self, pixels: Tensor, queries: Tensor, supervised: bool) -> LayerOutput:
        """One step of k-means and one of a transformer.

        Args:
            pixels: Map, [B, pixels, h, w].
            queries: [B, D, N].
            supervised: Whether a loss will ask for the masks.
        """
        pixels = self.pixel_in(F.gelu(pixels))
        projected = self.query_in(queries)
        output: MaskOutput | None = self.predictor(pixels, projected, projected) if supervised else None
        if output is None:
            assignment = self.predictor.assign(pixels, projected)
        else:
            assignment = output.masks.detach().flatten(2).argmax(1)
        queries = queries + self.drop_path(self.update(pixels, assignment, queries.shape[2]))
        queries = F.gelu(queries + self.drop_path(self.attention(projected)))
        queries = F.gelu(queries + self.drop_path(self.contract(self.expand(queries))))
        return LayerOutput(queries, output)


class KMaXDecoder(nn.Module):
    """Layers on the maps of the pixel decoder, then classes and masks.

    Args:
        channels: Channels of the maps, coarse to fine; masks are made on the last one.
        outputs: See :class:`Predictor`.
        config: Further sizes. Layers of stages that are not there look at the last map.
        void_logit: See :class:`Predictor`.
    """

    def __init__(self, channels: Sequence[int], outputs: int, config: KMaXConfig, void_logit: float = 0.0) -> None:
        super().__init__()
        self.centres = table(config.width, config.queries)
        last = len(channels) - 1
        self.sources = [min(stage, last) for stage, depth in enumerate(config.layers) for _ in range(depth)]
        self.layers = nn.ModuleList(KMaXLayer(channels[source], outputs, config, void_logit) for source in self.sources)
        self.class_projection = QueryConvNorm(config.width, config.width)
        self.mask_projection = QueryConvNorm(config.width, config.width)
        self.predictor = Predictor(channels[last], config.width, outputs, config, void_logit)

    def forward(self, maps: Sequence[Tensor], supervised: bool) -> MaskOutput:
        """Maps [B, C_i, h_i, w_i], coarse to fine, to masks at the size of the last one.

        Args:
            maps: Of the pixel decoder.
            supervised: Whether losses will ask for the masks of the layers.
        """
        queries = self.centres.expand(maps[0].shape[0], -1, -1)
        found: list[MaskOutput] = []
        for source, layer in zip(self.sources, self.layers, strict=True):
            queries, output = layer(maps[source], queries, supervised)
            if output is not None:
                found.append(output)
        final: MaskOutput = self.predictor(maps[-1], self.mask_projection(queries), self.class_projection(queries))
        return final._replace(auxiliary=tuple(enlarged(output, final.masks) for output in found))


def enlarged(output: MaskOutput, final: Tensor) -> MaskOutput:
    """Masks and features of a layer at the size of the final masks; features are not normalised once more."""
    size = (final.shape[2], final.shape[3])
    features = None if output.features is None else resize(output.features, size, size[0])
    return output._replace(masks=resize(output.masks, size, size[0]), features=features)
