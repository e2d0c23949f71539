"""Any model of timm behind the contract of this package: levels of any image, heads, depth, weights.

timm, Apache-2.0, holds the networks; here are the mends that its models need as trunks. Three surprises: levels are
numbered as in timm, but MaxViT's stem is left out, and models of one resolution (ViT) give their last three blocks
unless told otherwise; images are padded with zeros to what a model needs, and maps are cropped; models that read class
tokens classify through their own path, see :meth:`TimmBackbone.features`.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones.vision.base import VisionBackbone
from backbones.vision.recomputation import keep_statistics
from backbones.vision.timm_clustering import Clustering, clustered_maps
from backbones.vision.timm_head import MapHead, Readout, map_head, split
from backbones.vision.timm_layers import Depths
from backbones.vision.timm_models import Blueprint
from backbones.vision.timm_sizes import Level, Sizes, explore, known_sizes, levels_of, map_size
from backbones.vision.timm_weights import fit_table, published, translated
from graftwork.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from backbones.vision.config import TimmConfig


def build(
    config: TimmConfig,
    *,
    in_channels: int,
    out_indices: Sequence[int] | None,
    checkpointing: bool,
    output_norms: bool,
) -> TimmBackbone:
    """The backbone of a configuration, without weights.

    Raises:
        ConfigError: timm has no such model (the nearest are given), or the model cannot have these values.
    """
    side, grid = config.image_size, config.cluster_grid
    blueprint = Blueprint(
        name=config.facts.values["model"],
        in_channels=in_channels,
        drop_path=config.drop_path,
        window=config.window,
        image_size=_sides(side),
    )
    return TimmBackbone(
        blueprint,
        out_indices=out_indices,
        checkpointing=checkpointing,
        output_norms=output_norms,
        clustering=Clustering(after=config.cluster_after, grid=_sides(grid)) if config.cluster_after else None,
    )


def _sides(value: int | tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of an option that may also be one side, or 0 for none."""
    if not value:
        return None
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class TimmBackbone(VisionBackbone):
    """A model of timm as a backbone.

    Args:
        blueprint: The model.
        out_indices: See :class:`backbones.vision.base.VisionBackbone`; what timm returns for features if omitted.
        checkpointing: See :class:`backbones.vision.base.VisionBackbone`; batch statistics move once per step.
        output_norms: A layer norm on every returned map.
        clustering: In evaluation mode, later blocks of a plain ViT see clusters of tokens; None for all tokens.

    Attributes:
        trunk: The model of timm, without layers that no returned level needs; parameters keep their names in it.
        sizes: Images that it takes.
        mean: Of the images that its published weights were trained on, per channel, in [0, 1].
        std: Their standard deviation.

    Raises:
        ConfigError: See :func:`build`; or ``out_indices`` does not suit, or checkpointing or clustering is not
            possible.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
        output_norms: bool = False,
        clustering: Clustering | None = None,
    ) -> None:
        trunk = blueprint.build()
        plan = _plan(blueprint, trunk)
        levels = plan.levels or [Level(0, 1, 1)]
        super().__init__(
            in_channels=blueprint.in_channels,
            channels=[level.channels for level in levels],
            strides=[level.stride for level in levels],
            out_indices=plan.default if out_indices is None or not plan.levels else out_indices,
            checkpointing=checkpointing,
        )
        if not plan.levels:  # it only classifies
            self.level_channels = self.level_strides = self.channels = self.strides = self.out_indices = ()
        self.blueprint, self.sizes = blueprint, plan.sizes
        self.mean = tuple(blueprint.facts.get("mean", self.mean))
        self.std = tuple(blueprint.facts.get("std", self.std))
        self._taken = {plan.levels[level].number: level for level in sorted(self.out_indices)}
        self._reads_features, self._head_names = False, dict[str, str]()
        if self._taken:
            trunk.prune_intermediate_layers(list(self._taken), prune_norm=True, prune_head=True)
        for name in plan.unread(tuple(self._taken)):
            trunk.get_parameter(name).requires_grad_(False)
        if clustering is not None:
            clustering.check(trunk, blueprint.name)
        self.clustering = clustering
        self._take_over(trunk)
        self.finish(output_norms)

    def returned(self, images: Tensor) -> list[Tensor]:
        """The levels of ``out_indices``, not normalised, [B, C, H, W] each."""
        size = (images.shape[2], images.shape[3])
        maps = self._maps(self.sizes.pad(images))
        levels = {}
        for level, found in zip(self._taken.values(), maps, strict=True):
            rows, columns = map_size(size, self.level_strides[level])
            levels[level] = found if found.shape[2:] == (rows, columns) else found[:, :, :rows, :columns]
        return [levels[level] for level in self.out_indices]

    def _maps(self, images: Tensor) -> Any:
        indices = list(self._taken)
        if self.clustering is not None and not self.training:
            return clustered_maps(self.trunk, images, indices, self.clustering)
        return self.trunk.forward_intermediates(images, indices=indices, stop_early=True, intermediates_only=True)

    def check_images(self, images: Tensor) -> None:
        """Refuse what :meth:`forward` cannot take; sizes too, where the model is bound to one."""
        super().check_images(images)
        only, size = self.sizes.only, (images.shape[2], images.shape[3])
        if only is not None and size != only:
            stride = max(self.level_strides, default=32)
            rounded = tuple(-(-side // stride) * stride for side in size)
            raise ShapeError(
                f"images of timm's {self.blueprint.name}: expected {only[0]} x {only[1]} pixels, the only size that it "
                f"takes, got {size[0]} x {size[1]}",
                mend=f"Resize the images, or build it for others if it can be: image_size={rounded}",
            )

    def features(self, images: Tensor) -> Any:
        """What :meth:`head` takes: the last map, or what ``forward_features`` of timm gives if its head reads that."""
        if not self._reads_features:
            return super().features(images)
        self.check_images(images)
        if images.shape[2:] != self.blueprint.native:  # its own size it takes as it is, whatever its maps need
            images = replace(self.sizes, surplus=0).pad(images)
        return self.trunk.forward_features(images)

    def head(self, classes: int) -> nn.Module:
        """The classification head of timm, for what :meth:`features` gives.

        A family with a head on its last map keeps its trunk. Any other trunk is made anew with all its layers, and its
        head reads class tokens, or whatever else that model reads.

        Raises:
            ConfigError: timm's model does not tell which of its parts are the head, or its tokens are clustered.
        """
        if self.clustering is not None:
            raise ConfigError(
                f"cluster_after={self.clustering.after} is for maps and of no use to a classifier",
                mend="Leave cluster_after at 0",
            )
        outline = self.blueprint.outline(classes).eval()
        head: MapHead | Readout | None = map_head(outline, next(self.trunk.parameters()).device)
        if head is None:
            head = self._split(classes, outline)
        self._head_names = head.timm_names()
        return head

    def _split(self, classes: int, outline: Any) -> Readout:
        trunk = self.blueprint.build(classes)
        images = torch.empty(2, self.in_channels, *self.blueprint.native, device="meta")
        try:
            head = split(trunk, outline, images)
        except RuntimeError as error:
            raise ConfigError(
                f"the classification head of timm's {self.blueprint.name} cannot be told from its trunk: {error}",
                mend="Take create_backbone, and a head of your own on its last map",
            ) from error
        self._take_over(trunk)
        self._reads_features = True
        return head

    def _take_over(self, trunk: Any) -> None:
        if self.checkpointing:
            _turn_on_checkpointing(trunk, self.blueprint.name)
            keep_statistics(trunk)
        self.trunk: Any = trunk
        self._depths = Depths(trunk)
        kept = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()
        for name, parameter in trunk.named_parameters():
            if name in kept or name.endswith("relative_position_bias_table"):
                parameter._no_weight_decay = True

    def train(self, mode: bool = True) -> TimmBackbone:
        """Training mode, for everything that is not frozen."""
        super().train(mode)
        if self.checkpointing:
            keep_statistics(self.trunk)  # norms may have been exchanged for synchronised ones
        return self

    # -- depth ------------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of layers that :meth:`layer_of` counts, as timm groups them, and one for output norms."""
        return self._depths.count + 1

    def layer_of(self, name: str) -> int:
        """Number of the layer that a parameter belongs to, 0 for the stem."""
        return self._depths.layer(name.removeprefix("trunk.")) if name.startswith("trunk.") else self.depth - 1

    def stage_of(self, name: str) -> int:
        """Number of the stage that a parameter or module belongs to: 0 for the stem, then 1, 2, ...; -1 for norms."""
        return self._depths.stage(name.removeprefix("trunk.")) if name.startswith("trunk.") else -1

    def level_module(self, level: int) -> nn.Module:
        """The part of timm's model whose output is a level.

        Raises:
            AttributeError: The model has no such part.
        """
        numbers = {taken: number for number, taken in self._taken.items()}
        module: nn.Module = self.trunk.get_submodule(self.trunk.feature_info[numbers[level]]["module"])
        return module

    # -- weights ----------------------------------------------------------------------------------------------------

    def fit_tensor(self, name: str, found: Tensor, wanted: Tensor) -> Tensor | None:
        """A table of positions of another window or image size, interpolated bicubically; None for other things."""
        return fit_table(name, found, wanted, getattr(self.trunk, "num_prefix_tokens", 1))

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor belongs to layers of the model that no returned level needs."""
        part, _, rest = name.partition(".")
        return part == "trunk" and rest in self.blueprint.names

    def official_tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a file of timm, or of the code that the model came from, under our names."""
        kept, ours = self.trunk.state_dict(), {}
        for name, tensor in translated(self.blueprint, state).items():
            if name in kept:
                ours[f"backbone.trunk.{name}"] = tensor
            elif name in self._head_names:
                ours[f"head.{self._head_names[name]}"] = tensor
            elif name not in self.blueprint.names:  # a stranger, for the caller to name
                ours[f"backbone.trunk.{name}"] = tensor
        return ours

    def published_weights(self, variant: str) -> Mapping[str, Tensor]:
        """Download the published weights.

        Raises:
            WeightsError: There are none to download, or they cannot be reached.
        """
        return published(self.blueprint.name)

    def bare_model(self, height: int, width: int) -> nn.Module:
        """The unchanged model of timm with the same levels and random weights, for images of a size, to compare with.

        Raises:
            ConfigError: It does not take that size by itself.
        """
        model: nn.Module = self.blueprint.bare((height, width), list(self._taken))
        return model


