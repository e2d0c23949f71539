"""Guards, stops and messages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apps.core.callbacks.finite import first_broken_weight, non_finite_inputs
from apps.core.callbacks.interruption import Interrupted
from apps.core.callbacks.memory import is_out_of_memory, memory_explained
from apps.core.callbacks.stopping import Patience
from apps.core.checkpoints.place import Place, counters_at
from graftwork.errors import UserError
from tests.resume.runs import run, toy


def test_a_loss_that_overflows_names_its_place_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    from tests.toy_task import ToyModule

    loss = ToyModule.training_loss

    def overflows(self, batch):
        parts = loss(self, batch)
        return parts if self.trainer.global_step < 20 else {"loss": parts["loss"] * float("inf")}

    with monkeypatch.context() as patch:
        patch.setattr(ToyModule, "training_loss", overflows)
        with pytest.raises(UserError) as caught:
            run(tmp_path / "run")
    text = str(caught.value)
    assert text.startswith("the training loss is inf in epoch 1, step 20 (batch 7, samples ")
    assert "lower --optim.lr than 0.02" in text and "--optim.clip_norm 1" in text
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 18
    assert run(tmp_path / "run", resume=True) == 0


def test_a_sample_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(UserError, match=r"loss is nan in epoch 0.*input 'points' is not finite in samples 13; |.*13\."):
        run(tmp_path / "run", **{"data.nan": 13})


def test_inputs_are_searched_by_sample():
    batch = {"a": torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), "b": torch.ones(2), "c": torch.tensor([1, 2])}
    assert list(non_finite_inputs(batch, [7, 9])) == ["input 'a' is not finite in samples 9"]


def test_broken_weights_are_named():
    net = torch.nn.Linear(2, 2)
    assert first_broken_weight(net) is None
    with torch.no_grad():
        net.bias[1] = float("inf")
    assert first_broken_weight(net) == "bias"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_says_what_to_do(error):
    assert is_out_of_memory(error)
    config = toy(Path("unused"), **{"data.batch_size": 4, "trainer.accumulate_grad_batches": 3})
    with pytest.raises(UserError) as caught, memory_explained(config):
        raise error
    text = str(caught.value)
    assert "--data.batch_size 2 with --trainer.accumulate_grad_batches 6" in text and "bf16-mixed" in text


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(toy(Path("unused"))):
        raise RuntimeError("shapes differ")


def patience_after(values: list[float], patience: int = 2, mode: str = "min") -> list[bool]:
    stops, trainer = [], SimpleNamespace(should_stop=False)
    callback = Patience("val/loss", mode, patience)
    for value in values:
        callback.on_train_epoch_end(trainer, SimpleNamespace(monitored={"val/loss": value}))
        stops.append(trainer.should_stop)
    return stops


def test_patience_counts_only_what_is_strictly_worse():
    assert patience_after([3, 4, 3, 4, 3, 4, 4]) == [False] * 6 + [True]
    assert patience_after([3, 2, 2, 2, 2]) == [False] * 5
    assert patience_after([1, 0, 1, 0, -1], mode="max") == [False, False, False, False, True]
    assert patience_after([float("nan"), float("nan")]) == [False, True]


def test_patience_ignores_epochs_without_a_validation():
    callback, trainer = Patience("val/loss", "min", 1), SimpleNamespace(should_stop=False)
    for monitored in ({"val/loss": 1.0}, {}, {}):
        callback.on_train_epoch_end(trainer, SimpleNamespace(monitored=monitored))
    assert not trainer.should_stop


def test_early_stopping_ends_the_run_early(tmp_path):
    changes = {"trainer.max_epochs": 30, "trainer.patience": 1, "optim.lr": 0.5, "schedule.name": "constant"}
    assert run(tmp_path / "run", **changes) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["graftwork"]["place"]["epoch"] < 30


def test_an_unknown_monitor_lists_what_is_logged(tmp_path):
    with pytest.raises(UserError, match=r"nothing is logged as 'val/accuracy'.*val/loss, val/mse"):
        run(tmp_path / "run", **{"checkpoint.monitor": "val/accuracy"})


def test_exit_codes_of_signals():
    assert (Interrupted(15).exit_code, Interrupted(2).exit_code) == (143, 130)


def test_places_survive_a_checkpoint():
    for place in (Place(3), Place(2, 7), Place(0, 13, validate=True)):
        assert Place.from_plain(place.plain()) == place
    state = {"epoch_loop.batch_progress": {"total": {"ready": 33}}}
    between = counters_at(Place(3), state, 30)
    assert set(between["epoch_progress"]["current"].values()) == {3}
    inside = counters_at(Place(2, 7), state, 30)
    assert inside["epoch_progress"]["current"] == {"ready": 3, "started": 3, "processed": 2, "completed": 2}
    assert state == {"epoch_loop.batch_progress": {"total": {"ready": 33}}}
