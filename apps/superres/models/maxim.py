"""MAXIM: a U-Net of gated MLPs over blocks and grids, in one to three stages that are all supervised.

Paper: Tu et al., "MAXIM: Multi-Axis MLP for Image Processing", CVPR 2022. Origin: google-research/maxim, Apache-2.0,
in Flax. For restoration at the same size: denoising, deblurring, deraining, dehazing, enhancement.

Three surprises: the linear layers over positions fix the sides of blocks and grids but not the size of images; in the
lowest levels the grid has the side of the blocks; a stage sees the finest image twice, as its features and as what is
mixed into them.

Built from the paper and from what is known of the original's defaults: GELU by tanh, layer norms with an epsilon of
1e-6, maps resized bilinearly with antialiasing, images by nearest pixels. The numbers of parameters, 14.18 and 22.21
million for two and three stages, agree with the published 14.1 and 22.2. Not verified: outputs against the original's,
and the layout of its checkpoints, so there is no key map. Differs: first weights are chosen so that features do not
grow from stage to stage and every restored image begins as the one seen; the image is added in supervised attention for
any number of channels.

Shape legend: B batch, C channels of images, H x W padded image, D features of level 0; level l has sides H / 2^l and
2^l D features. Maps have their channels last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from apps.superres.models.maxim_blocks import (
    ConvolutionBlock,
    CrossGating,
    MultiAxisBlock,
    PointwiseBlock,
    ScaleMixing,
    SupervisedAttention,
    convolved,
    init_weights,
)
from apps.superres.models.network import RestorationNetwork, run_block
from apps.superres.models.padding import before, pad_both_sides

if TYPE_CHECKING:
    from apps.superres.models.info import ImageInfo
    from apps.superres.models.maxim_config import MAXIMConfig


class Carried(NamedTuple):
    """What a stage hands to the next, a map per level, finest first.

    Attributes:
        encoded: Of the encoder.
        decoded: Of the decoder.
        attended: Of the supervised attention, for the levels that are supervised.
    """

    encoded: list[Tensor]
    decoded: list[Tensor]
    attended: list[Tensor]


class Level(nn.Module):
    """Groups of one resolution: a projection of what comes in, then multi-axis mixing and convolutions.

    Args:
        narrow: Features that come in.
        config: Sizes of the network.
        level: Number of the resolution.
        gated: Whether a map of the stage before takes part.
    """

    def __init__(self, narrow: int, config: MAXIMConfig, level: int, *, gated: bool = False) -> None:
        super().__init__()
        width, side = config.widths[level], config.sides[level]
        self.project = nn.Linear(narrow, width)
        self.groups = nn.ModuleList(
            nn.Sequential(MultiAxisBlock(width, side, side), ConvolutionBlock(width)) for _ in range(config.groups)
        )
        self.gating = CrossGating(width, width, width, side, side) if gated else None
        self.checkpointing = config.checkpointing

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """[B, H, W, narrow], and the map of the stage before, to [B, H, W, width]."""
        x = y = self.project(x)
        for group in self.groups:
            y = run_block(group, y, self.checkpointing)
        y = x + y
        if self.gating is not None and before is not None:
            y, _ = self.gating(y, before)
        return y


class Bottleneck(nn.Module):
    """The lowest resolution: multi-axis mixing and pointwise blocks.

    Args:
        config: Sizes of the network.
    """

    def __init__(self, config: MAXIMConfig) -> None:
        super().__init__()
        width, side = config.widths[-1], config.low_side
        self.project = nn.Linear(width, width)
        self.groups = nn.ModuleList(
            nn.Sequential(MultiAxisBlock(width, side, side), PointwiseBlock(width)) for _ in range(config.groups)
        )
        self.checkpointing = config.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same."""
        x = y = self.project(x)
        for group in self.groups:
            y = run_block(group, y, self.checkpointing)
        return x + y


