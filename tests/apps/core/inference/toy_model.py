"""The toy task with what predict, export and benchmark need, usable outside of a trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from apps.core.cli.schema import to_plain
from apps.core.protocols import ExportSpec
from apps.core.run.module import GraftModule
from backbones.attention.attend import attend
from tests import toy_task


class LoneToy(toy_task.ToyModule):
    def training_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self._forward(batch) - batch["values"]).square().mean()}

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        return {"points": torch.ones(batch_size, 3), "values": torch.ones(batch_size, 1)}

    def export_spec(self) -> ExportSpec:
        return ExportSpec(
            module=self.model,
            examples=[{"input": torch.randn(size, 3)} for size in (2, 1, 5)],
            dynamic={"input": {0: "batch"}},
            outputs=["values"],
        )


class Attending(nn.Module):
    """Attention over the three coordinates of a point."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(1, 24)
        self.out = nn.Linear(3 * 8, 1)

    def forward(self, points: Tensor) -> Tensor:
        q, k, v = self.project(points[..., None]).reshape(len(points), 3, 2, 12).split(4, dim=-1)
        return self.out(attend(q, k, v).flatten(1))


class AttendingToy(LoneToy):
    def build_model(self) -> nn.Module:
        return Attending()


class ToyPredictor:
    def __init__(self, module: GraftModule) -> None:
        self.module = module.eval()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.module.predict_batch({"points": torch.as_tensor(points).float()}).numpy()

    def predict_file(self, source: str, output: str | None = None) -> list[Path]:
        target = Path(output or f"{source}.out.csv")
        np.savetxt(target, self(np.loadtxt(source, delimiter=",", ndmin=2)))
        return [target]


HERE = "tests.apps.core.inference.toy_model"
TASK = dataclasses.replace(toy_task.TASK, module=f"{HERE}:LoneToy", predictor=f"{HERE}:ToyPredictor")
ATTENDING = dataclasses.replace(TASK, module=f"{HERE}:AttendingToy")


def save_checkpoint(path: Path, config: toy_task.ToyConfig | None = None) -> LoneToy:
    """Write a checkpoint as a fit does; returns the module that it holds."""
    config = config or toy_task.ToyConfig()
    torch.manual_seed(99)
    module = LoneToy(config, {"inputs": 3}).eval()
    module.story = {"task": "toy", "config": to_plain(config), "config_text": "seed: 2023\n"}
    checkpoint = {"state_dict": module.state_dict(), "global_step": 7}
    module.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return module
