"""Randomness as a pure function of the place in the run, so that a resumed run draws what an unbroken one would."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import torch

_STAGES = {"train": 0, "val": 1, "test": 2, "init": 3}
Stage = Literal["train", "val", "test", "init"]


def seed_place(seed: int, stage: Stage, epoch: int = 0, batch: int = 0, rank: int = 0) -> None:
    """Seed torch, numpy and ``random`` from a place in the run.

    Args:
        seed: Seed of the run.
        stage: Part of the run.
        epoch: Epoch; 0 where the stage has none, so that every validation draws the same.
        batch: Number of the batch; micro-batches of one optimiser step differ.
        rank: Number of the process.
    """
    place = np.random.SeedSequence((seed, epoch), spawn_key=(_STAGES[stage], batch, rank))
    low, high = (int(word) for word in place.generate_state(2, np.uint32))
    torch.manual_seed(high << 31 ^ low)
    np.random.seed(low)
    random.seed(high)