class _Plan(NamedTuple):
    """What a model can give: its images, its levels, and those that it gives if not told."""

    sizes: Sizes
    levels: list[Level]
    default: tuple[int, ...] | None
    blueprint: Blueprint | None = None

    def unread(self, indices: tuple[int, ...]) -> list[str]:
        """Parameters of the pruned model that no level depends on; the known families have none."""
        return _unread(self.blueprint, indices) if self.blueprint is not None and indices else []


def _plan(blueprint: Blueprint, trunk: Any) -> _Plan:
    sizes = known_sizes(trunk)
    if sizes is not None:
        return _Plan(sizes, levels_of(trunk), None)
    return _explored(replace(blueprint, in_channels=3, drop_path=0.0))


@cache
def _explored(blueprint: Blueprint) -> _Plan:
    sizes, levels = explore(blueprint.outline().eval(), blueprint.native, blueprint.in_channels)
    if blueprint.image_size is not None:
        usual = _explored(replace(blueprint, image_size=None))
        if usual.levels and (sizes is None or not levels):
            stride = max(level.stride for level in usual.levels)
            raise blueprint.unsuited(f"Some models take square images only, or sides that are multiples of {stride}")
    wanted = blueprint.usual_indices()
    default = tuple(place for place, level in enumerate(levels) if level.number in wanted)
    # where the model cannot be traced without values, multiples of what it was made for are the safe choice
    return _Plan(sizes or Sizes(multiple=blueprint.native), levels, default or None, blueprint)


@cache
def _unread(blueprint: Blueprint, indices: tuple[int, ...]) -> list[str]:
    model = blueprint.outline().eval()
    model.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
    images = torch.empty(2, blueprint.in_channels, *blueprint.native, device="meta")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = zip(*trained, strict=True)
    try:
        maps = model.forward_intermediates(images, indices=list(indices), stop_early=True, intermediates_only=True)
        gradients = torch.autograd.grad([level.sum() for level in maps], parameters, allow_unused=True)
    except (RuntimeError, NotImplementedError):  # cannot be traced without values
        return []
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def _turn_on_checkpointing(trunk: Any, name: str) -> None:
    try:
        trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise ConfigError(
            f"checkpointing=true is not possible: timm's {name} does not support it",
            mend="Leave checkpointing at false",
        ) from error
