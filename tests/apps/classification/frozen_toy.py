"""The toy backbone with norms that never look at the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.backbones.vision.toy import Toy, ToyConfig


class FrozenToy(Toy):
    def train(self, mode: bool = True) -> FrozenToy:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self


@dataclass(kw_only=True)
class FrozenToyConfig(ToyConfig):
    """A toy in evaluation mode."""

    def structure(self, **common: Any) -> FrozenToy:
        return FrozenToy(drop_path=self.drop_path, **common).train()
