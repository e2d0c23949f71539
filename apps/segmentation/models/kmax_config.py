"""Configuration of kMaX-DeepLab. No torch until ``build``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from apps.segmentation.models.info import HeadInfo
from graftwork.errors import all_problems

if TYPE_CHECKING:
    from apps.segmentation.models.kmax import KMaXHead

Block = Literal["axial", "bottleneck"]

_COUNTS = ("queries", "width", "key_width", "heads", "axial_heads", "feedforward", "mask_width", "mask_hidden")
_WEIGHTS = ("class_weight", "dice_weight", "mask_weight", "pixel_weight", "semantic_weight")
_SAMPLING = ("pixel_samples", "semantic_samples", "pixel_balance", "semantic_balance")


@dataclass(kw_only=True)
class KMaXConfig:
    """kMaX-DeepLab: masks as clusters of pixels, found by k-means in attention; the defaults are those for COCO."""

    normalised: ClassVar[bool] = False
    """Published models have no norms between trunk and head."""

    queries: int = 128
    """Cluster centres, which is the most segments an image can have; 256 for Cityscapes."""
    width: int = 256
    """Features of a query."""
    key_width: int = 128
    """Features of the keys of all heads; values and projected pixels have twice as many."""
    heads: int = 8
    """Heads of the attention among queries."""
    feedforward: int = 2048
    """Features inside a query's feed-forward network."""
    mask_width: int = 128
    """Features that pixels and masks are compared by."""
    mask_hidden: int = 256
    """Features of a pixel before those."""
    layers: tuple[int, ...] = (2, 2, 2)
    """Decoder layers on the outputs of the first stages, coarsest first."""
    stage_layers: tuple[int, ...] = (1, 5, 1, 1)
    """Blocks of each stage of the pixel decoder, coarsest first; as many levels of the backbone are used."""
    stage_widths: tuple[int, ...] = (512, 256, 128, 64)
    """Base width of each stage, which gives four times as many features."""
    stage_blocks: tuple[Block, ...] = ("axial", "axial", "bottleneck", "bottleneck")
    """Kind of the blocks of each stage."""
    axial_heads: int = 8
    """Heads of axial attention."""
    semantic: Literal["aspp", "light", "none"] = "aspp"
    """Auxiliary head that classifies pixels in training: atrous pyramid at stride 4, the light one of Cityscapes."""
    semantic_width: int = 256
    """Features of the auxiliary head."""
    semantic_projections: tuple[int, ...] = (64, 32)
    """Features it takes from the levels at strides 8 and 4 (``aspp``)."""
    drop_path: float = 0.2
    """Share of samples whose residual branches a decoder layer leaves out in training; 0 for ADE20K."""
    stage_drop_path: float = 0.0
    """The same in the pixel decoder."""
    supervise_layers: bool = True
    """Train every decoder layer's own masks; nothing else trains them."""
    share_matching: bool = True
    """Match queries and segments once, on the final output, for the losses of all layers."""
    class_weight: float = 3.0
    """Weight of the loss of the queries' classes."""
    least_weight: float = 1e-5
    """Least weight of a query there, however wrong its mask; the official option is that of no object."""
    dice_weight: float = 3.0
    """Weight of the dice loss of masks."""
    mask_weight: float = 0.3
    """Weight of the cross-entropy of pixels over queries."""
    pixel_weight: float = 1.0
    """Weight of the discrimination of pixels of different segments."""
    semantic_weight: float = 1.0
    """Weight of the loss of the auxiliary head."""
    pixel_samples: int = 4096
    """Pixels of an image that are compared with one another; 0 for all."""
    pixel_balance: float = 1.5
    """How much more often pixels of small segments are drawn; 0.6 for Cityscapes."""
    pixel_temperature: float = 0.3
    """Divisor of the similarity of pixels."""
    semantic_samples: int = 4096
    """Pixels of an image that the auxiliary head is trained on; 0 for all, as for Cityscapes."""
    semantic_balance: float = 2.0
    """How much more often pixels of rare classes are drawn."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds."""
        for name in _COUNTS:
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        for name in (*_WEIGHTS, "least_weight", *_SAMPLING):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name):g} must be 0 or more"
        for name in ("drop_path", "stage_drop_path"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}={getattr(self, name):g} must be at least 0 and below 1"
        if self.pixel_temperature <= 0:
            yield f"pixel_temperature={self.pixel_temperature:g} must be above 0"
        yield from self._decoder_problems()
        yield from self._stage_problems()

    def _decoder_problems(self) -> Iterator[str]:
        if self.key_width % max(self.heads, 1):
            yield f"key_width={self.key_width} must be a multiple of heads={self.heads}"
        if not self.layers or min(self.layers) < 0 or not any(self.layers):
            yield f"layers={list(self.layers)} must be one or more numbers of at least 0, not all 0"
        if self.semantic == "aspp" and (len(self.semantic_projections) != 2 or min(self.semantic_projections) < 1):
            yield f"semantic_projections={list(self.semantic_projections)} must be two numbers of at least 1"
        if self.semantic != "none" and self.semantic_width < 1:
            yield f"semantic_width={self.semantic_width} must be at least 1"

    def _stage_problems(self) -> Iterator[str]:
        stages = len(self.stage_layers)
        if not stages or min(self.stage_layers) < 1:
            yield f"stage_layers={list(self.stage_layers)} must be one or more numbers of at least 1"
        for name in ("stage_widths", "stage_blocks"):
            if len(getattr(self, name)) != stages:
                yield f"{name}={list(getattr(self, name))} must have {stages} entries as stage_layers has"
        if len(self.layers) > stages:
            yield f"layers={list(self.layers)} must not have more entries than stage_layers={list(self.stage_layers)}"
        for width, block in zip(self.stage_widths, self.stage_blocks, strict=False):
            if width < 1:
                yield f"stage_widths={list(self.stage_widths)} must be at least 1 each"
            elif block == "axial" and width % max(self.axial_heads, 1):
                yield f"stage_widths: {width} of axial blocks must be a multiple of axial_heads={self.axial_heads}"

    def build(self, info: HeadInfo) -> KMaXHead:
        """The head for these levels and classes.

        Raises:
            ConfigError: A value is out of range, or no level of the backbone has a stride from 4 to 32.
        """
        if found := list(self.problems()):
            raise all_problems(found)
        from apps.segmentation.models.kmax import KMaXHead

        return KMaXHead(self, info)
