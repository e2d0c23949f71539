"""Telling where shuffled patches of an image came from: pretraining without labels.

Source: Zhai et al. 2022, "Position Prediction as an Effective Pretraining Strategy". They give a plain transformer the
patches without their positions, as a set, hide some of them from attention, and let every token predict its position.
Differs: a pyramid has positions built in (convolutions, windows, tables of relative positions) that cannot be taken
away, so the patches themselves are shuffled in the image before the backbone sees it; nothing is hidden; the tokens of
a patch are averaged before its position is predicted. Jigsaw puzzles (Noroozi and Favaro 2016) shuffle too, but choose
among a fixed list of permutations, process every patch by itself, and leave gaps between patches so that edges cannot
be continued; here each patch chooses among all positions, in one pass over the whole image, without gaps.

Shape legend: B batch, C channels, H height, W width, n patches per side, N = n * n patches, p pixels per patch side,
h, w height and width of the last map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.vision.base import VisionBackbone
from backbones.vision.layers import init_linear
from graftwork.errors import ShapeError


class PositionHead(nn.Module):
    """Norm on the map, mean over the positions of each patch, linear.

    The norm has the name that it has in a classifier's head, so that fine-tuning takes it over; the linear layer has
    another, so that it is never mistaken for that of classes.

    Args:
        norm: [B, C, h, w] to the same.
        width: Channels of the map, C.
        side: Patches per side, n.
    """

    def __init__(self, norm: nn.Module, width: int, side: int) -> None:
        super().__init__()
        self.norm = norm
        self.side = side
        self.position = nn.Linear(width, side**2)
        init_linear(self.position)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] to logits of positions, [B, N, N]."""
        cells = features.shape[-1] // self.side
        patches = F.avg_pool2d(self.norm(features), cells)  # B, C, n, n
        logits: Tensor = self.position(patches.flatten(2).transpose(1, 2))
        return logits


class Positions(nn.Module):
    """A backbone that tells for every patch of a shuffled image where it came from.

    Args:
        backbone: Its last map is read.
        side: Patches per side, n.
        patch: Pixels per patch side, p; a multiple of the backbone's last stride.
    """

    def __init__(self, backbone: VisionBackbone, side: int, patch: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.side, self.patch = side, patch
        self.head = PositionHead(backbone.final_norm(), backbone.channels[-1], side)

    @property
    def patches(self) -> int:
        """Patches of an image, N."""
        return self.side**2

    def forward(self, images: Tensor) -> Tensor:
        """Logits of positions.

        Args:
            images: Shuffled images, [B, channels, n * p, n * p].

        Returns:
            [B, N, N]: for every place, in row-major order, the logits of the position that its patch had.

        Raises:
            ShapeError: Images of another size.
        """
        side = self.side * self.patch
        if images.dim() != 4 or images.shape[2:] != (side, side):
            raise ShapeError(
                f"images of Positions: expected [batch, channels, {side}, {side}] ({self.side} patches of {self.patch} "
                f"pixels a side), got {list(images.shape)}"
            )
        logits: Tensor = self.head(self.backbone(images)[-1])
        return logits


def shuffled(images: Tensor, order: Tensor, patch: int) -> Tensor:
    """Put the patches of images in another order.

    Args:
        images: [B, C, n * p, n * p].
        order: [B, N] int64; place i of the result shows the patch that was at ``order[:, i]``.
        patch: Pixels per patch side, p.

    Returns:
        [B, C, n * p, n * p].
    """
    side = images.shape[-1] // patch
    patches = images.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # B, C, n, p, n, p
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # B, N, C, p, p
    taken = patches.gather(1, order[:, :, None, None, None].expand_as(patches))
    rows = taken.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)  # B, C, n, p, n, p
    return rows.flatten(4, 5).flatten(2, 3)


def inverse(order: Tensor) -> Tensor:
    """The order that undoes another, [B, N] to the same: shuffling by both gives the image back."""
    return order.argsort(dim=1)


def orders(indices: Tensor, patches: int, seed: int, epoch: int) -> Tensor:
    """A random order of patches for each sample, a pure function of its arguments on every device.

    Args:
        indices: Index of each sample, [B] int64.
        patches: N.
        seed: Seed of the run.
        epoch: Epoch.

    Returns:
        [B, N] int64, a permutation of 0 .. N - 1 in each row: patches sorted by a hash of their number.
    """
    place = torch.arange(patches, device=indices.device)
    keys = _hashed(_hashed(_hashed(indices + _hashed(indices.new_tensor(seed))) + epoch)[:, None] + place)
    return keys.argsort(dim=1)


def _hashed(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers that scatters them: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, filling with zeros; torch fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The signed integer with the bits of an unsigned one."""
    return word - (1 << 64) if word >= 1 << 63 else word
