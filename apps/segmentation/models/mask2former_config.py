"""Options of Mask2Former. Standard library only until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apps.segmentation.models.info import HeadInfo
from graftwork.errors import all_problems

if TYPE_CHECKING:
    from apps.segmentation.models.mask2former import Mask2Former

_COUNTS = (
    "width",
    "mask_width",
    "heads",
    "queries",
    "layers",
    "mlp",
    "encoder_layers",
    "encoder_levels",
    "encoder_heads",
    "encoder_points",
    "encoder_mlp",
    "groups",
    "merge_groups",
    "loss_points",
)
_FACTORS = ("class_weight", "mask_weight", "dice_weight", "class_cost", "mask_cost", "dice_cost", "void_weight")


@dataclass(kw_only=True)
class Mask2FormerConfig:
    """Mask2Former (CVPR 2022): queries read what their own masks cover; every query gives a class and a mask."""

    width: int = 256
    """Features of the maps of the pixel decoder."""
    query_width: int = 0
    """Features of a query; 0 takes width."""
    mask_width: int = 256
    """Features whose product is a mask."""
    queries: int = 100
    """Masks for each image; published with 200 for Swin-L."""
    layers: int = 9
    """Layers of the masked decoder; the official option counts one more, for the queries as they are learnt."""
    heads: int = 8
    """Attention heads of the masked decoder."""
    mlp: int = 2048
    """Features inside its feed-forward networks."""
    norm_first: bool = False
    """Norms before the branches instead of after the sums."""
    project: bool = False
    """Project the maps that the decoder reads even where their features are as many as the queries'."""
    encoder_layers: int = 6
    """Layers of deformable attention in the pixel decoder."""
    encoder_levels: int = 3
    """Levels that these layers work on at most, of strides 8, 16 and 32 where there are such; 4 adds the next finer."""
    encoder_heads: int = 8
    """Heads of deformable attention."""
    encoder_points: int = 4
    """Points that each head reads on each level."""
    encoder_mlp: int = 1024
    """Features inside the encoder's feed-forward networks; 1024 in all published weights, whatever theirs say."""
    groups: int = 32
    """Groups of the norms on the encoder's levels."""
    merge_groups: int = 32
    """Groups of the norms where finer levels are merged in."""
    dropout: float = 0.0
    """Share of features dropped in the encoder's branches."""
    exits: Literal["none", "sample", "gate"] = "none"
    """Early exits of the encoder (ECO-M2F): none; one drawn for each step, to train a parent; a gate's choice."""
    exit_layer: int = 0
    """Layer of the encoder after which every image leaves outside of training; 0 leaves it to exits."""
    class_weight: float = 2.0
    """Factor of the loss of classes."""
    mask_weight: float = 5.0
    """Factor of the cross-entropy of masks."""
    dice_weight: float = 5.0
    """Factor of the Dice loss of masks."""
    void_weight: float = 0.1
    """Weight of queries without a segment in the loss of classes."""
    class_cost: float = 2.0
    """Factor of the class in the matching."""
    mask_cost: float = 5.0
    """Factor of the cross-entropy of masks in the matching."""
    dice_cost: float = 5.0
    """Factor of the Dice loss in the matching."""
    loss_points: int = 12544
    """Points at which masks are compared."""
    oversample: float = 3.0
    """Candidates drawn for each point of the losses."""
    importance: float = 0.75
    """Share of the points that are the least certain candidates; the others are drawn anew."""
    deep_supervision: bool = True
    """Train the outputs of all layers, not of the last alone."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds."""
        for name in _COUNTS:
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        for name in _FACTORS:
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name):g} must be 0 or more"
        if self.query_width < 0:
            yield f"query_width={self.query_width} must be 0 (that of width) or more"
        yield from self._width_problems()
        if not 0 <= self.dropout < 1:
            yield f"dropout={self.dropout:g} must be at least 0 and below 1"
        if not 0 <= self.exit_layer <= self.encoder_layers:
            yield f"exit_layer={self.exit_layer} must be from 0 to encoder_layers={self.encoder_layers}"
        if self.oversample < 1:
            yield f"oversample={self.oversample:g} must be at least 1"
        if not 0 <= self.importance <= 1:
            yield f"importance={self.importance:g} must be from 0 to 1"

    def _width_problems(self) -> Iterator[str]:
        """Widths that heads, groups or positions do not divide."""
        pairs = [
            ("width", "encoder_heads"),
            ("width", "groups"),
            ("width", "merge_groups"),
            ("query_width" if self.query_width else "width", "heads"),
        ]
        for name, part in pairs:
            whole, parts = getattr(self, name), getattr(self, part)
            if whole > 0 and parts > 0 and whole % parts:
                near = (whole // parts + 1) * parts
                yield f"{name}={whole} must be a multiple of {part}={parts}; try {name}={near}"
        for name in ("width", "query_width"):
            if getattr(self, name) % 4:
                value = getattr(self, name)
                yield f"{name}={value} must be a multiple of 4 for positions by sines; try {name}={value + -value % 4}"

    def build(self, info: HeadInfo) -> Mask2Former:
        """The head for these levels and classes.

        Raises:
            ConfigError: Values out of range, or levels that cannot be used; all problems are listed.
        """
        from apps.segmentation.models.mask2former import Mask2Former

        found = list(self.problems())
        if found:
            raise all_problems(found)
        return Mask2Former(info, self)
