"""What a fit leaves behind, refuses, and survives."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from apps.core.cli.schema import to_plain
from apps.core.run.evaluate import _load, evaluate
from apps.core.run.fit import _check_same, fit
from apps.core.run.folder import RunFolder
from apps.core.task import VerbOptions
from graftwork.errors import ConfigError, DataError, UserError, WeightsError
from tests.resume.runs import assert_same, run, toy
from tests.toy_task import TASK, ToyModule


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "run"
    assert run(folder, **{"run.pictures": 2, "run.report": True, "published": {"mse": 0.01}}) == 0
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder) if row[name]]


def test_the_run_folder_is_complete(fitted):
    found = {str(path.relative_to(fitted)) for path in fitted.rglob("*") if path.is_file()}
    wanted = {
        "config.yaml", "provenance.json", "metrics.csv", "results.json", "notes.json", "report.html",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "media/index.json", "media/summary_nothing.png",
    }  # fmt: skip
    assert wanted <= found
    sections = [entry["section"] for entry in json.loads((fitted / "media" / "index.json").read_text())]
    assert {name: sections.count(name) for name in set(sections)} == {"summary": 1, "best": 2, "worst": 2, "random": 2}


def test_results_stand_beside_baseline_and_published_value(fitted):
    (row,) = json.loads((fitted / "results.json").read_text())
    assert row["metric"] == "mse" and row["samples"] == 21 and row["published"] == 0.01
    assert row["value"] < row["baseline"]


def test_best_is_the_first_of_the_lowest_validation_losses(fitted):
    losses = column(fitted, "val/loss")
    best = torch.load(fitted / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["graftwork"]["metrics"]["val/loss"] == pytest.approx(min(losses))
    assert best["graftwork"]["step"] == 13 * (losses.index(min(losses)) + 1)


def test_training_loss_of_an_epoch_is_the_mean_of_its_batches(tmp_path):
    assert run(tmp_path / "run", **{"trainer.log_every_n_steps": 1}) == 0
    steps, means = column(tmp_path / "run", "train/loss_step"), column(tmp_path / "run", "train/loss")
    assert len(steps) == 39 and len(means) == 3
    assert means[1] == pytest.approx(sum(steps[13:26]) / 13)


def test_validation_loss_is_the_plain_mean_of_batch_means(fitted):
    """21 samples in batches of 5: the last batch of one sample counts as much as the others."""
    losses, errors = column(fitted, "val/loss"), column(fitted, "val/mse")
    assert all(abs(loss - error) > 1e-6 for loss, error in zip(losses, errors, strict=True))


def test_a_checkpoint_knows_its_story(fitted):
    story = torch.load(fitted / "checkpoints" / "best.ckpt", weights_only=True)["graftwork"]
    assert story["task"] == "toy" and story["info"] == {"inputs": 3}
    assert story["config"]["model"]["name"] == "net" and "seed: 2023" in story["config_text"]


def test_a_second_run_gives_the_same_numbers(fitted, tmp_path):
    assert run(tmp_path / "run") == 0
    weights = [
        torch.load(p / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in (fitted, tmp_path / "run")
    ]
    assert_same(*weights, "weights")


def test_a_folder_that_holds_a_run_is_not_overwritten(fitted):
    before = (fitted / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run\. Go on with it by --resume last"):
        run(fitted)
    assert (fitted / "metrics.csv").read_bytes() == before


def test_nothing_to_go_on_with(tmp_path):
    config = toy(tmp_path, **{"run.dir": "", "run.root": str(tmp_path)})
    with pytest.raises(UserError, match="no run to go on with"):
        fit(TASK, config, VerbOptions(resume="last"))
    with pytest.raises(UserError, match="no such run folder"):
        run(tmp_path / "nowhere", resume=True)
    with pytest.raises(UserError, match="no such checkpoint"):
        fit(TASK, toy(tmp_path / "new"), VerbOptions(resume=str(tmp_path / "x.ckpt")))


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, caplog):
    caplog.set_level("INFO")
    RunFolder.create("toy", toy(tmp_path / "run").run, "")
    (tmp_path / "run" / "metrics.csv").write_text("step,epoch,old\n0,0,1.0\n")
    assert run(tmp_path / "run", resume=True) == 0
    assert "no checkpoint yet: starting from scratch" in caplog.text
    assert "old" not in rows(tmp_path / "run")[0] or not rows(tmp_path / "run")[0]["old"]


def test_resume_last_finds_the_newest_run_of_the_name(tmp_path):
    changes = {"run.dir": "", "run.root": str(tmp_path), "trainer.max_epochs": 1}
    for _ in range(2):
        assert fit(TASK, toy(tmp_path, **changes), VerbOptions()) == 0
    longer = toy(tmp_path, **{**changes, "trainer.max_epochs": 2})
    assert fit(TASK, longer, VerbOptions(resume="last")) == 0
    older, newer = sorted((tmp_path / "toy" / "lines_net").iterdir())
    assert len(column(older, "val/loss")) == 1 and len(column(newer, "val/loss")) == 2


def test_resuming_with_another_model_is_refused(fitted):
    with pytest.raises(ConfigError, match=r"the run so far had model\.width=8, now 16.*same model"):
        run(fitted, resume=True, **{"model.width": 16})


def test_resuming_with_another_grouping_of_the_parameters_is_refused(fitted):
    with pytest.raises(ConfigError, match=r"optim\.layer_decay=1\.0, now 0\.5.*same optim"):
        run(fitted, resume=True, **{"optim.layer_decay": 0.5})


def test_resuming_with_other_sizes_of_the_data_is_refused(fitted, tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["graftwork"]["info"]["samples"] = 50  # a fact that is an option of the data, too
    torch.save(checkpoint, path)
    module = ToyModule(toy(tmp_path), {"inputs": 3})
    module.story = {"config": to_plain(toy(tmp_path, **{"data.samples": 40, "data.eval_samples": 3}))}
    with pytest.raises(ConfigError, match=r"had data\.samples=50, now 40\. Resume with the same data"):
        _check_same(path, TASK, module)


def test_resuming_with_fewer_epochs_than_done_is_refused(fitted):
    before = (fitted / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"already has 3 epochs.*max_epochs=2\. Raise --trainer\.max_epochs"):
        run(fitted, resume=True, **{"trainer.max_epochs": 2})
    assert (fitted / "config.yaml").read_bytes() == before


def test_a_damaged_checkpoint_names_the_best_to_go_on_from(fitted, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, share in (("best.ckpt", 1), ("last.ckpt", 2)):
        whole = (fitted / "checkpoints" / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // share])
    with pytest.raises(WeightsError, match=r"last\.ckpt: .* --resume .*best\.ckpt$"):
        run(tmp_path, resume=True)


def test_a_lower_learning_rate_wins_over_the_checkpoint(fitted, tmp_path):
    import shutil

    shutil.copytree(fitted, tmp_path / "run")
    changes = {"trainer.max_epochs": 4, "schedule.name": "constant", "optim.lr": 0.001}
    assert run(tmp_path / "run", resume=True, **changes) == 0
    assert column(tmp_path / "run", "lr")[-1] == 0.001


def test_weights_to_start_from(fitted, tmp_path):
    options = VerbOptions(weights=str(fitted))
    assert fit(TASK, toy(tmp_path / "run", **{"optim.lr": 1e-12, "trainer.max_epochs": 1}), options) == 0
    before, after = (
        torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]["model.0.weight"]
        for path in (fitted, tmp_path / "run")
    )
    assert torch.allclose(before, after, atol=1e-6)
    with pytest.raises(WeightsError, match=r"do not fit Sequential: 0\.weight is \[8, 3\], expected \[5, 3\]"):
        fit(TASK, toy(tmp_path / "other", **{"model.width": 5}), options)


def test_models_without_weights_go_straight_to_the_test(tmp_path):
    assert run(tmp_path / "run", model="zero") == 0
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    assert row["value"] == pytest.approx(row["baseline"])
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_skipped_files_are_listed(tmp_path):
    changes = {"data.corrupt": [4, 9], "data.on_corrupt": "skip", "data.num_workers": 1}
    assert run(tmp_path / "run", **changes) == 0
    assert RunFolder(tmp_path / "run").notes()["skipped files"] == {"photos/4.png": 3, "photos/9.png": 3}


def test_a_data_error_in_a_worker_ends_the_run_in_its_words(tmp_path):
    with pytest.raises(DataError, match=r"^rows/3\.csv: has 2 columns, expected 3\. Add the column$"):
        run(tmp_path / "run", **{"data.broken": 3, "data.num_workers": 2})


def test_a_full_disk_ends_the_run_and_nothing_is_lost(tmp_path, monkeypatch):
    folder, opened, writes = tmp_path / "run", Path.open, []

    def full(self, mode="r", *args, **kwargs):
        if "last.ckpt" in self.name and "w" in mode:
            writes.append(self)
            if len(writes) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(UserError, match=r"last\.ckpt: cannot be written: No space left.*--resume last"):
            run(folder)
    assert run(folder, resume=True) == 0
    assert run(tmp_path / "unbroken") == 0
    states = [torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True) for n in ("run", "unbroken")]
    assert_same(states[0]["state_dict"], states[1]["state_dict"], "weights")


def test_validate_and_test_of_a_run(fitted, tmp_path, capsys):
    config = toy(tmp_path / "evaluated", **{"run.report": True})
    assert evaluate(TASK, config, VerbOptions(weights=str(fitted)), "test") == 0
    found = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    wanted = json.loads((fitted / "results.json").read_text())
    assert found[0]["value"] == wanted[0]["value"]
    assert evaluate(TASK, config, VerbOptions(weights=str(fitted)), "validate") == 0
    both = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert [row["split"] for row in both] == ["test", "val", "val"]
    best = torch.load(fitted / "checkpoints" / "best.ckpt", weights_only=True)["graftwork"]["metrics"]
    assert both[1]["value"] == best["val/mse"]
    assert not (tmp_path / "evaluated" / "checkpoints").exists()


def test_evaluation_needs_weights(tmp_path):
    config = toy(tmp_path, **{"run.dir": "", "run.root": str(tmp_path)})
    with pytest.raises(UserError, match="no trained weights given"):
        evaluate(TASK, config, VerbOptions(), "test")


def test_results_do_not_depend_on_the_evaluation_batch_size(fitted, tmp_path):
    values = []
    for size in (1, 21):
        config = toy(tmp_path / str(size), **{"data.eval_batch_size": size})
        evaluate(TASK, config, VerbOptions(weights=str(fitted)), "test")
        values.append(json.loads((tmp_path / str(size) / "results.json").read_text())[0]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_options_that_this_machine_does_not_have(tmp_path):
    with pytest.raises(ConfigError, match=r"^trainer: .*doctor"):
        run(tmp_path / "run", **{"trainer.accelerator": "tpu"})
    with pytest.raises(ConfigError, match=r"trainer\.devices.*no list of devices"):
        run(tmp_path / "other", **{"trainer.devices": "0,x"})


def test_the_moving_average_is_what_is_validated_and_kept(tmp_path, monkeypatch):
    seen = []

    def remember(self, batch):
        seen.append(self.model[0].weight.detach().clone())
        return self._forward(batch)

    monkeypatch.setattr(ToyModule, "predict_batch", remember)
    assert run(tmp_path / "run", **{"trainer.ema_decay": 0.9, "trainer.max_epochs": 1}) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    average, current = last["state_dict"]["model.0.weight"], last["current_model_state"]["model.0.weight"]
    assert torch.equal(seen[0], average) and torch.equal(seen[-1], average)
    assert not torch.equal(average, current)
    assert last["state_dict"]["model.1.num_batches_tracked"] == 13  # buffers are copied, not averaged


def test_compiled_models_leave_the_same_names(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("apps.core.run.trainer.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.nn.Module.compile", lambda self, *a, **k: called.append(self))
    assert run(tmp_path / "run", **{"trainer.compile": True, "trainer.max_epochs": 1}) == 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert called and all(key.startswith("model.") and "_orig_mod" not in key for key in state)


def test_scores_on_other_data_come_with_a_warning(fitted, tmp_path, caplog):
    path = tmp_path / "other.ckpt"
    checkpoint = torch.load(fitted / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["graftwork"]["info"] = {"inputs": 3, "names": ["a", "b"]}
    torch.save(checkpoint, path)
    config = toy(tmp_path / "test")
    module = ToyModule(config, {"inputs": 3, "names": ["c", "d"]})
    _load(module, TASK, config, VerbOptions(weights=str(path)))
    assert f"{path} was trained on other data (names a, b, now c, d)" in caplog.text
