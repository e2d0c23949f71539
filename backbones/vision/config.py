"""Configurations of the vision backbones and their names. Standard library only: no torch until ``build``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from backbones.vision.dinat_dilations import dilation_problems
from backbones.vision.variants import FAMILIES, VARIANTS, Variant
from graftwork.components import CUSTOM, Registry, import_dotted
from graftwork.errors import missing_package

if TYPE_CHECKING:
    from backbones.vision.base import VisionBackbone

TIMM = "timm:"
"""Prefix of names that open any model of timm: ``timm:resnet50``."""


@dataclass(kw_only=True)
class BackboneConfig:
    """A vision backbone; the fields here are options of every one of them."""

    variant: ClassVar[str] = ""

    pretrained: bool = False
    """Download published ImageNet weights where timm has them; see weights for a file of your own."""
    weights: str = ""
    """File with weights: official ones of the family, or ours; a classification head in it is left out."""
    drop_path: float = 0.0
    """Stochastic depth: share of samples that skip a residual branch in the last block, growing linearly from 0."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory in training, for about a third more time."""
    output_norms: bool | Literal["auto"] = "auto"
    """A layer norm on every returned map; auto adds them for dense prediction to trunks that have layer norms inside,
    as their published models do, unless the head is published without."""
    freeze: int = 0
    """Stages that are not trained, from the input on; 1 is the stem alone, -1 is the whole backbone."""
    lora_rank: int = 0
    """Rank of low-rank adapters on linear layers; above 0 nothing else of the backbone is trained."""
    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if not 0 <= self.drop_path < 1:
            yield f"drop_path={self.drop_path} must be at least 0 and below 1"
        if self.freeze < -1:
            yield f"freeze={self.freeze} must be -1 (all), 0 (none) or a number of stages"
        if self.lora_rank < 0:
            yield f"lora_rank={self.lora_rank} must be 0 (none) or more"
        if self.pretrained and self.weights:
            yield f"pretrained=true and weights={self.weights} contradict each other; set one of them"

    @property
    def facts(self) -> Variant:
        """The variant's row in the table."""
        return VARIANTS[self.variant]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        # the class of a variant is made on demand, so another process must be told to make it
        return _unpickled, (self.variant, dict(vars(self)))

    def build(
        self, *, in_channels: int = 3, out_indices: Sequence[int] | None = None, dense: bool = False
    ) -> VisionBackbone:
        """The backbone, with its weights and adapters.

        Args:
            in_channels: Channels of the images.
            out_indices: Levels to return, see :class:`backbones.vision.base.VisionBackbone`; all if omitted.
            dense: Whether it is for dense prediction, where ``output_norms`` is left to it.
        """
        from backbones.vision.create import assemble

        return assemble(self, in_channels=in_channels, out_indices=out_indices, dense=dense)

    def structure(self, **common: Any) -> VisionBackbone:
        """The bare network; ``common`` are ``in_channels``, ``out_indices``, ``checkpointing`` and ``output_norms``."""
        raise NotImplementedError