class Encoder(nn.Module):
    """Images of several sizes to a map per level, and the bottleneck's map.

    Args:
        config: Sizes of the network.
        channels: C.
        first: No stage comes before.
    """

    def __init__(self, config: MAXIMConfig, channels: int, *, first: bool) -> None:
        super().__init__()
        widths, sides = config.widths, config.sides
        supervised = range(config.supervised)
        self.inputs = nn.ModuleList(nn.Conv2d(channels, widths[level], 3, padding=1) for level in supervised)
        self.fusions = nn.ModuleList(
            CrossGating(widths[level], widths[level], widths[level], sides[level], sides[level])
            for level in (() if first else supervised)
        )
        self.levels = nn.ModuleList()
        self.downs = nn.ModuleList()
        for level, width in enumerate(widths):
            above = widths[max(0, level - 1)]
            image = width if level < config.supervised else 0
            self.levels.append(Level(above + image, config, level, gated=not first))
            self.downs.append(nn.Conv2d(width, width, 4, stride=2, padding=1))
        self.bottlenecks = nn.ModuleList(Bottleneck(config) for _ in range(config.bottlenecks))

    def forward(self, images: list[Tensor], carried: Carried | None) -> tuple[list[Tensor], Tensor]:
        """Images [B, H / 2^l, W / 2^l, C] to maps, finest first, and the lowest map."""
        inputs = [convolved(convolution, image) for convolution, image in zip(self.inputs, images, strict=True)]
        if carried is not None:
            inputs = [fuse(x, y)[0] for fuse, x, y in zip(self.fusions, inputs, carried.attended, strict=True)]
        x, maps = inputs[0], []
        for number, (level, down) in enumerate(zip(self.levels, self.downs, strict=True)):
            joined = torch.cat([x, inputs[number]], -1) if number < len(inputs) else x
            before = None if carried is None else carried.encoded[number] + carried.decoded[number]
            maps.append(level(joined, before))
            x = convolved(down, maps[-1])
        for bottleneck in self.bottlenecks:
            x = bottleneck(x)
        return maps, x


class Decoder(nn.Module):
    """Maps of the encoder, gated by the lowest one, back to a map per level.

    Args:
        config: Sizes of the network.
    """

    def __init__(self, config: MAXIMConfig) -> None:
        super().__init__()
        widths, sides, count = config.widths, config.sides, config.levels
        self.encoded = nn.ModuleList(ScaleMixing(widths, width) for width in widths)
        self.gatings = nn.ModuleList()
        self.skips = nn.ModuleList(ScaleMixing(widths, width) for width in widths)
        self.ups = nn.ModuleList()
        self.levels = nn.ModuleList()
        for level, (width, side) in enumerate(zip(widths, sides, strict=True)):
            below = widths[min(level + 1, count - 1)]
            self.gatings.append(CrossGating(count * width, below, width, side, side, enlarge=True))
            self.ups.append(nn.ConvTranspose2d(below, width, 2, stride=2))
            self.levels.append(Level((1 + count) * width, config, level))

    def forward(self, encoded: list[Tensor], lowest: Tensor) -> list[Tensor]:
        """Maps of the encoder and the lowest one to maps of the decoder; both finest first."""
        order = list(reversed(range(len(encoded))))
        skips, gate = list(encoded), lowest
        for level in order:
            skips[level], gate = self.gatings[level](self._at(self.encoded[level], encoded, level), gate)
        decoded, x = list(encoded), lowest
        for level in order:
            joined = torch.cat([convolved(self.ups[level], x), self._at(self.skips[level], skips, level)], -1)
            x = decoded[level] = self.levels[level](joined)
        return decoded

    @staticmethod
    def _at(mixing: nn.Module, maps: list[Tensor], level: int) -> Tensor:
        mixed: Tensor = mixing(maps, *maps[level].shape[1:3])
        return mixed


