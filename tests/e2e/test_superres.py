"""The super-resolution app as a user meets it: commands, files, exit codes."""

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
from apps.superres.config import TASK
from datamodules.superres.bicubic import imresize
from datamodules.superres.config import GeneratedConfig
from datamodules.superres.generated import write_generated

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/superres/tiny.yaml"
OWN = "configs/superres/folder.yaml"
SMALL = ["--data.degradation.scale", "2", "--model.width", "8", "--model.depths", "[1]", "--model.kernel", "3"]
SMALL += ["--data.patch", "12", "--data.batch_size", "4", "--data.num_workers", "0", "--data.cache", "off"]
SMALL += ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"]
SMALL += ["--log.wandb", "off"]


def process(*words: object, code: int = 0, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run ``python -m apps.superres`` and check its exit code; an error must not show a traceback."""
    command = [sys.executable, "-m", "apps.superres", *map(str, words)]
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A user's own folder of originals, sides odd."""
    made = write_generated(GeneratedConfig(root=str(tmp_path_factory.mktemp("made")), images=8, side=48))
    root = tmp_path_factory.mktemp("own") / "photos"
    root.mkdir()
    for number, path in enumerate(sorted(made.rglob("*.png"))):
        with Image.open(path) as image:
            image.crop((0, 0, 47, 45)).save(root / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    """A finished run on a user's own folder."""
    folder = tmp_path_factory.mktemp("run") / "run"
    words = ["--data.root", photos, "--data.test_share", "0.2", "--data.val_share", "0.2", "--data.repeat", "4"]
    done = process("fit", "--config", OWN, *words, "--run.dir", folder, "--run.pictures", "1", *SMALL)
    assert "report.html" in done.stdout
    return folder


def values(folder: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in json.loads((folder / "results.json").read_text())}


def test_fit_leaves_a_complete_run_folder(trained):
    for name in ("config.yaml", "provenance.json", "metrics.csv", "results.json", "report.html", "media/index.json"):
        assert (trained / name).is_file(), name
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    rows = {row["metric"]: row for row in json.loads((trained / "results.json").read_text())}
    assert set(rows) == {"psnr", "ssim", "psnr_rgb", "ssim_rgb"} and rows["psnr"]["baseline"] > 10
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<img" in page
    assert 'type="range"' in page and "Local attribution" in page
    names = [path.name for path in (trained / "media").glob("*.png")]
    assert any("crops" in name for name in names) and any("attribution" in name for name in names)


def test_a_run_starts_again_from_its_config_alone(run, trained, tmp_path):
    run("fit", "--config", trained / "config.yaml", "--run.dir", tmp_path / "again")
    assert (tmp_path / "again/results.json").read_text() == (trained / "results.json").read_text()


def test_test_repeats_the_numbers_of_fit(run, trained, tmp_path):
    assert "baseline" in run("test", "--weights", trained, "--run.dir", tmp_path / "t")
    assert values(tmp_path / "t") == pytest.approx(values(trained), rel=1e-6)
    run("validate", "--weights", trained, "--run.dir", tmp_path / "v")
    assert set(values(tmp_path / "v")) >= {"psnr", "ssim"}


def test_predict_and_python_agree(run, trained, photos, tmp_path):
    from apps import load

    out = run("predict", "--weights", trained, "--input", photos / "00.png", "--output", tmp_path / "large.png")
    assert "wrote" in out
    written = np.asarray(Image.open(tmp_path / "large.png"))
    assert written.shape == (90, 94, 3)
    ours = load("superres", trained)(np.asarray(Image.open(photos / "00.png")))
    np.testing.assert_array_equal(written, np.rint(ours * 255))
    run("predict", "--weights", trained / "checkpoints/best.ckpt", "--input", photos, "--output", tmp_path / "all")
    assert len(list((tmp_path / "all").glob("*.png"))) == len(list(photos.glob("*.png")))


def test_export_is_checked_number_by_number(run, trained, tmp_path):
    out = run("export", "--weights", trained, "--output", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file() and out.count("equal") >= 3
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert metadata["scale"] == "2"


def test_benchmark_writes_json(run, tmp_path):
    run("benchmark", "--config", TINY, "--json", tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text().lower()
    for word in ("p50", "p90", "parameters", "flops", "memory", "train_step"):
        assert word in text, word


def test_doctor_reads_the_data(run, photos, tmp_path):
    out = run("doctor", "--config", OWN, *SMALL, "--data.root", photos)
    assert "train:" in out and "one epoch, about" in out
    (tmp_path / "broken").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "broken" / name).write_bytes(b"no image")
    out = run("doctor", "--config", OWN, *SMALL, "--data.root", tmp_path / "broken", code=1)
    assert "a.png: cannot be decoded" in out


# -- a paper's table --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "psnr", "ssim"), [(2, 38.0696, 0.9607), (3, 34.5018, 0.9279), (4, 32.3277, 0.8964)])
def test_official_weights_give_the_published_numbers(run, shared, tmp_path, scale, psnr, ssim):
    weights = shared / f"data/cfsr_weights/CFSR_x{scale}.safetensors"
    words = ["--config", f"configs/superres/cfsr_x{scale}_set5.yaml", "--data.root", shared / "data/Set5"]
    run("test", *words, "--weights", f"official:{weights}", "--run.dir", tmp_path / "run", "--run.pictures", "0")
    found = values(tmp_path / "run")
    assert found["psnr"] == pytest.approx(psnr, abs=0.005) and found["ssim"] == pytest.approx(ssim, abs=1e-4)


@pytest.mark.slow
def test_tiles_of_a_photograph_equal_the_whole(run, shared, tmp_path):
    """512 x 512 pixels by official weights: the largest difference is far below a level of 255, seams included."""
    data = pytest.importorskip("skimage.data", reason="the photograph is scikit-image's (extra sample)")
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.tif")
    words = ["predict", "--config", "configs/superres/cfsr_x2_set5.yaml", "--data.root", shared / "data/Set5"]
    words += ["--weights", f"official:{shared / 'data/cfsr_weights/CFSR_x2.safetensors'}"]
    found = []
    for side in (512, 200):
        out = tmp_path / f"{side}.png"
        run(*words, "--input", tmp_path / "astronaut.tif", "--output", out, "--tiles.size", side)
        found.append(np.asarray(Image.open(out)).astype(int))
    assert found[0].shape == (1024, 1024, 3)
    difference = np.abs(found[0] - found[1])
    # rounding to 8 bits turns a difference of 1e-6 into one level, once in a while
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-4


# -- what goes wrong --------------------------------------------------------------------------------------------------


def _images(folder: Path, **sides: tuple[int, int]) -> Path:
    for name, (height, width) in sides.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path.with_suffix(".png"))
    return folder


def _truncated(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(noise).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:3000])
    return folder


def _animated(folder: Path) -> Path:
    frames = [Image.fromarray(np.full((48, 48, 3), level, dtype=np.uint8)) for level in (0, 99)]
    for name in ("a.gif", "b.gif", "c.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    return folder


def _empty(folder: Path) -> Path:
    (folder / "deeper").mkdir()
    return folder


def _mismatched(folder: Path) -> Path:
    return _images(folder, **{f"HR__{n}": (48, 48) for n in "abc"}, **{f"LR__X2__{n}": (20, 24) for n in "abc"})


def _without_partner(folder: Path) -> Path:
    return _images(folder, **{f"HR__{n}": (48, 48) for n in "abc"}, **{f"LR__X2__{n}": (24, 24) for n in "ab"})


BAD_DATA = {
    "missing root": (lambda p: p / "nowhere", ["nowhere", "HR"]),
    "no root": (lambda p: "", ["data.root"]),
    "folder without images": (_empty, ["no images", "HR"]),
    "sizes of pairs differ": (_mismatched, ["24", "20", "48"]),
    "missing pair": (_without_partner, ["c.png"]),
    "truncated files": (_truncated, [".png", "on_corrupt skip"]),
    "animations": (_animated, [".gif", "animation"]),
    "images of one pixel": (lambda p: _images(p, a=(1, 1), b=(1, 1), c=(1, 1)), [".png", "1 x 1"]),
}


@pytest.mark.parametrize("case", list(BAD_DATA))
def test_bad_data_is_one_clear_error(run, case, tmp_path):
    make, expected = BAD_DATA[case]
    (tmp_path / "data").mkdir()
    root = make(tmp_path / "data")
    words = ["--data.root", root] if root else []
    out = run("fit", "--config", OWN, *words, "--run.dir", tmp_path / "run", *SMALL, code=2)
    for word in expected:
        assert word in out, out
    assert out.count("error:") == 1


def test_originals_that_are_no_multiples_are_cropped_and_said(run, trained, photos, tmp_path):
    out = run("test", "--weights", trained, "--run.dir", tmp_path / "t")
    assert "45 x 47 pixels, 44 x 46 are used" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.nam", "cfsr"], "model.name"),
        (["--model.name", "cfrs"], "cfsr"),
        (["--data.degradation.name", "bicubik"], "bicubic"),
        (["--data.degradation.scale", "0"], "scale=0"),
        (["--data.channels", "2"], "data.channels=2 must be 3 (colour) or 1 (grey)"),
        (["--model.name", "hat_s", "--data.degradation.scale", "5"], "scale=5"),
        (["--tiles.size", "-1"], "tiles.size=-1"),
        (["--config", "configs/superres/tinny.yaml"], "tiny.yaml"),
        (["--weights", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_bad_options_are_one_clear_error(run, words, expected, tmp_path):
    out = run("fit", "--config", TINY, "--run.dir", tmp_path / "run", *words, code=2)
    assert expected in out
    assert out.count("error:") == 1


def test_weights_of_another_scale_name_both(run, trained, tmp_path):
    words = ["--config", TINY, *SMALL, "--data.degradation.scale", "3"]
    out = run("test", *words, "--weights", trained, "--run.dir", tmp_path / "t", code=2)
    assert "weights for scale 2, the model is built for scale 3" in out


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
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.png")
    out = run("predict", "--weights", trained, "--input", tmp_path, "--output", tmp_path / "out", code=2)
    assert "1 of 2 images are left out" in out and (tmp_path / "out/whole.png").is_file()


# -- broken off -------------------------------------------------------------------------------------------------------

KILLED = ["fit", "--config", TINY, "--trainer.max_epochs", "6", "--data.num_workers", "2"]
KILLED += ["--checkpoint.every_n_steps", "3", "--run.report", "false", "--run.pictures", "0"]


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "apps.superres", *KILLED, "--run.dir", str(folder), *words]
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


# -- the shipped configurations and weights ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_beats_bicubic(tmp_path):
    process("fit", "--config", "configs/superres/demo.yaml", "--run.dir", tmp_path / "run", timeout=900)
    rows = {row["metric"]: row for row in json.loads((tmp_path / "run/results.json").read_text())}
    assert rows["psnr"]["value"] > rows["psnr"]["baseline"] + 0.5


def test_the_shipped_weights_enlarge_a_photograph_better_than_bicubic(run, shared, tmp_path):
    with Image.open(shared / "data/Set5/HR/butterfly.png") as image:
        original = np.asarray(image.convert("RGB")) / 255
    low = np.rint(imresize(original, 0.5).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(low).save(tmp_path / "low.png")
    run("predict", "--weights", "zoo:superres-demo", "--input", tmp_path / "low.png", "--output", tmp_path / "high.png")
    ours = np.asarray(Image.open(tmp_path / "high.png")) / 255
    bicubic = np.rint(imresize(low / 255, 2).clip(0, 1) * 255) / 255
    inner = (slice(2, -2), slice(2, -2))
    errors = [np.square(image[inner] - original[inner]).mean() for image in (ours, bicubic)]
    assert errors[0] < 0.8 * errors[1]
