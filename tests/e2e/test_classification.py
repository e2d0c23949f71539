"""The classification app as a user meets it: commands, files, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.classification.config import TASK
from apps.classification.teach import main as teach
from apps.core.cli.main import main
from datamodules.classification.config import GeneratedConfig
from datamodules.classification.generated import write_generated
from tests.backbones.vision.toy import NAME

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/classification/tiny.yaml"
OWN = "configs/classification/folder.yaml"
SMALL = ["--model.backbone", NAME, "--data.batch_size", "16", "--trainer.max_epochs", "2", "--log.wandb", "off"]
HERE = ["--data.image_size", "64", "--data.num_workers", "0", "--trainer.accelerator", "cpu"]


def process(*words: object, code: int = 0, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run ``python -m apps.classification`` and check its exit code; an error must not show a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "apps.classification", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., str]:
    """The same inside this process; gives what was printed."""
    monkeypatch.chdir(ROOT)

    def here(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        found = main(TASK, [str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, f"exit {found}\n{out[-3000:]}\n{err[-3000:]}"
        return out + err

    return here


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A user's own folder with train, val and test."""
    root = tmp_path_factory.mktemp("own")
    shapes = write_generated(GeneratedConfig(root=str(root), images=100, side=40))
    for split, numbers in (("train", range(60)), ("val", range(60, 80)), ("test", range(80, 100))):
        for path in sorted(shapes.rglob("*.png")):
            if int(path.stem) in numbers:
                place = root / "photos" / split / path.parent.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
    return root / "photos"


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    """A finished run on a user's own folder."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = process(
        "fit", "--config", OWN, "--data.root", photos, "--run.dir", folder, "--run.pictures", "2", *SMALL, *HERE,
    )  # fmt: skip
    assert "report.html" in done.stdout
    return folder


def values(folder: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in json.loads((folder / "results.json").read_text())}


def test_fit_leaves_a_complete_run_folder(trained):
    for name in ("config.yaml", "provenance.json", "metrics.csv", "results.json", "report.html", "media/index.json"):
        assert (trained / name).is_file(), name
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    rows = {row["metric"]: row for row in json.loads((trained / "results.json").read_text())}
    assert set(rows) == {"top1", "mean_class_accuracy", "ece", "loss"}
    assert rows["top1"]["samples"] == 20 and rows["top1"]["baseline"] == pytest.approx(25.0)
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<img" in page
    assert "accuracy by class" in page and "confused" in page
    names = {path.name for path in (trained / "media").glob("*.png")}
    assert {"summary_confusion.png", "summary_activation.png"} <= names and len(names) >= 6


def test_a_run_starts_again_from_its_config_alone(run, trained, tmp_path):
    run("fit", "--config", trained / "config.yaml", "--run.dir", tmp_path / "again")
    assert (tmp_path / "again/results.json").read_text() == (trained / "results.json").read_text()


def test_test_repeats_the_numbers_of_fit(run, trained, tmp_path):
    out = run("test", "--weights", trained, "--run.dir", tmp_path / "t", "--data.eval_batch_size", "7")
    assert "baseline" in out
    assert values(tmp_path / "t") == pytest.approx(values(trained), rel=1e-5)
    run("validate", "--weights", trained, "--run.dir", tmp_path / "v")
    assert set(values(tmp_path / "v")) == set(values(trained))


def test_predict_and_python_agree(run, trained, photos, tmp_path):
    from apps import load

    out = run(
        "predict",
        "--weights",
        trained / "checkpoints/best.ckpt",
        "--input",
        photos / "test",
        "--output",
        tmp_path / "a.csv",
    )
    assert "wrote" in out and (tmp_path / "a.png").stat().st_size > 1000
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].startswith("file,class,probability,class_2,probability_2") and len(lines) == 21
    file, name, probability = lines[1].split(",")[:3]
    predictor = load("classification", trained)
    guess = predictor(np.asarray(Image.open(photos / "test" / file)))
    assert guess.name == name and float(guess.probabilities[0]) == pytest.approx(float(probability), rel=1e-4)


def test_export_is_checked_number_by_number(run, trained, tmp_path):
    out = run("export", "--weights", trained, "--output", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file() and out.count("equal") >= 3
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == ["blue_cross", "green_square", "red_circle", "yellow_circle"]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]


def test_benchmark_writes_json(run, tmp_path):
    run("benchmark", "--config", TINY, *SMALL, "--json", tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text().lower()
    for word in ("p50", "p90", "parameters", "flops", "memory", "train_step"):
        assert word in text, word


def test_doctor_reads_the_data(run, photos, tmp_path):
    words = ["--config", OWN, *HERE, *SMALL]
    out = run("doctor", *words, "--data.root", photos)
    assert "train: 60 images" in out and "4 classes" in out and "one epoch, about" in out
    broken = tmp_path / "broken"
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(b"no image")
    out = run("doctor", *words, "--data.root", broken, code=1)
    assert "b/2.png: cannot be decoded" in out


def test_the_trunk_swaps_with_one_word(run, tmp_path):
    words = ["--config", TINY, "--trainer.max_steps", "2", "--run.report", "false", "--run.pictures", "0"]
    run("fit", *words, "--run.dir", tmp_path / "run", "--model.backbone", NAME, "--model.backbone.drop_path", "0.2")
    assert f"name: {NAME}" in (tmp_path / "run/config.yaml").read_text()
    assert "drop_path: 0.2" in (tmp_path / "run/config.yaml").read_text()


def test_teach_then_distil(run, trained, photos, tmp_path, capsys):
    words = ["--config", str(trained / "config.yaml"), "--data.root", str(photos)]
    store = ["--weights", str(trained), "--store", str(tmp_path / "store"), "--epochs", "1", "--top", "2"]
    assert teach([*words, *store]) == 0
    assert "teacher's accuracy" in capsys.readouterr().out
    run("fit", *words, "--run.dir", tmp_path / "student", "--distill.store", tmp_path / "store")
    head = (tmp_path / "student/metrics.csv").read_text().splitlines()[0]
    assert "train/teacher_top1" in head and "train/agreement" in head


# -- what goes wrong --------------------------------------------------------------------------------------------------


def _damaged(folder: Path) -> Path:
    for name in ("a/1.png", "b/1.png"):
        (folder / "data" / name).parent.mkdir(parents=True)
        (folder / "data" / name).write_bytes(b"no image")
    return folder / "data"


def _empty_class(folder: Path) -> Path:
    root = _damaged(folder)
    (root / "c").mkdir()
    return root


BAD_DATA = {
    "missing root": (lambda p: p / "nowhere", ["nowhere", "train/<class>"]),
    "empty class": (_empty_class, ["'c'", "no images"]),
    "corrupt image": (_damaged, [".png", "cannot be decoded", "on_corrupt skip"]),
    "no folder at all": (lambda p: "", ["data.root", "no folder of images given"]),
}


@pytest.mark.parametrize("case", list(BAD_DATA))
def test_bad_data_is_one_clear_error(run, case, tmp_path):
    make, expected = BAD_DATA[case]
    root = make(tmp_path)
    words = ["--data.root", root] if root else []
    out = run("fit", "--config", OWN, *words, "--run.dir", tmp_path / "run", *SMALL, *HERE, code=2)
    for word in expected:
        assert word in out, out
    assert out.count("error:") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.bakbone", "swin_tiny"], "model.backbone"),
        (["--model.name", "clasifier"], "classifier"),
        (["--model.backbone", "dinat_tinny"], "dinat_tiny"),
        (["--model.backbone.drop_pth", "0.1"], "model.backbone.drop_path"),
        (["--data.image_size", "16"], "data.image_size=16 is smaller than the 32 pixels"),
        (["--data.name", "digits"], "unknown dataset 'digits'"),
        (["--config", "configs/classification/tinny.yaml"], "tiny.yaml"),
        (["--data.augment.policy", "randaugment"], "data.augment.policy='randaugment'"),
        (["--model.backbone.weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_options_are_one_clear_error(run, words, expected, tmp_path):
    out = run("fit", "--config", TINY, "--run.dir", tmp_path / "run", *words, code=2)
    assert expected in out
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes_are_refused(run, trained, tmp_path):
    out = run(
        "test",
        "--weights",
        trained,
        "--data.name",
        "generated",
        "--data.classes",
        "6",
        "--run.dir",
        tmp_path / "t",
        code=2,
    )
    assert "was trained on 4 classes, these data have 6" in out and "--model.backbone.weights" in out


def test_weights_with_code_are_refused_and_not_run(run, tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes("\x80\x02cposix\nsystem\nX\x01\x00\x00\x00x\x85R.".encode("latin-1"))
    out = run("test", "--config", TINY, "--weights", path, "--run.dir", tmp_path / "run", code=2)
    assert "evil.ckpt: refused" in out


def test_predict_refuses_what_it_cannot_read(run, trained, tmp_path):
    assert "no file to predict on" in run("predict", "--weights", trained, code=2)
    assert "no such file" in run("predict", "--weights", trained, "--input", tmp_path / "gone.png", code=2)
    (tmp_path / "text.png").write_text("no image")
    out = run("predict", "--weights", trained, "--input", tmp_path / "text.png", code=2)
    assert "text.png: cannot be decoded" in out


# -- broken off -------------------------------------------------------------------------------------------------------

KILLED = [
    "fit", "--config", TINY, "--model.backbone", NAME, "--trainer.max_epochs", "6", "--data.num_workers", "2",
    "--checkpoint.every_n_steps", "3", "--run.report", "false", "--run.pictures", "0", "--mix.cutmix", "1.0",
]  # fmt: skip


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "apps.classification", *KILLED, "--run.dir", str(folder), *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_the_same(tmp_path):
    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    last = tmp_path / "killed/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    again = start(tmp_path / "killed", "--resume", "last")
    assert again.wait(timeout=240) == 0 and whole.wait(timeout=240) == 0
    states = [
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    results = [(tmp_path / name / "results.json").read_text() for name in ("whole", "killed")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_two_processes_score_as_one(trained, tmp_path):
    found = []
    for devices, strategy in (("1", "auto"), ("2", "ddp")):
        words = ["--trainer.devices", devices, "--trainer.strategy", strategy, "--trainer.accelerator", "cpu"]
        words += ["--run.dir", str(tmp_path / devices), "--data.eval_batch_size", "3"]
        process("test", "--weights", trained, *words)
        found.append(json.loads((tmp_path / devices / "results.json").read_text()))
    for one, two in zip(*found, strict=True):
        assert one["metric"] == two["metric"] and one["samples"] == two["samples"]
        assert two["value"] == pytest.approx(one["value"], rel=1e-6), one["metric"]
        assert two["baseline"] == (one["baseline"] if one["baseline"] is None else pytest.approx(one["baseline"]))


# -- the shipped configurations ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tiny_takes_seconds(tmp_path):
    started = time.monotonic()
    process("fit", "--config", TINY, "--run.dir", tmp_path / "run")
    assert time.monotonic() - started < 120
    assert values(tmp_path / "run")["top1"] > 60


@pytest.mark.slow
def test_the_demo_tells_digits(tmp_path):
    process("fit", "--config", "configs/classification/demo.yaml", "--run.dir", tmp_path / "run", timeout=900)
    assert values(tmp_path / "run")["top1"] > 95


@pytest.mark.slow
def test_pretraining_beats_chance_and_starts_a_classifier(tmp_path):
    process("fit", "--config", "configs/classification/positions.yaml", "--run.dir", tmp_path / "pre", timeout=900)
    rows = {row["metric"]: row for row in json.loads((tmp_path / "pre/results.json").read_text())}
    assert rows["position_accuracy"]["value"] > 2 * rows["position_accuracy"]["baseline"]
    words = ["--trainer.max_epochs", "1", "--data.image_size", "64", "--model.backbone", "vig_tiny"]
    words += ["--model.backbone.weights", str(tmp_path / "pre/checkpoints/best.ckpt")]
    process("fit", "--config", "configs/classification/demo.yaml", "--run.dir", tmp_path / "tuned", *words, timeout=900)
    assert values(tmp_path / "tuned")["top1"] > 10
