"""Tests under corruptions: the first images of the split, in the precision of the test, classes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.core.run.evaluate import evaluate
from apps.core.task import VerbOptions
from apps.segmentation.config import TASK
from apps.segmentation.module import SegmentationModule
from apps.segmentation.robustness import robustness
from datamodules.segmentation.info import SegmentationInfo
from tests.apps.segmentation.runs import SMALL_MASKS, run, small

INFO = SegmentationInfo(tuple("abc"), ((0, 0, 0),) * 3, crop=(32, 32))
OBJECTS = {"model.head": "mask2former", "model.head.channels": None} | {
    f"model.head.{name}": value for name, value in SMALL_MASKS.items()
}


def module(info: SegmentationInfo = INFO, **words: Any) -> SegmentationModule:
    torch.manual_seed(0)
    return SegmentationModule(small(Path("unused"), **words), info).eval()


def batches(size: int, share: slice = slice(None)) -> Iterator[dict[str, Any]]:
    """Eleven images in batches, or the share of a process in them."""
    random = torch.Generator().manual_seed(0)
    images, masks = torch.randn(11, 3, 32, 32, generator=random), torch.randint(0, 3, (11, 32, 32), generator=random)
    own = torch.arange(11)[share]
    for index in own.split(size):
        names = [str(number) for number in index.tolist()]
        yield {"image": images[index], "mask": masks[index], "index": index, "name": names}


@torch.no_grad()
def seen(size: int, most: int, share: slice = slice(None)) -> tuple[list[dict[str, Any]], set[int]]:
    """Rows, and the numbers of the images that were predicted."""
    ours, numbers = module(), set[int]()

    def predict(batch):
        assert len(batch["name"]) == len(batch["image"]) == len(batch["index"])
        numbers.update(batch["index"].tolist())
        return ours.predict_classes(batch)

    return robustness(ours, batches(size, share), ["contrast"], most, predict), numbers


@pytest.mark.parametrize("most", [3, 4, 0])
def test_the_first_images_are_taken_whatever_the_batches(most):
    rows, numbers = seen(1, most)
    assert numbers == set(range(most or 11))
    for size in (4, 8):
        others, same = seen(size, most)
        assert same == numbers
        for row, other in zip(rows, others, strict=True):
            assert other == {key: pytest.approx(value) for key, value in row.items()}


def test_the_first_images_are_taken_whatever_the_processes():
    shares = [seen(2, 5, slice(rank, None, 3))[1] for rank in range(3)]
    assert shares == [{0, 3}, {1, 4}, {2}]


def test_nobody_looks_for_segments(monkeypatch):
    ours = module(SegmentationInfo(**{**vars(INFO), "things": (2,), "panoptic": True}), **OBJECTS)
    assert ours.tells_objects
    monkeypatch.setattr(ours.model.head, "panoptic", lambda *_: pytest.fail("segments are not scored"))
    with torch.no_grad():
        first, second = robustness(ours, batches(4), ["contrast"], 2)
    assert first["mean"] > 0 and set(second) == {"corruption", "mean", "kept %", *"12345"}


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_precision_is_that_of_the_test(tmp_path, precision):
    assert run(tmp_path / "run", **{"trainer.max_epochs": 1}) == 0
    words = {"corruptions.names": "contrast", "corruptions.images": 0, "trainer.precision": precision}
    options = VerbOptions(weights=str(tmp_path / "run"), argv=("test",))
    assert evaluate(TASK, small(tmp_path / "test", **words), options, "test") == 0
    (clean, _) = json.loads((tmp_path / "test/notes.json").read_text())["tables"]["mean IoU under corruptions"]
    rows = {row["metric"]: row["value"] for row in json.loads((tmp_path / "test/results.json").read_text())}
    assert clean["mean"] == pytest.approx(rows["miou"])
