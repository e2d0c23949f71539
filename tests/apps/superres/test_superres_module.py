"""What the module adds around the networks: losses of whole images, captions, and weights that do not belong here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from apps.core.checkpoints.read import WeightsMeta
from apps.superres.losses import restoration_loss
from apps.superres.models.upsample import channels_of
from apps.superres.module import SuperresModule
from datamodules.superres.info import RestorationInfo
from graftwork.errors import WeightsError
from tests.apps.superres.runs import small


def module(folder: Path, scale: int = 2, channels: int = 3, **changes: Any) -> SuperresModule:
    torch.manual_seed(0)
    return SuperresModule(small(folder, **changes), RestorationInfo(scale=scale, channels=channels))


def sample(scale: int = 2, side: int = 24) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 3, side, side, generator=generator)
    return {"lq": torch.rand(1, 3, side // scale, side // scale, generator=generator), "gt": truth, "name": ["one"]}


@pytest.mark.parametrize("kind", ["l1", "focus_power", "focus_exponential"])
def test_the_validation_loss_is_that_of_the_training(tmp_path, kind):
    options = {"frequency_weight": 0.7, "focus_gamma": 2.5}
    found = module(tmp_path, **{"loss.kind": kind} | {f"loss.{name}": value for name, value in options.items()})
    batch = sample()
    restored = found.model(batch["lq"]).detach()
    loss = found.validation_loss(batch, restored)
    assert loss == restoration_loss(restored, batch["gt"], kind, **options)["loss"]
    assert loss == pytest.approx(float(found.training_loss(batch)["loss"]))
    assert loss != restoration_loss(restored, batch["gt"], kind)["loss"]


def test_images_restored_without_any_error_have_a_caption(tmp_path):
    found = module(tmp_path, scale=1, **{"data.degradation": "gaussian_noise", "data.degradation.scale": None,
                                         "model.image_skip": None})  # fmt: skip
    truth = sample()["gt"][0]
    named = {"gt": truth, "name": "blank", "index": 0}
    pictures = found.render({"lq": truth, **named}, truth)
    assert pictures[0].caption == "blank: +0.00 dB on all channels against unrestored."
    nearly = found.render({"lq": (truth - 0.1).clamp(min=0), **named}, truth)
    assert "inf" not in nearly[0].caption and "nan" not in nearly[0].caption


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_weights_for_images_of_other_channels_are_named_before_their_scale(tmp_path, scale):
    names = {"model.image_skip": None} if scale == 1 else {}
    grey = module(tmp_path, channels=1, **{"data.channels": 1})
    colour = module(tmp_path, scale=scale, **names)
    state = {f"model.{name}": value for name, value in colour.model.state_dict().items()}
    assert channels_of(colour.model.state_dict()) == 3
    for load in (grey.load_weights, grey.start_from):
        for info in (None, {"scale": scale}):
            with pytest.raises(WeightsError, match=r"images of 3 channels, the model is built for 1. Set --data.chann"):
                load(state, WeightsMeta(Path("net.ckpt"), info=info))
