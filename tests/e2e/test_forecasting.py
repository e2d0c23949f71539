"""The forecasting app as a user meets it: commands, files, exit codes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/forecasting/tiny.yaml"


def run(*words: object, code: int = 0, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run ``python -m apps.forecasting`` and check its exit code; an error must not show a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "apps.forecasting", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def write_csv(path: Path, rows: int = 400, **columns: object) -> Path:
    steps = np.arange(rows)
    frame = pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=rows, freq="h").strftime("%Y-%m-%d %H:%M"),
            "load": 10 + 3 * np.sin(steps * 2 * np.pi / 24),
            "heat": 20 + np.cos(steps * 2 * np.pi / 24) + 0.01 * steps,
            **columns,
        }
    )
    frame.to_csv(path, index=False)
    return path


SMALL = [
    "--model.width", "16", "--model.feedforward", "16", "--model.layers", "1", "--model.mixer.heads", "2",
    "--data.look_back", "48", "--data.horizon", "12", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    "--log.wandb", "off",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a user's own CSV file."""
    folder = tmp_path_factory.mktemp("own")
    data = write_csv(folder / "own.csv")
    out = run(
        "fit", "--config", "configs/forecasting/csv.yaml", "--data.root", data, "--run.dir", folder / "run",
        *SMALL, "--model.quantiles", "0.1,0.5,0.9",
    )  # fmt: skip
    assert "report.html" in out.stdout
    return folder


def test_fit_leaves_a_complete_run_folder(trained):
    folder = trained / "run"
    for name in ("config.yaml", "provenance.json", "metrics.csv", "results.json", "report.html", "media/index.json"):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    rows = {row["metric"]: row for row in json.loads((folder / "results.json").read_text())}
    assert {"mse", "mae", "mase", "smape", "pinball", "coverage_80"} <= set(rows)
    assert rows["mse"]["samples"] > 0
    assert rows["mse"]["baseline"] is not None
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<img" in page


def test_a_run_starts_again_from_its_config_alone(trained, tmp_path):
    run("fit", "--config", trained / "run/config.yaml", "--run.dir", tmp_path / "again")
    first = json.loads((trained / "run/results.json").read_text())
    again = json.loads((tmp_path / "again/results.json").read_text())
    assert again == first


def test_test_repeats_the_numbers_of_fit(trained, tmp_path):
    best = trained / "run/checkpoints/best.ckpt"
    out = run("test", "--weights", best, "--run.dir", tmp_path / "t", "--data.eval_batch_size", "7")
    assert "seasonal" in out.stdout.lower() or "baseline" in out.stdout.lower()
    first = {r["metric"]: r["value"] for r in json.loads((trained / "run/results.json").read_text())}
    again = {r["metric"]: r["value"] for r in json.loads((tmp_path / "t/results.json").read_text())}
    assert again == pytest.approx(first, rel=1e-5)


def test_predict_continues_the_timestamps_in_units(trained, tmp_path):
    target = tmp_path / "ahead.csv"
    run(
        "predict",
        "--weights",
        trained / "run/checkpoints/best.ckpt",
        "--input",
        trained / "own.csv",
        "--output",
        target,
    )
    frame = pd.read_csv(target, parse_dates=["date"])
    assert len(frame) == 12
    assert frame["date"].iloc[0] == pd.Timestamp("2024-01-01") + pd.Timedelta(hours=400)
    assert (frame["date"].diff().dropna() == pd.Timedelta(hours=1)).all()
    assert {"load", "heat", "load_q0.1", "load_q0.9"} <= set(frame.columns)
    assert (frame["load_q0.1"] <= frame["load_q0.9"]).all()
    assert frame["load"].between(0, 20).all()
    assert target.with_suffix(".png").stat().st_size > 1000


def test_python_load_agrees_with_the_command(trained, tmp_path):
    from apps import load

    predictor = load("forecasting", str(trained / "run/checkpoints/best.ckpt"))
    frame = pd.read_csv(trained / "own.csv", parse_dates=["date"])
    by_frame = predictor(frame)
    by_array = predictor(frame[["load", "heat"]].to_numpy(), start="2024-01-01")
    np.testing.assert_allclose(by_frame.values, by_array.values, rtol=1e-6)
    target = tmp_path / "ahead.csv"
    run(
        "predict",
        "--weights",
        trained / "run/checkpoints/best.ckpt",
        "--input",
        trained / "own.csv",
        "--output",
        target,
    )
    np.testing.assert_allclose(pd.read_csv(target)[["load", "heat"]].to_numpy(), by_frame.values, rtol=1e-5)


def test_export_is_checked_number_by_number(trained, tmp_path):
    target = tmp_path / "model.onnx"
    out = run("export", "--weights", trained / "run/checkpoints/best.ckpt", "--output", target)
    assert target.is_file()
    assert "forecast" in out.stdout


