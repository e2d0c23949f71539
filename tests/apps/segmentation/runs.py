"""Small runs of the segmentation app inside the test's own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from apps.core.cli.resolve import resolve, to_yaml
from apps.core.run.fit import fit
from apps.core.task import VerbOptions
from apps.segmentation.config import TASK, SegmentationConfig
from tests.backbones.vision.toy import NAME

SMALL: dict[str, Any] = {
    "data.name": "generated",
    "data.crop": [32, 32],
    "data.batch_size": 4,
    "model.backbone": NAME,
    "model.backbone.drop_path": 0.2,
    "model.head": "segformer",
    "model.head.channels": 16,
    "optim.lr": 5e-3,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.threads": 1,
    "log.wandb": "off",
    "run.pictures": 0,
    "run.report": False,
}

SMALL_MASKS: dict[str, Any] = {
    "width": 32,
    "mask_width": 32,
    "queries": 8,
    "layers": 2,
    "heads": 4,
    "mlp": 64,
    "encoder_layers": 1,
    "encoder_heads": 4,
    "encoder_mlp": 64,
    "groups": 4,
    "merge_groups": 4,
    "loss_points": 256,
}
"""Options of a Mask2Former of seconds."""


def small(folder: Path, **changes: Any) -> SegmentationConfig:
    """A configuration of seconds: ``small(path, **{"data.num_workers": 2})``; None takes an option away."""
    words = {**SMALL, "run.dir": str(folder), **changes}
    config: SegmentationConfig = resolve(
        SegmentationConfig, [], {key: value for key, value in words.items() if value is not None}
    )
    return config


def run(folder: Path, *, resume: bool = False, weights: str = "", **changes: Any) -> int:
    """Fit the small configuration."""
    config = small(folder, **changes)
    options = VerbOptions(resume="last" if resume else "", weights=weights, config_text=to_yaml(config), argv=("fit",))
    return fit(TASK, config, options)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Weights of a checkpoint of a run."""
    state: dict[str, torch.Tensor] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return state


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Result rows by metric."""
    return {row["metric"]: row for row in json.loads((folder / "results.json").read_text())}
