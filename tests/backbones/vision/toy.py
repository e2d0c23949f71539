"""A small convolutional backbone on the contract, for tests of what all backbones share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from backbones.vision.base import Stage, VisionBackbone
from backbones.vision.config import BackboneConfig
from backbones.vision.layers import DropPath, Mlp, drop_path_rates
from backbones.vision.variants import Variant
from checkpoints.keymap import KeyMap

CHANNELS, DEPTHS = (8, 12, 16), (1, 2, 1)


class ToyBlock(nn.Module):
    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.norm, self.mlp, self.drop_path = nn.LayerNorm(width), Mlp(width, 2 * width), DropPath(rate)
        self.table = nn.Parameter(torch.randn(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm(x))) + self.table.mean(1)


class Toy(VisionBackbone):
    def __init__(self, drop_path: float = 0.0, output_norms: bool = False, **common: Any) -> None:
        super().__init__(channels=CHANNELS, strides=(4, 8, 16), **common)
        self.stem = nn.Sequential(nn.Conv2d(self.in_channels, 8, 3, 4, 1), nn.BatchNorm2d(8))
        rates = drop_path_rates(drop_path, DEPTHS)
        downsamples = [nn.Identity(), *(Down(a, b) for a, b in pairwise(CHANNELS))]
        self.stages = nn.ModuleList(
            Stage(down, [Rows(ToyBlock(width, rate)) for rate in stage])
            for down, width, stage in zip(downsamples, CHANNELS, rates, strict=True)
        )
        self.finish(output_norms)

    def fit_tensor(self, name: str, found: Tensor, wanted: Tensor) -> Tensor | None:
        if not name.endswith("table") or found.shape[0] != wanted.shape[0]:
            return None
        return nn.functional.interpolate(found[None], wanted.shape[1], mode="linear")[0]


class Down(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, 2, 1)


class Rows(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(kw_only=True)
class ToyConfig(BackboneConfig):
    """A toy."""

    @property
    def facts(self) -> Variant:
        return Variant(family="toy", channels=CHANNELS, strides=(4, 8, 16))

    def structure(self, **common: Any) -> VisionBackbone:
        return Toy(drop_path=self.drop_path, **common)


RENAMES = ((r"^trunk\.", "backbone."), (r"^fc\.", "head.linear."), (r"^last_norm\.", "head.norm."))
KEYMAPS = {"toy": KeyMap(renames=RENAMES)}
NAME = "custom:tests.backbones.vision.toy.ToyConfig"
