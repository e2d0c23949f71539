"""Mask2Former in the app: training, early exits from the parent to the gate, and their command."""

from __future__ import annotations

import shutil

import pytest
import torch

from apps.core.inference.load import load
from apps.segmentation.exits import main
from checkpoints.safe import read_safe
from tests.apps.segmentation.runs import run

SMALL = {
    "model.head": "mask2former",
    "model.head.width": 16,
    "model.head.mask_width": 16,
    "model.head.queries": 8,
    "model.head.layers": 2,
    "model.head.heads": 2,
    "model.head.mlp": 32,
    "model.head.encoder_layers": 2,
    "model.head.encoder_heads": 2,
    "model.head.encoder_points": 2,
    "model.head.encoder_mlp": 32,
    "model.head.groups": 4,
    "model.head.merge_groups": 4,
    "model.head.loss_points": 64,
    "model.head.channels": None,
    "trainer.max_epochs": 1,
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "parent"
    assert run(folder, **SMALL, **{"model.head.exits": "sample"}) == 0
    return folder


def test_from_a_parent_to_a_gate(parent, tmp_path, capsys):
    output = tmp_path / "gated.safetensors"
    words = ["--weights", str(parent), "--output", str(output), "--images", "3"]
    assert main([*words, "--price", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 training images" in said and "gate: 1.00 of 2 layers" in said
    assert main([*words, "--price", "0", "--data.num_workers", "1"]) == 0  # another price repeats the last step alone
    assert "qualities: 3 images of" in capsys.readouterr().out
    record, _ = read_safe(tmp_path / "gated.exits.safetensors")
    assert record["qualities"].shape == (3, 2) and 0 <= record["qualities"].min() <= record["qualities"].max() <= 1
    assert main([*words, "--price", "1"]) == 0
    module = load("segmentation", output, device="cpu").module
    head = module.model.head
    assert module.config.model.head.exits == "gate"
    images = torch.randn(2, 3, 40, 50)
    assert head.depth(module.model.backbone(images)).tolist() == [1, 1]
    assert module.model.class_scores(images).shape[-2:] == (40, 50)


def test_qualities_of_another_parent_or_data_are_made_anew(parent, tmp_path, capsys):
    weights = tmp_path / "parent.ckpt"
    shutil.copy(parent / "checkpoints" / "last.ckpt", weights)
    words = ["--weights", str(weights), "--output", str(tmp_path / "gated.safetensors"), "--images", "2"]
    assert main(words) == 0
    assert "anew" not in capsys.readouterr().out
    first, _ = read_safe(tmp_path / "gated.exits.safetensors")
    state = torch.load(weights, weights_only=True)
    for value in state["state_dict"].values():
        value += 0.1 if value.is_floating_point() else 0
    torch.save(state, weights)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "not known to be of the same weights: they are made anew" in said and "2 training images, kept in" in said
    second, _ = read_safe(tmp_path / "gated.exits.safetensors")
    assert not torch.equal(first["features"], second["features"])
    assert main([*words[:-1], "3", "--data.images_seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "the same data and number of images: they are made anew" in said and "3 training images, kept in" in said


def test_what_cannot_be_gated_is_named(parent, tmp_path, capsys):
    assert main(["--weights", str(parent)]) == 2
    assert "must both be given" in capsys.readouterr().err
    assert main(["--weights", str(parent), "--output", "x.ckpt"]) == 2
    assert "--output x.ckpt must end in .safetensors" in capsys.readouterr().err
    assert main(["--weights", str(parent), "--output", str(tmp_path / "x.safetensors"), "--price", "-2"]) == 2
    assert "--price -2 must be a number, 0 or more" in capsys.readouterr().err
    words = ["--weights", str(parent), "--output", str(tmp_path / "x.safetensors"), "--model.head.exits", "none"]
    assert main(words) == 2
    assert "no parent with early exits" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "--price" in capsys.readouterr().out
