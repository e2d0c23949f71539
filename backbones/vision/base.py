"""The contract of vision backbones: images in, a pyramid of feature maps out, for any size.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.vision.layers import ChannelNorm
from graftwork.errors import ConfigError, ShapeError, WeightsError

SMALLEST = 32
"""Smallest height and width of an image, in pixels."""

_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
_DOWNSAMPLE = re.compile(r"stages\.(\d+)\.downsample\.")


class Stage(nn.Module):
    """Blocks of one resolution, and what makes that resolution from the stage before.

    Args:
        downsample: Applied first; ``nn.Identity`` in a first stage that follows the stem directly.
        blocks: Applied in order.
    """

    blocks: nn.ModuleList

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class VisionBackbone(nn.Module):
    """Base of every vision backbone.

    A subclass builds ``stem`` and ``stages`` in its own layout of tensors, then calls :meth:`finish`; where its stages
    do not give maps with channels second it overrides :meth:`to_map`. One that is built otherwise overrides
    :meth:`extract`, :attr:`depth` and :meth:`layer_of`.

    Args:
        in_channels: Channels of the images.
        channels: Channels of every level, fine to coarse.
        strides: Pixels per position of every level.
        out_indices: Levels that :meth:`forward` returns, counted from 0 for the finest, negative ones from the end;
            all if omitted. Stages after the last of them are not built.
        checkpointing: Compute blocks again in the backward pass instead of keeping their activations.

    Attributes:
        channels: Channels of the returned maps.
        strides: Strides of the returned maps: a map is [B, C, ceil(H / stride), ceil(W / stride)].
        out_indices: Levels returned, all of them counted from 0.

    Raises:
        ConfigError: ``out_indices`` is empty, names a level twice or one that does not exist.
    """

    norm_eps = 1e-5
    """Of the norms on outputs."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Of the images that published weights were trained on, per channel (red, green, blue), for values in [0, 1]."""

    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of these images."""

    stem: nn.Module
    stages: nn.ModuleList

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.level_channels, self.level_strides = tuple(channels), tuple(strides)
        self.out_indices = _levels(out_indices, len(channels))
        self.channels = tuple(channels[level] for level in self.out_indices)
        self.strides = tuple(strides[level] for level in self.out_indices)
        self.checkpointing = checkpointing
        self.output_norms: nn.ModuleDict | None = None
        self.frozen_stages = 0

    @property
    def built_stages(self) -> list[Stage]:
        """The stages, in order."""
        return cast("list[Stage]", list(self.stages))

    @property
    def last(self) -> int:
        """The coarsest level that is needed."""
        return max(self.out_indices)

    def finish(self, output_norms: bool = False) -> None:
        """Remove stages nobody reads, and add norms on the outputs; the last call of a subclass's constructor.

        Args:
            output_norms: A layer norm over the channels of every returned map, as dense heads want it. The map that
                goes on to the next stage is not normalised.
        """
        stages = getattr(self, "stages", None)
        if stages is not None:
            del stages[self.last + 1 :]
        if output_norms:
            self.add_output_norms()

    def add_output_norms(self) -> None:
        """Put a layer norm on every returned map."""
        widths = zip(self.out_indices, self.channels, strict=True)  # named by level, as official weights have it
        self.output_norms = nn.ModuleDict({str(i): ChannelNorm(width, eps=self.norm_eps) for i, width in widths})

    @property
    def has_layer_norms(self) -> bool:
        """Whether there are layer norms inside, so that models for dense prediction normalise what it returns."""
        return any(isinstance(module, nn.LayerNorm) for module in self.modules())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images.

        Args:
            images: [B, in_channels, H, W], both sides at least 32 pixels; any size above.

        Returns:
            A map per entry of ``out_indices``, [B, C, ceil(H / stride), ceil(W / stride)].

        Raises:
            ShapeError: Images of another rank, number of channels, or too small; the message names both.
        """
        self.check_images(images)
        maps = self.returned(images)
        if self.output_norms is None:
            return maps
        return [self.output_norms[str(i)](level) for i, level in zip(self.out_indices, maps, strict=True)]

    def check_images(self, images: Tensor) -> None:
        """Refuse what :meth:`forward` cannot take."""
        name = type(self).__name__
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            expected = f"[batch, {self.in_channels}, height, width]"
            raise ShapeError(
                f"images of {name}: expected {expected}, got {list(images.shape)}",
                mend="Give the backbone the channels of your images: create_backbone(..., in_channels=...)",
            )
        height, width = images.shape[2:]
        if height < SMALLEST or width < SMALLEST:
            raise ShapeError(
                f"images of {name}: height and width must be at least {SMALLEST} pixels, got {height} x {width}",
                mend="Enlarge or pad the images",
            )

    def returned(self, images: Tensor) -> list[Tensor]:
        """The levels of ``out_indices``, not normalised, [B, C, H, W] each."""
        levels = self.extract(images)
        return [levels[level] for level in self.out_indices]

    def extract(self, images: Tensor) -> list[Tensor]:
        """Levels 0 to :attr:`last`, not normalised, [B, C, H, W] each."""
        x, levels = self.stem(images), []
        for stage in self.built_stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run(block, x)
            levels.append(self.to_map(x))
        return levels

    def to_map(self, x: Tensor) -> Tensor:
        """From the layout inside the stages to [B, C, H, W]."""
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block, with gradient checkpointing where it is on."""
        if self.checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(block, x, use_reentrant=False)
        else:
            result = block(x)
        return result

    def features(self, images: Tensor) -> Any:
        """What :meth:`head` takes: the last map, [B, C, H, W]."""
        return self(images)[-1]

    def final_norm(self) -> nn.Module:
        """The norm on the last map that the family's classifiers have, [B, C, H, W] to the same."""
        return ChannelNorm(self.level_channels[-1], eps=self.norm_eps)

    def head(self, classes: int) -> nn.Module:
        """The classification head of the family, from :meth:`features` to [B, classes]."""
        from backbones.vision.classifier import PooledHead

        return PooledHead(self.final_norm(), self.level_channels[-1], classes)

    def fit_tensor(self, name: str, found: Tensor, wanted: Tensor) -> Tensor | None:
        """Fit a tensor of other weights to ours, for instance a table of positions of another window size.

        Args:
            name: Our name of the tensor.
            found: The tensor of the weights.
            wanted: Ours.

        Returns:
            A tensor of our shape, or None where the two are different things.
        """
        return None

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor belongs to a stage that no returned level needs, and that was not built."""
        match = re.match(r"stages\.(\d+)\.", name)
        return match is not None and int(match[1]) >= len(getattr(self, "stages", ()))

    def official_tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a foreign state dict under our names, ``backbone.*`` and ``head.*``, where no key map is known."""
        return dict(state)

    def published_weights(self, variant: str) -> Mapping[str, Tensor]:
        """Download the published weights of a variant.

        Raises:
            WeightsError: There are none to download, or they cannot be reached.
        """
        from backbones.vision.variants import FAMILIES, VARIANTS

        source = FAMILIES[VARIANTS[variant].family].source if variant in VARIANTS else "their authors"
        raise WeightsError(
            f"{variant} has no weights that timm could download",
            where="pretrained",
            mend=f"Fetch the official file from {source} and give it as weights=FILE",
        )

    # -- depth: what learning rates and freezing go by --------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of layers that :meth:`layer_of` counts: the stem, each block, and one for output norms."""
        return 2 + sum(len(stage.blocks) for stage in self.built_stages)

    def layer_of(self, name: str) -> int:
        """Number of the layer that a parameter belongs to, 0 for the stem; a downsampler counts to the block after."""
        starts = [0, *accumulate(len(stage.blocks) for stage in self.built_stages)]
        if match := _BLOCK.match(name):
            return 1 + starts[int(match[1])] + int(match[2])
        if match := _DOWNSAMPLE.match(name):
            return 1 + starts[int(match[1])]
        return self.depth - 1 if name.startswith("output_norms.") else 0

    def stage_of(self, name: str) -> int:
        """Number of the stage that a parameter or module belongs to: 0 for the stem, then 1, 2, ...; -1 for norms."""
        if match := re.match(r"stages\.(\d+)(\.|$)", name):
            return 1 + int(match[1])
        return -1 if name.startswith("output_norms") else 0

    def level_module(self, level: int) -> nn.Module:
        """The part whose output is a level, counted from 0; its ``downsample``, if any, makes that resolution.

        Raises:
            AttributeError: The backbone has no such part.
        """
        return self.built_stages[level]

    def is_frozen(self, name: str) -> bool:
        """Whether a parameter or module belongs to a frozen stage."""
        return self.frozen_stages < 0 or 0 <= self.stage_of(name) < self.frozen_stages

    def train(self, mode: bool = True) -> VisionBackbone:
        """Training mode, for everything that is not frozen."""
        super().train(mode)
        if mode and self.frozen_stages:
            for name, module in self.named_modules():
                if name and self.is_frozen(name) and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                    module.training = False
        return self


def _levels(out_indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if out_indices is None:
        return tuple(range(count))
    levels = tuple(index + count if index < 0 else index for index in out_indices)
    if not levels or len(set(levels)) < len(levels) or not all(0 <= level < count for level in levels):
        raise ConfigError(
            f"out_indices={tuple(out_indices)} must be different levels from 0 to {count - 1}",
            mend=f"Try out_indices={tuple(range(count))}",
        )
    return levels