def test_benchmark_writes_json(tmp_path):
    run("benchmark", "--config", TINY, "--json", tmp_path / "b.json")
    figures = json.loads((tmp_path / "b.json").read_text())
    text = json.dumps(figures)
    for word in ("p50", "p90", "parameters", "flops", "memory", "math"):
        assert word in text.lower(), word


def test_doctor_reads_the_data(trained, tmp_path):
    out = run("doctor", "--config", "configs/forecasting/csv.yaml", "--data.root", trained / "own.csv", *SMALL)
    assert "own.csv" in out.stdout
    broken = write_csv(tmp_path / "broken.csv", heat=["x"] * 400)
    out = run("doctor", "--config", "configs/forecasting/csv.yaml", "--data.root", broken, code=1)
    assert "heat" in out.stdout + out.stderr


@pytest.mark.parametrize("mixer", ["flow", "scan", "selective_scan", "probsparse"])
def test_mixer_swaps_with_one_word(mixer, tmp_path):
    run("fit", "--config", TINY, "--model.mixer", mixer, "--trainer.max_steps", "2", "--run.dir", tmp_path / "run",
        "--run.report", "false")  # fmt: skip
    assert (tmp_path / "run/results.json").is_file()


@pytest.mark.parametrize("model", ["last_value", "seasonal_naive"])
def test_baselines_need_no_training(model, tmp_path):
    run("fit", "--config", TINY, "--model.name", model, "--run.dir", tmp_path / "run")
    rows = {r["metric"]: r for r in json.loads((tmp_path / "run/results.json").read_text())}
    if model == "seasonal_naive":
        assert rows["mse"]["value"] == pytest.approx(rows["mse"]["baseline"], rel=1e-6)
    assert rows["mse"]["value"] > 0


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


BAD_DATA = {
    "missing file": (lambda p: p / "nowhere.csv", [], ["nowhere.csv", "date"]),
    "no date column": (lambda p: _text(p, "when,load\n2024-01-01,1\n"), [], ["date", "when"]),
    "unparsable dates": (lambda p: _rows(p, date="not a date"), [], ["date", "not a date"]),
    "text in a numeric column": (lambda p: _rows(p, load="n.a.x"), [], ["load", "n.a.x"]),
    "too few rows": (lambda p: write_csv(p / "a.csv", rows=70), [], ["70", "rows"]),
    "nan without a policy": (lambda p: _rows(p, load=""), [], ["load", "on_missing"]),
}


def _text(folder: Path, text: str) -> Path:
    (folder / "a.csv").write_text(text)
    return folder / "a.csv"


def _rows(folder: Path, **cell: str) -> Path:
    frame = pd.read_csv(write_csv(folder / "a.csv"), dtype=str)
    for column, value in cell.items():
        frame.loc[100, column] = value
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


@pytest.mark.parametrize("case", list(BAD_DATA))
def test_bad_data_is_one_clear_error(case, tmp_path):
    make, words, expected = BAD_DATA[case]
    done = run("fit", "--config", "configs/forecasting/csv.yaml", "--data.root", make(tmp_path), "--run.dir",
               tmp_path / "run", *SMALL, *words, code=2)  # fmt: skip
    for word in expected:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.widht", "3"], "model.width"),
        (["--model.name", "itransfomer"], "itransformer"),
        (["--model.mixer", "flo"], "flow"),
        (["--data.horizon", "0"], "data.horizon=0"),
        (["--data.horizon", "-5"], "data.horizon=-5"),
        (["--config", "configs/forecasting/tinny.yaml"], "tiny.yaml"),
        (["--attention", "flash"], "attention='flash'"),
    ],
)
def test_bad_options_are_one_clear_error(words, expected, tmp_path):
    done = run("fit", "--config", TINY, "--run.dir", tmp_path / "run", *words, code=2)
    assert expected in done.stderr
    assert not (tmp_path / "run").exists()


def test_weights_with_code_are_refused_and_not_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Payload()}))
    done = run("test", "--config", TINY, "--weights", path, "--run.dir", tmp_path / "run", code=2)
    assert "evil.ckpt: refused" in done.stderr
    assert not (ROOT / "pwned").exists()


def test_unwritable_run_folder(tmp_path):
    (tmp_path / "file").write_text("here already")
    done = run("fit", "--config", TINY, "--run.dir", tmp_path / "file" / "run", code=2)
    assert "file" in done.stderr


def test_attention_switch_changes_nothing_but_the_path(trained, tmp_path):
    best = trained / "run/checkpoints/best.ckpt"
    results = []
    for name in ("auto", "math"):
        run("test", "--weights", best, "--attention", name, "--run.dir", tmp_path / name)
        results.append({r["metric"]: r["value"] for r in json.loads((tmp_path / name / "results.json").read_text())})
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "apps.forecasting", "fit", "--data.horizon", "0", "--debug"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" in done.stderr
