"""Levels and patch embeddings of any backbone, read while it computes.

A patch embedding is what a stage's downsampling gives to its blocks: with overlapping patches in hierarchical
transformers, by merging in Swin. Where a stage has no downsampling of its own (the first one after a stem, ResNet,
MaxViT), what comes into the stage stands for it; in a plain ViT, what comes into the block that makes the level.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from backbones.vision.base import Stage, VisionBackbone
from graftwork.errors import ConfigError

Size = tuple[int, int]
"""Height and width, in pixels or positions."""
PROBE = (64, 96)
"""Height and width of the image that the layout of embeddings is told by: with these, no two axes can be confused."""


def map_size(image: Size, stride: int) -> Size:
    """Height and width of the map of an image at a stride."""
    return -(-image[0] // stride), -(-image[1] // stride)


@dataclass
class Features:
    """What a backbone computed on its way.

    Args:
        levels: The returned levels, fine to coarse, [B, C, H, W] each.
        embeddings: The patch embedding of each, [B, C, H, W].
    """

    levels: list[Tensor] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)


class PyramidSizes(NamedTuple):
    """Sizes of levels and patch embeddings, fine to coarse.

    Args:
        channels: Of the levels.
        strides: Of the levels, in pixels.
        embeddings: Channels of the patch embeddings.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embeddings: tuple[int, ...]


class PyramidReader:
    """Reads levels and patch embeddings of a backbone.

    Args:
        backbone: Any that tells which of its parts makes a level.

    Attributes:
        sizes: Of what is read.

    Raises:
        ConfigError: The backbone does not tell, or what comes into a stage is no map.
    """

    def __init__(self, backbone: VisionBackbone) -> None:
        self.backbone = backbone
        indices = backbone.out_indices
        self._order = sorted(range(len(indices)), key=indices.__getitem__)
        self._stages = [_stage(backbone, indices[place]) for place in self._order]
        seen, size = self._probe()
        strides = tuple(backbone.strides[place] for place in self._order)
        prefix = int(getattr(getattr(backbone, "trunk", None), "num_prefix_tokens", 0))
        padded = self._padded(size)
        self._layouts = [_Layout.of(x, stride, prefix, padded) for x, stride in zip(seen, strides, strict=True)]
        self.sizes = PyramidSizes(
            channels=tuple(backbone.channels[place] for place in self._order),
            strides=strides,
            embeddings=tuple(layout.channels(x) for layout, x in zip(self._layouts, seen, strict=True)),
        )

    @contextmanager
    def reading(self) -> Iterator[Features]:
        """Fill what is given with the features of the last images that the backbone sees inside the block.

        Raises:
            ConfigError: At its end: the backbone saw no images, or does so in a graph that was compiled before.
        """
        found = Features()
        with self._watching() as seen:

            def finish(module: nn.Module, inputs: tuple[Tensor, ...], levels: Sequence[Tensor]) -> None:
                if len(seen) < len(self._stages):
                    return
                size = (inputs[0].shape[2], inputs[0].shape[3])
                found.levels = [levels[place] for place in self._order]
                layouts, padded = enumerate(self._layouts), self._padded(size)
                found.embeddings = [layout.map(seen[number], size, padded) for number, layout in layouts]

            handle = self.backbone.register_forward_hook(finish)
            try:
                yield found
            finally:
                handle.remove()
        if not found.levels:  # graphs do not look for hooks that came after them
            raise ConfigError(
                f"{type(self.backbone).__name__} let nothing be read of its levels",
                mend="Leave trainer.compile at false where a backbone is distilled",
            )

    def _padded(self, size: Size) -> Size:
        """Height and width of what the backbone itself sees of an image."""
        sizes = getattr(self.backbone, "sizes", None)  # models of timm have them
        padded: Size = size if sizes is None else sizes.padded(*size)
        return padded

    @contextmanager
    def _watching(self) -> Iterator[dict[int, Tensor]]:
        """Number of a level to its patch embedding, as it passes."""
        seen: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for number, stage in enumerate(self._stages):
                hooks.callback(_watch(stage, partial(seen.__setitem__, number)).remove)
            yield seen

    def _probe(self) -> tuple[list[Tensor], Size]:
        """Compute once; returns the embeddings as they lie in memory, and height and width of the image."""
        backbone = self.backbone
        size: Size = getattr(getattr(backbone, "sizes", None), "only", None) or PROBE
        image = next(backbone.parameters()).new_zeros(1, backbone.in_channels, *size)
        modes = {module: module.training for module in backbone.modules()}
        try:
            backbone.eval()
            with torch.no_grad(), self._watching() as seen:
                backbone(image)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return [seen[number] for number in range(len(self._stages))], size


@dataclass(frozen=True)
class _Layout:
    """How an embedding lies in memory.

    Args:
        kind: ``first`` has channels second, ``last`` at the end, ``tokens`` is a sequence.
        stride: Pixels per position.
        prefix: Tokens before those of the map.
    """

    kind: Literal["first", "last", "tokens"]
    stride: int
    prefix: int = 0

    @classmethod
    def of(cls, x: Tensor, stride: int, prefix: int, image: Size) -> _Layout:
        """The layout of an embedding of an image, at the stride of its level or at a finer one."""
        while stride >= 1:
            rows, columns = map_size(image, stride)
            if x.dim() == 4 and tuple(x.shape[2:]) == (rows, columns):
                return cls("first", stride)
            if x.dim() == 4 and tuple(x.shape[1:3]) == (rows, columns):
                return cls("last", stride)
            if x.dim() == 3 and x.shape[1] == prefix + rows * columns:
                return cls("tokens", stride, prefix)
            stride //= 2
        raise ConfigError(
            f"what comes into a stage of the backbone, {list(x.shape)} for an image of {image[0]} x {image[1]} pixels, "
            "is no map that could stand for a patch embedding",
            mend="Take another backbone, or kind=none",
        )

    def channels(self, x: Tensor) -> int:
        """Channels of the embedding."""
        return x.shape[1 if self.kind == "first" else -1]

    def map(self, x: Tensor, image: Size, padded: Size) -> Tensor:
        """The embedding of an image as [B, C, H, W], without what padding added."""
        rows, columns = map_size(image, self.stride)
        if self.kind == "tokens":
            x = x[:, self.prefix :].mT.unflatten(2, map_size(padded, self.stride))
        elif self.kind == "last":
            x = x.permute(0, 3, 1, 2)
        return x[:, :, :rows, :columns]


def _stage(backbone: VisionBackbone, level: int) -> nn.Module:
    try:
        return backbone.level_module(level)
    except AttributeError as error:
        raise ConfigError(
            f"{type(backbone).__name__} does not tell which of its parts makes level {level}: {error}",
            mend="Take a backbone with stages such as swin_tiny, or kind=none",
        ) from error


def _watch(stage: nn.Module, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand over the patch embedding of a stage whenever it computes."""
    if isinstance(stage, Stage):
        return stage.blocks[0].register_forward_pre_hook(lambda module, inputs: keep(inputs[0]))
    downsample = getattr(stage, "downsample", None)
    if isinstance(downsample, nn.Module):
        return downsample.register_forward_hook(lambda module, inputs, output: keep(output))
    return stage.register_forward_pre_hook(lambda module, inputs: keep(inputs[0]))
