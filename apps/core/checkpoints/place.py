"""The place in a run that a checkpoint stands for, and the loop counters that make Lightning go on exactly there.

Lightning 2.6 saves its counters as they happen to be inside the hook that saves, and guesses the place from their
differences when it restarts. The guess is wrong in several cases: the loader starts its epoch anew, so that a restart
inside an epoch sees batches twice; the loader's own state is ignored where the learning-rate schedule asked for the
number of steps; and ``max_steps`` makes every restart look like one inside an epoch. So the counters are rewritten to
one of three states that restart without a guess: between batches, before the validation that ends an epoch, and between
epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A place in training.

    Args:
        epoch: Epochs done.
        batch: Batches done of the next epoch.
        validate: All batches of that epoch are done, and its validation is not.
    """

    epoch: int
    batch: int = 0
    validate: bool = False

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"epoch": self.epoch, "batch": self.batch, "validate": self.validate}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Place:
        """The inverse of :meth:`plain`."""
        return cls(int(plain["epoch"]), int(plain["batch"]), bool(plain["validate"]))


def counters_at(place: Place, fit_loop: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """State of Lightning's fit loop at a place.

    Args:
        place: Where training stands.
        fit_loop: ``checkpoint["loops"]["fit_loop"]`` as Lightning wrote it in some hook.
        steps: Optimiser steps taken.

    Returns:
        The state with the counters of epochs, batches and validation replaced.
    """
    state = copy.deepcopy(dict(fit_loop))
    inside = place.batch > 0
    epochs = {**_all(place.epoch), "ready": place.epoch + inside, "started": place.epoch + inside}
    state["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}

    loop = "epoch_loop."
    done = state[f"{loop}batch_progress"]["total"]["ready"]
    state[f"{loop}batch_progress"] = {
        "total": _all(done),
        "current": _all(place.batch),
        "is_last_batch": place.validate,
    }
    # a validation that started and processed nothing is gone back to; one that never started is not
    validation = {**_all(0), "ready": 1, "started": 1} if place.validate else _all(0)
    state[f"{loop}val_loop.batch_progress"] = {"total": validation, "current": _all(0), "is_last_batch": False}
    # this counter numbers the logged rows; Lightning raises it after the validation
    state[f"{loop}state_dict"] = {"_batches_that_stepped": steps - place.validate}
    state["state_dict"] = {}
    return state


def _all(number: int) -> dict[str, int]:
    return {"ready": number, "started": number, "processed": number, "completed": number}
