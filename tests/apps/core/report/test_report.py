from __future__ import annotations

import base64
import json
import re
import wave
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from apps.core.report.read import read_metrics, read_run
from apps.core.report.report import write_report

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with every file that a run leaves."""
    folder = tmp_path / "runs" / "forecasting" / "etth1_patchtst" / "20261103-142501"
    media = folder / "media"
    media.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,val/loss,val/mse,val/baseline_mse\n"
        "0,9,1.0,,,\n0,10,,0.9,0.4,0.5\n1,19,0.5,,,\n1,20,,nan,0.3,0.5\n"
    )
    write_json(
        folder / "results.json", [{"metric": "mse", "value": 0.375, "baseline": 0.5, "published": 0.386, "samples": 12}]
    )
    write_json(
        folder / "notes.json",
        {
            "timing": {"fit_s": 185.0},
            "skipped_files": ["a.png: truncated", "<b>.png: empty"],
            "tables": {"by_horizon": [{"step": 1, "mse": 0.1}, {"step": 96, "mse": float("nan")}]},
            "attention": {"sdpa": "used"},
        },
    )
    write_json(
        folder / "provenance.json", {"task": "forecasting", "argv": ["fit", "--data.root", "my data"], "seed": 7}
    )
    (folder / "config.yaml").write_text("model:\n  name: <patchtst>\n")
    (media / "best_0.png").write_bytes(PIXEL)
    with wave.open(str(media / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0\0" * 80)
    write_json(
        media / "index.json",
        [
            {"file": "tone.wav", "section": "random", "caption": "a tone", "score": None},
            {"file": "best_0.png", "section": "best", "caption": 'window "0" <i>', "score": 0.125},
            {"file": "gone.png", "section": "worst", "caption": "no such file", "score": 1.0},
            {"file": "../../../secret.png", "section": "worst", "caption": "outside", "score": 1.0},
        ],
    )
    (folder.parent.parent / "secret.png").write_bytes(PIXEL)
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


class Balance(HTMLParser):
    """Collects tags and fails on one that is closed out of order."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag


def headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_page_has_every_section(run: Path):
    target = write_report(SimpleNamespace(path=run))
    page = target.read_text()
    assert target == run / "report.html" and not list(run.glob("*.tmp"))
    assert headings(page) == [
        "Results", "Curves", "Best samples", "Random samples", "Tables", "Timing", "Reproduce",
    ]  # fmt: skip
    assert "mse <b>0.3750</b> on 12 samples, 25 % better than the trivial baseline (0.5000); published: 0.386." in page
    assert "<h1>etth1_patchtst</h1>" in page and "forecasting · 20261103-142501" in page
    assert "python -m apps.forecasting fit --data.root &#x27;my data&#x27;" in page
    assert "3 min 05 s" in page and "score 0.125" in page and "skipped files (2)" in page and "2 epochs" in page
    checker = Balance()
    checker.feed(page)
    assert checker.open == [] and {"svg", "img", "audio", "table", "details"} <= set(checker.seen)


def test_page_needs_no_network_and_escapes_what_it_is_given(run: Path):
    page = write_report(run).read_text()
    assert re.findall(r'(?:src|href)="?([^">]{1,5})', page) and not re.search(r'(?:src|href)="?(?:http|//|\.|/)', page)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    for raw in ("<patchtst>", "<b>.png", "<i>"):
        assert raw not in page
    assert "window &quot;0&quot; &lt;i&gt;" in page
    assert "outside" not in page  # a path that leaves the run folder is not followed


def test_page_reads_on_a_phone_and_in_the_dark(run: Path):
    page = write_report(run).read_text()
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    "missing", ["metrics.csv", "results.json", "notes.json", "provenance.json", "config.yaml", "media/index.json"]
)
@pytest.mark.parametrize("damage", ["absent", "empty", "garbage"])
def test_a_missing_or_broken_file_only_leaves_its_section_out(run: Path, missing: str, damage: str):
    path = run / missing
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b'\xff{"half": [1,')
    found = headings(write_report(run).read_text())
    gone = {"metrics.csv": "Curves", "results.json": "Results", "notes.json": "Tables"}.get(missing)
    assert gone is None or gone not in found
    assert len(found) >= 5


def test_an_empty_folder_still_has_a_page(tmp_path: Path):
    page = write_report(tmp_path).read_text()
    assert "nothing to show yet" in page and tmp_path.name in page


def test_large_media_are_named_instead_of_embedded(run: Path):
    (run / "media" / "best_0.png").write_bytes(PIXEL + b"\0" * 13_000_000)
    target = write_report(run)
    assert "media/best_0.png, 12.4 MiB: not shown here" in target.read_text()
    assert target.stat().st_size < 100_000


def test_sparse_rows_of_the_csv_logger(run: Path):
    curves, epochs = read_metrics(run / "metrics.csv")
    assert curves["train/loss"] == [(9.0, 1.0), (19.0, 0.5)] and epochs == 2
    assert curves["val/mse"] == [(10.0, 0.4), (20.0, 0.3)]
    assert curves["val/loss"][1][1] != curves["val/loss"][1][1]  # a NaN is kept as a NaN


def test_a_resumed_run_logs_a_step_twice_and_the_later_counts(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,10,3\n0,20,2\n0,10,2.5\n")
    assert read_metrics(tmp_path / "metrics.csv")[0]["train/loss"] == [(10.0, 2.5), (20.0, 2.0)]


def test_media_without_an_index_are_found(run: Path):
    (run / "media" / "index.json").unlink()
    assert [medium.path.name for medium in read_run(run).media] == ["best_0.png", "tone.wav"]


def test_reading_a_run_needs_no_torch():
    import subprocess
    import sys

    code = "import apps.core.report.report, apps.core.report.table, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[4]).returncode == 0


def test_two_pictures_of_one_size_stand_behind_a_slider(run: Path):
    (run / "media" / "worn.png").write_bytes(PIXEL + b"x")
    entry = {"file": "best_0.png", "section": "best", "caption": "restored", "before": "worn.png"}
    write_json(run / "media" / "index.json", [entry])
    text = write_report(run).read_text()
    assert text.count('type="range"') == 1 and text.count("data:image/png") == 2
    assert base64.b64encode(PIXEL + b"x").decode() in text
    write_json(run / "media" / "index.json", [{**entry, "before": "../../../secret.png"}])
    assert 'type="range"' not in write_report(run).read_text()