class Stage(nn.Module):
    """One U-Net, and the images it restores.

    Args:
        config: Sizes of the network.
        channels: C.
        first: No stage comes before.
        last: No stage comes after.
    """

    def __init__(self, config: MAXIMConfig, channels: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.encoder = Encoder(config, channels, first=first)
        self.decoder = Decoder(config)
        self.last = last
        widths = config.widths[: config.supervised]
        self.outputs = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1) if last else SupervisedAttention(width, channels)
            for width in widths
        )

    def forward(self, images: list[Tensor], carried: Carried | None) -> tuple[list[Tensor], Carried | None]:
        """Images [B, H / 2^l, W / 2^l, C] to restored ones of these sizes, and what the next stage takes."""
        encoded, lowest = self.encoder(images, carried)
        decoded = self.decoder(encoded, lowest)
        seen = list(zip(self.outputs, decoded, images, strict=False))  # levels below are not supervised
        if self.last:
            return [convolved(output, x) + image for output, x, image in seen], None
        attended, restored = zip(*(output(x, image) for output, x, image in seen), strict=True)
        return list(restored), Carried(encoded, decoded, list(attended))


class MAXIM(RestorationNetwork):
    """MAXIM for restoration at the same size.

    Args:
        config: Sizes of the network.
        info: Channels; the scale is 1.
    """

    def __init__(self, config: MAXIMConfig, info: ImageInfo) -> None:
        # Grids span the image, and the channel attention averages over it.
        super().__init__(info, receptive_radius=None, tile_multiple=config.multiple)
        self.config = config
        last = config.stages - 1
        self.stages = nn.ModuleList(
            Stage(config, info.channels, first=number == 0, last=number == last) for number in range(config.stages)
        )
        self._begin()

    def forward(self, images: Tensor) -> Tensor:
        """Restore images, see :meth:`RestorationNetwork.forward`."""
        self.check_images(images)
        height, width = images.shape[-2:]
        top, left = (before(side, self.tile_multiple) for side in (height, width))
        restored = self.restored(pad_both_sides(images, self.tile_multiple))[-1][0]
        return restored[..., top : top + height, left : left + width]

    def _begin(self) -> None:
        """First weights; every restored image begins as the one that is seen."""
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, Level | Bottleneck):
                # What it gives passes twice, beside the groups and in their own residuals: halves keep its size.
                module.project.weight.data.mul_(0.5)
            elif isinstance(module, Stage):
                for output in module.outputs:
                    image = output.image if isinstance(output, SupervisedAttention) else output
                    nn.init.zeros_(cast(nn.Conv2d, image).weight)

    def supervised(self, images: Tensor, truth: Tensor) -> list[tuple[Tensor, Tensor]]:
        """All that training compares: of every stage the restored image at every size, with the truth at that size.

        Args:
            images: As for :meth:`forward`; padded alike, truth too.
            truth: [B, C, H, W] in [0, 1].

        Returns:
            Pairs [B, C, H' / 2^l, W' / 2^l], stage by stage, finest first.

        Source: Tu et al. 2022, section 3.4.
        """
        self.check_images(images)
        self.check_images(truth)
        padded, target = (pad_both_sides(x, self.tile_multiple) for x in (images, truth))
        return [
            (restored, shrunk(target, level)) for stage in self.restored(padded) for level, restored in enumerate(stage)
        ]

    def restored(self, images: Tensor) -> list[list[Tensor]]:
        """Images whose sides fit ``tile_multiple`` to those that every stage gives, by level, [B, C, H / 2^l, W / 2^l].

        The last stage's first one is the result.
        """
        sizes = [shrunk(images, level).permute(0, 2, 3, 1).contiguous() for level in range(self.config.supervised)]
        found, carried = [], None
        for stage in self.stages:
            outputs, carried = stage(sizes, carried)
            found.append([output.permute(0, 3, 1, 2) for output in outputs])
        return found


def shrunk(images: Tensor, level: int) -> Tensor:
    """[B, C, H, W] to [B, C, H / 2^l, W / 2^l]: the pixel after the middle of every square, Flax's nearest."""
    step = 2**level
    return images[..., step // 2 :: step, step // 2 :: step]
