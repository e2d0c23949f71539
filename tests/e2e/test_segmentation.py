"""The segmentation app as a user meets it: commands, files, exit codes."""

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

from apps.core.cli.main import main
from apps.segmentation.config import TASK
from tests.backbones.vision.toy import NAME

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/segmentation/tiny.yaml"
OWN = "configs/segmentation/folder.yaml"
SMALL = ["--model.backbone", NAME, "--model.head", "segformer", "--model.head.channels", "16", "--data.crop", "[32,32]"]
SMALL += ["--data.batch_size", "4", "--data.num_workers", "0", "--trainer.max_epochs", "2", "--log.wandb", "off"]
SMALL += ["--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"]


def process(*words: object, code: int = 0, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run ``python -m apps.segmentation`` and check its exit code; an error must not show a traceback."""
    command = [sys.executable, "-m", "apps.segmentation", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout)
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


def street(number: int, height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """A road below a sky and a car on it, as an image and its mask."""
    random = np.random.default_rng(number)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 2] = 1
    left = int(random.integers(0, width - 16))
    mask[height // 2 - 5 : height // 2 + 5, left : left + 14] = 2
    colours = np.array([[90, 90, 90], [90, 150, 230], [210, 40, 40]])
    image = colours[mask] + random.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def write_streets(root: Path, splits: dict[str, int]) -> Path:
    number = 0
    for split, count in splits.items():
        for _ in range(count):
            image, mask = street(number)
            for kind, pixels in (("images", image), ("masks", mask)):
                place = root / kind / split / f"{number:03d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place)
            number += 1
    (root / "classes.txt").write_text("road\nsky\ncar\n")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A user's own folder with train, val and test."""
    return write_streets(tmp_path_factory.mktemp("own") / "photos", {"train": 16, "val": 3, "test": 4})


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    """A finished run on a user's own folder."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = process("fit", "--config", OWN, "--data.root", photos, "--run.dir", folder, "--run.pictures", "1", *SMALL)
    assert "report.html" in done.stdout
    return folder


def values(folder: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in json.loads((folder / "results.json").read_text())}


def test_fit_leaves_a_complete_run_folder(trained):
    for name in ("config.yaml", "provenance.json", "metrics.csv", "results.json", "report.html", "media/index.json"):
        assert (trained / name).is_file(), name
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    rows = {row["metric"]: row for row in json.loads((trained / "results.json").read_text())}
    assert {"miou", "macc", "aacc", "fscore", "boundary_iou"} <= set(rows) and rows["miou"]["samples"] == 4
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<img" in page
    assert "scores by class" in page and "taken for" in page
    names = {path.name for path in (trained / "media").glob("*.png")}
    assert "summary_confusion.png" in names and any("segmentation" in name for name in names)


def test_a_run_starts_again_from_its_config_alone(run, trained, tmp_path):
    run("fit", "--config", trained / "config.yaml", "--run.dir", tmp_path / "again")
    assert (tmp_path / "again/results.json").read_text() == (trained / "results.json").read_text()


def test_test_repeats_the_numbers_of_fit(run, trained, tmp_path):
    assert "baseline" in run("test", "--weights", trained, "--run.dir", tmp_path / "t")
    assert values(tmp_path / "t") == pytest.approx(values(trained), rel=1e-6)
    run("validate", "--weights", trained, "--run.dir", tmp_path / "v")
    assert "miou" in values(tmp_path / "v")


def test_predict_and_python_agree(run, trained, photos, tmp_path):
    from apps import load

    image = photos / "images/test/019.png"
    out = run("predict", "--weights", trained, "--input", image, "--output", tmp_path / "found")
    assert "019_mask.png" in out and (tmp_path / "found/annotations.json").is_file()
    labels = np.asarray(Image.open(tmp_path / "found/019_mask.png"))
    found = load("segmentation", trained)(np.asarray(Image.open(image)))
    np.testing.assert_array_equal(labels, found.labels)
    assert found.classes == ("road", "sky", "car")


def test_export_is_checked_number_by_number(run, trained, tmp_path):
    out = run("export", "--weights", trained, "--output", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file() and out.count("equal") >= 3
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == ["road", "sky", "car"]


def test_benchmark_writes_json(run, tmp_path):
    run("benchmark", "--config", TINY, *SMALL, "--json", tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text().lower()
    for word in ("p50", "p90", "parameters", "flops", "memory", "train_step"):
        assert word in text, word


def test_doctor_reads_the_data(run, photos, tmp_path):
    out = run("doctor", "--config", OWN, *SMALL, "--data.root", photos)
    assert "road" in out and "car" in out and "one epoch, about" in out
    broken = write_streets(tmp_path / "broken", {"train": 3, "val": 1, "test": 1})
    (broken / "images/train/001.png").write_bytes(b"no image")
    out = run("doctor", "--config", OWN, *SMALL, "--data.root", broken, code=1)
    assert "001.png" in out


def test_trunk_and_head_swap_with_one_word(run, tmp_path):
    words = ["--config", TINY, "--trainer.max_steps", "1", "--run.report", "false", "--run.pictures", "0"]
    run("fit", *words, "--run.dir", tmp_path / "run", "--model.backbone", NAME, "--model.head", "unet")
    text = (tmp_path / "run/config.yaml").read_text()
    assert f"name: {NAME}" in text and "name: unet" in text


# -- what goes wrong --------------------------------------------------------------------------------------------------


def _streets(folder: Path) -> Path:
    return write_streets(folder, {"train": 3, "val": 1, "test": 1})


def _outside(folder: Path) -> Path:
    root = _streets(folder)
    mask = np.asarray(Image.open(root / "masks/train/001.png")).copy()
    mask[3, 4] = 77
    Image.fromarray(mask).save(root / "masks/train/001.png")
    return root


def _mismatched(folder: Path) -> Path:
    root = _streets(folder)
    Image.fromarray(np.zeros((10, 12), dtype=np.uint8)).save(root / "masks/train/001.png")
    return root


def _without_mask(folder: Path) -> Path:
    root = _streets(folder)
    (root / "masks/train/001.png").unlink()
    return root


def _truncated(folder: Path) -> Path:
    root = _streets(folder)
    path = root / "masks/train/001.png"
    path.write_bytes(path.read_bytes()[:60])
    return root


def _doubled(folder: Path) -> Path:
    root = _streets(folder)
    (root / "classes.txt").unlink()
    (root / "palette.txt").write_text("90 90 90 road\n90 150 230 sky\n90 90 90 car\n")
    return root


def _empty(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    return folder


BAD_DATA = {
    "missing root": (lambda p: p / "nowhere", ["nowhere", "images"]),
    "no root": (lambda p: "", ["data.root"]),
    "empty folders": (_empty, ["no masks", "images"]),
    "number of no class": (_outside, ["001.png", "77"]),
    "sizes differ": (_mismatched, ["001.png", "10", "40"]),
    "missing mask": (_without_mask, ["001"]),
    "truncated mask": (_truncated, ["001.png"]),
    "colours twice": (_doubled, ["palette.txt", "90 90 90"]),
}


@pytest.mark.parametrize("case", list(BAD_DATA))
def test_bad_data_is_one_clear_error(run, case, tmp_path):
    make, expected = BAD_DATA[case]
    root = make(tmp_path / "data")
    words = ["--data.root", root] if root else []
    out = run("fit", "--config", OWN, *words, "--run.dir", tmp_path / "run", *SMALL, code=2)
    for word in expected:
        assert word in out, out
    assert out.count("error:") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.hed", "kmax"], "model.head"),
        (["--model.head", "kmaxx"], "kmax"),
        (["--model.backbone", "dinat_tinny"], "dinat_tiny"),
        (["--data.crop", "[16,64]"], "data.crop"),
        (["--data.name", "camvit"], "camvid"),
        (["--inference.mode", "slide", "--inference.crop", "32", "--inference.stride", "64"], "stride=64"),
        (["--inference.crop", "32,64", "--inference.stride", "16,65"], "must be at most crop="),
        (["--inference.scales", "[0]"], "inference.scales"),
        (["--panoptic.overlap", "2"], "panoptic.overlap=2"),
        (["--config", "configs/segmentation/tinny.yaml"], "tiny.yaml"),
        (["--weights", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_bad_options_are_one_clear_error(run, words, expected, tmp_path):
    out = run("fit", "--config", TINY, "--run.dir", tmp_path / "run", *words, code=2)
    assert expected in out
    assert out.count("error:") == 1


def test_weights_of_other_classes_are_refused(run, trained, tmp_path):
    out = run("test", "--weights", trained, "--data.name", "generated", "--run.dir", tmp_path / "t", code=2)
    assert "was trained on 3 classes" in out and "--model.backbone.weights" in out


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

KILLED = ["fit", "--config", TINY, *SMALL, "--trainer.max_epochs", "6", "--data.num_workers", "2"]
KILLED += ["--checkpoint.every_n_steps", "3", "--run.report", "false", "--run.pictures", "0"]


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "apps.segmentation", *KILLED, "--run.dir", str(folder), *words]
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


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("fcn", ["--model.head.channels", "16", "--model.head.auxiliary_channels", "16"]),
        pytest.param("mask2former", ["--model.head.queries", "8"], marks=pytest.mark.slow),
        pytest.param("kmax", ["--model.head.queries", "8"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_heads_that_read_some_levels_alone(tmp_path, head, words):
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    common = ["--config", TINY, "--model.head", head, *words, "--trainer.max_epochs", "1"]
    process("fit", *common, *both, "--run.dir", tmp_path / "both")
    process("test", "--weights", tmp_path / "both", "--run.dir", tmp_path / "alone", "--trainer.devices", "1")
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("both", "alone"))
    scores = {row["metric"]: row["value"] for row in one}
    assert {row["metric"] for row in two} == set(scores)
    for row in two:
        score = scores[row["metric"]]
        if score is not None:  # null is a score of nothing, such as of large objects where there are none
            score = pytest.approx(score, rel=1e-4, abs=1e-4, nan_ok=True)
        assert row["value"] == score, row["metric"]


# -- the shipped configurations ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "metric", "least"), [("demo", "miou", 50), ("demo_panoptic", "pq", 35)])
def test_the_demos_are_far_above_the_most_frequent_class(tmp_path, name, metric, least):
    process("fit", "--config", f"configs/segmentation/{name}.yaml", "--run.dir", tmp_path / "run", timeout=900)
    rows = {row["metric"]: row for row in json.loads((tmp_path / "run/results.json").read_text())}
    assert rows[metric]["value"] > least > rows[metric]["baseline"]
