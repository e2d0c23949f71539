"""Which images a model of timm takes, and which maps it then gives: known for some families, found out for others.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.davit import DaVit
from timm.models.maxxvit import MaxxVit
from timm.models.shvit import SHViT
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.tiny_vit import TinyVit
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """Images that a model takes.

    Args:
        multiple: Height and width of what the model sees are multiples of these; images are padded with zeros at the
            bottom and the right.
        surplus: Further pixels of padding for models whose convolutions shrink their maps.
        only: The one height and width that the model takes; None if it takes any.
    """

    multiple: Size = (1, 1)
    surplus: int = 0
    only: Size | None = None

    def padded(self, height: int, width: int) -> Size:
        """Height and width of what the model sees of an image."""
        rows, columns = self.multiple
        return -(-(height + self.surplus) // rows) * rows, -(-(width + self.surplus) // columns) * columns

    def pad(self, images: Tensor) -> Tensor:
        """Images as the model wants them, [B, C, H, W] to the same with larger sides."""
        height, width = images.shape[2:]
        rows, columns = self.padded(height, width)
        return F.pad(images, (0, columns - width, 0, rows - height)) if (rows, columns) != (height, width) else images


class Level(NamedTuple):
    """A map that a model can give.

    Args:
        number: Its number in timm.
        channels: Its channels.
        stride: Pixels per position.
    """

    number: int
    channels: int
    stride: int


def levels_of(model: Any) -> list[Level]:
    """All maps of a model as timm declares them; the stem of MaxViT, at stride 2, is left out."""
    infos = list(model.feature_info)
    levels = [Level(index, info["num_chs"], info["reduction"]) for index, info in enumerate(infos)]
    return levels[1:] if isinstance(model, MaxxVit) else levels


def known_sizes(model: Any) -> Sizes | None:
    """The sizes of the families that this package vouches for; None for others."""
    family = type(model)
    if issubclass(family, (SwinTransformer, SwinTransformerV2)):
        rows, columns = model.patch_embed.patch_size
        return Sizes(multiple=(rows, columns))
    if issubclass(family, MaxxVit):
        return _of_partitions(model)
    return Sizes() if issubclass(family, (TinyVit, SHViT, DaVit)) else None


def _of_partitions(model: Any) -> Sizes | None:
    """Every map of a MaxViT is cut into equal windows; a CoAtNet of the same class attends globally and is bound."""
    found = [module.partition_size for module in model.modules() if hasattr(module, "partition_size")]
    if not found:
        return None
    coarsest = model.feature_info[-1]["reduction"]
    rows, columns = (math.lcm(*sides) * coarsest for sides in zip(*found, strict=True))
    return Sizes(multiple=(rows, columns))


def explore(outline: Any, native: Size, in_channels: int) -> tuple[Sizes | None, list[Level]]:
    """Find out, without running it, which images a model takes and which of its maps are what they should be.

    Args:
        outline: The model on the meta device, in evaluation mode.
        native: Height and width of images it was made for.
        in_channels: Channels of its images.

    Returns:
        The sizes, None where the model does not even run on its own; and the levels whose maps have
        ceil(side / stride) positions. No levels where the coarsest is not among them: then the model only classifies.
    """
    levels, probe = levels_of(outline), _Probe(outline, in_channels)
    own = probe.maps(*native)
    if own is None:
        return None, levels
    levels = [level._replace(stride=_measured(level.stride, native, own[level.number])) for level in levels]
    for sizes in _candidates(max(level.stride for level in levels), native):
        if probe.ignores_size:
            break
        if all(probe.agrees(levels, sizes, *size) for size in _trials(sizes, native)):
            return sizes, levels
    exact = [level for level in levels if own[level.number] == map_size(native, level.stride)]
    return Sizes(only=native), exact if levels[-1] in exact else []


def _candidates(stride: int, native: Size) -> list[Sizes]:
    """What may suit a model, the cheapest first."""
    found = [Sizes(), *(Sizes(multiple=(times * stride,) * 2) for times in (1, 2, 4))]
    if not any(side % stride for side in native):
        found.append(Sizes(multiple=native))
    return found + [Sizes(multiple=(stride, stride), surplus=cells * stride) for cells in (1, 2, 3)]


def _trials(sizes: Sizes, native: Size) -> list[Size]:
    """Images whose sides leave every kind of remainder, from small ones to larger ones than the model was made for."""
    rows, columns = sizes.multiple
    if rows == columns == 1:
        return [(97, 127), (32, 65)]
    larger = [(2 * native[0] + 1, 33)] if sizes.surplus else []
    return [(2 * rows - 1, columns), (1, 2 * columns + 1), *larger]


def _measured(declared: int, native: Size, found: Size) -> int:
    """The stride, from the maps where timm declares a finer one than there is."""
    real = native[0] / found[0]
    return round(real) if real > 1.5 * declared else declared


def map_size(image: Size, stride: int) -> Size:
    """Height and width of the map of an image at a stride."""
    height, width = image
    return -(-height // stride), -(-width // stride)


class _Probe:
    """Shapes of a model's maps, by the meta device.

    Attributes:
        ignores_size: It was seen to give the same maps for images of different sizes, which it scales to its own.
    """

    def __init__(self, outline: Any, in_channels: int) -> None:
        self.outline, self.in_channels = outline, in_channels
        self.ignores_size = False
        self._seen: dict[Size, list[Size]] = {}

    def maps(self, height: int, width: int) -> list[Size] | None:
        """Height and width of every map; None where the model refuses the size."""
        images = torch.empty(2, self.in_channels, height, width, device="meta")
        try:
            with torch.no_grad():
                found = self.outline.forward_intermediates(images, intermediates_only=True)
        except Exception:  # models refuse in many ways, with assertions, shape errors and others
            return None
        maps = [(level.shape[2], level.shape[3]) for level in found]
        self.ignores_size |= any(maps == others and size != (height, width) for size, others in self._seen.items())
        self._seen[height, width] = maps
        return maps

    def agrees(self, levels: Sequence[Level], sizes: Sizes, height: int, width: int) -> bool:
        """Whether the maps of a padded image are what its size promises, or enough to crop from."""
        padded = sizes.padded(height, width)
        found = self.maps(*padded)
        if found is None:
            return False
        if not sizes.surplus:
            return all(found[level.number] == map_size(padded, level.stride) for level in levels)
        wanted = [map_size((height, width), level.stride) for level in levels]
        pairs = zip([found[level.number] for level in levels], wanted, strict=True)
        return all(ours[0] >= theirs[0] and ours[1] >= theirs[1] for ours, theirs in pairs)
