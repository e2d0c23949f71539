"""The run folder: new names, the newest run, whole files, places that cannot be written to."""

from __future__ import annotations

import json

import pytest
from matplotlib.figure import Figure

from apps.core.config import RunConfig
from apps.core.protocols import Picture
from apps.core.report.report import write_report
from apps.core.report.table import format_rows
from apps.core.run.folder import RunFolder
from apps.core.run.processes import RUN_DIR
from apps.core.run.provenance import provenance
from graftwork.errors import UserError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", RUN_DIR):
        monkeypatch.setenv(name, "0")  # so that what the code sets is undone
        monkeypatch.delenv(name)


def test_runs_of_one_second_have_folders_of_their_own(tmp_path):
    run = RunConfig(root=str(tmp_path))
    folders = [RunFolder.create("toy", run, "lines_net") for _ in range(12)]
    assert len({folder.path for folder in folders}) == 12
    assert folders[0].path.parent == tmp_path / "toy" / "lines_net"
    assert RunFolder.latest("toy", run, "lines_net").path == folders[-1].path


def test_the_newest_run_is_a_fit_of_that_name(tmp_path):
    run = RunConfig(root=str(tmp_path))
    fit = RunFolder.create("toy", run, "a")
    RunFolder.create("toy", run, "a", verb="test")
    RunFolder.create("toy", run, "b")
    assert RunFolder.latest("toy", run, "a").path == fit.path
    assert RunFolder.latest("toy", run, "c") is None


@pytest.mark.parametrize("run", [RunConfig(dir="file/run"), RunConfig(root="file")])
def test_a_place_that_cannot_be_written_to(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written.*--run\.dir or --run\.root"):
        RunFolder.create("toy", run, "name")


def test_an_unknown_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        RunFolder.open(tmp_path / "nowhere")


def test_notes_results_and_pictures_are_read_back(tmp_path):
    folder = RunFolder.create("toy", RunConfig(dir=str(tmp_path / "run")), "")
    folder.note("timing", {"training_s": 1.5})
    folder.note("skipped", ["a.png"])
    assert folder.notes() == {"timing": {"training_s": 1.5}, "skipped": ["a.png"]}
    folder.save_results([{"metric": "mse", "value": 1.0}])
    assert folder.results() == [{"metric": "mse", "value": 1.0}]
    for caption in ("first", "second"):
        path = folder.save_picture("best", Picture("point 3/x", caption, Figure(figsize=(1, 1))), score=0.5)
    assert path.read_bytes().startswith(b"\x89PNG")
    index = json.loads((folder.media / "index.json").read_text())
    assert index == [{"file": "best_point_3_x.png", "section": "best", "caption": "second", "score": 0.5}]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    folder = RunFolder.create("toy", RunConfig(root=str(tmp_path)), "name")
    monkeypatch.setenv("LOCAL_RANK", "1")
    other = RunFolder.create("toy", RunConfig(root=str(tmp_path)), "name")
    other.note("key", 1)
    assert other.path == folder.path.resolve() and not other.notes()


def test_processes_of_another_launcher_need_a_common_name(tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"--run.dir"):
        RunFolder.create("toy", RunConfig(root=str(tmp_path)), "name")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    paths = set()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        paths.add(RunFolder.create("toy", RunConfig(root=str(tmp_path)), "name").path.resolve())
    assert paths == {(tmp_path / "toy" / "name" / "torchrun-7").resolve()}


def test_provenance_tells_where_a_run_comes_from():
    facts = provenance("toy", "lines", ["fit", "--config", "a b.yaml"], seed=3)
    assert facts["command"] == "python -m apps.toy fit --config 'a b.yaml'"
    assert facts["seed"] == 3 and facts["torch"] and facts["python"] and facts["cpu"]
    json.dumps(facts)


def test_what_is_not_finite_is_null_in_the_files(tmp_path):
    folder = RunFolder.create("toy", RunConfig(dir=str(tmp_path / "run")), "")
    nan, inf = float("nan"), float("inf")
    folder.save_results([{"metric": "mse", "value": nan, "baseline": inf, "published": None, "samples": 3}])
    folder.note("tables", {"by step": ({"step": 1, "mse": -inf},)})

    def strict(name):
        refuse = pytest.fail
        return json.loads((folder.path / name).read_text(), parse_constant=lambda word: refuse(f"{name} holds {word}"))

    assert strict("results.json")[0] == {
        "metric": "mse", "value": None, "baseline": None, "published": None, "samples": 3,
    }  # fmt: skip
    assert strict("notes.json")["tables"] == {"by step": [{"step": 1, "mse": None}]}
    assert "mse" in write_report(folder).read_text()
    assert format_rows(folder.results())[1][0] == "mse"


def test_a_picture_to_compare_with_is_kept_beside(tmp_path):
    folder = RunFolder(tmp_path)
    folder.prepare()
    path = folder.save_picture("best", Picture("a", "A.", Figure((1, 1)), before=Figure((1, 1))))
    (entry,) = json.loads((folder.media / "index.json").read_text())
    assert (entry["file"], entry["before"]) == (path.name, "best_a_before.png")
    assert (folder.media / entry["before"]).stat().st_size > 0
