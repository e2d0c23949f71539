"""Out of memory: the message proposes what the configuration can make smaller."""

from __future__ import annotations

from types import SimpleNamespace

from apps.core.callbacks.memory import smaller
from apps.core.config import TrainerConfig


def config(**model: object) -> SimpleNamespace:
    data = SimpleNamespace(batch_size=8, eval_batch_size=1, crop=256)
    return SimpleNamespace(data=data, model=SimpleNamespace(**model), trainer=TrainerConfig())


def test_batch_crop_precision_and_checkpointing_are_proposed():
    ideas = smaller(config(checkpointing=False))
    assert ideas == [
        "--data.batch_size 4 with --trainer.accumulate_grad_batches 2",
        "--data.crop 128",
        "--trainer.precision bf16-mixed",
        "--model.checkpointing true",
    ]


def test_checkpointing_is_proposed_only_where_it_exists_and_is_off():
    assert not any("checkpointing" in idea for idea in smaller(config()))
    assert not any("checkpointing" in idea for idea in smaller(config(checkpointing=True)))