@dataclass(kw_only=True)
class DiNATConfig(BackboneConfig):
    """Neighborhood attention, with dilations in every second block where the variant is dilated."""

    dilations: str | list[list[int]] = "published"
    """Dilation of every block: published (for the variant's image size), auto (near-global, from the map's size), or
    a list per level such as [[1,16,1],[1,4,1,8],[1,2,1,3,1,4],[1,2]]; short lists repeat."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        yield from dilation_problems(self.dilations, self.facts.values["depths"])

    def structure(self, **common: Any) -> VisionBackbone:
        """The bare network."""
        from backbones.vision.dinat import build

        return build(self, **common)


@dataclass(kw_only=True)
class BiFormerConfig(BackboneConfig):
    """Bi-level routing attention: regions look at the few regions they resemble."""

    regions: int = 0
    """Regions per side of a map; 0 takes the published 7. 8 suits 512 pixels, 16 suits 800 and above."""

    def structure(self, **common: Any) -> VisionBackbone:
        """The bare network."""
        from backbones.vision.biformer import build

        return build(self, **common)


@dataclass(kw_only=True)
class ViGConfig(BackboneConfig):
    """Gated linear attention in both directions over the positions of the map."""

    def structure(self, **common: Any) -> VisionBackbone:
        """The bare network."""
        from backbones.vision.vig import build

        return build(self, **common)


@dataclass(kw_only=True)
class TimmConfig(BackboneConfig):
    """A model of timm behind the contract of this package."""

    window: int = 0
    """Side of the attention windows, in positions; 0 keeps the model's own. Tables of positions are interpolated."""
    image_size: int | tuple[int, int] = 0
    """Side, or height and width, of all images, for models that are bound to one size; 0 keeps the model's own."""
    cluster_after: int = 0
    """Blocks of a plain ViT that see all tokens at inference; later ones see clusters of them, faster and without
    training. 0 is off; at half of the blocks the published loss of mIoU is below one point."""
    cluster_grid: int | tuple[int, int] = 0
    """Side, or rows and columns, of the grid of clusters; 0 takes two thirds of those of the tokens."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if self.window < 0:
            yield f"window={self.window} must be a number of positions, or 0 for the model's own"
        sides = self.image_size if isinstance(self.image_size, (tuple, list)) else (self.image_size or 32,)
        if len(sides) > 2 or min(sides, default=0) < 32:
            yield f"image_size={self.image_size} must be a side, or height and width, of at least 32 pixels"
        if self.cluster_after < 0:
            yield f"cluster_after={self.cluster_after} must be a number of blocks, or 0 for none"
        grid = self.cluster_grid if isinstance(self.cluster_grid, (tuple, list)) else (self.cluster_grid,)
        if len(grid) > 2 or min(grid, default=-1) < (1 if len(grid) == 2 else 0):
            yield f"cluster_grid={self.cluster_grid} must be a side, or rows and columns, or 0 for two thirds"
        if any(grid) and not self.cluster_after:
            yield f"cluster_grid={self.cluster_grid} is not used with cluster_after=0"

    @property
    def facts(self) -> Variant:
        """The variant's row in the table; for a plain model of timm just its name."""
        if self.variant.startswith(TIMM):
            model = self.variant.removeprefix(TIMM)
            return Variant(family="timm", channels=(), strides=(), values={"model": model})
        return super().facts

    def structure(self, **common: Any) -> VisionBackbone:
        """The bare network.

        Raises:
            MissingPackageError: timm is not installed.
        """
        try:
            from backbones.vision.timm_adapter import build
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "timm":
                raise
            raise missing_package("timm", "vision", self.variant) from error
        return build(self, **common)


@cache
def config_class(name: str) -> type[BackboneConfig]:
    """The configuration class of a variant, or of ``timm:<model>``: that of its family with the name filled in."""
    family = TimmConfig if name.startswith(TIMM) else import_dotted(FAMILIES[VARIANTS[name].family].config)
    parts = name.replace(":", "_").replace(".", "_").split("_")
    members = {"variant": name, "__module__": __name__, "__doc__": family.__doc__}
    return type("".join(part.title() for part in parts) + "Config", (family,), members)


def _unpickled(name: str, values: dict[str, Any]) -> BackboneConfig:
    return config_class(name)(**values)


class BackboneRegistry(Registry):
    """Names of vision backbones: the table, ``timm:<model>`` and ``custom:`` paths."""

    def get(self, name: str, where: str = "") -> type:
        """The configuration class behind a name.

        Raises:
            ConfigError: No such name; the nearest ones are given.
        """
        if name.startswith(TIMM) or name in VARIANTS:
            return config_class(name)
        return super().get(name, where)

    def name_of(self, config: object) -> str:
        """The name of a configuration."""
        variant = getattr(config, "variant", "")
        return variant or f"{CUSTOM}{type(config).__module__}.{type(config).__qualname__}"


BACKBONES = BackboneRegistry("backbone", dict.fromkeys(VARIANTS, BackboneConfig), default="swin_tiny")
