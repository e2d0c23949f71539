"""``python -m backbones``: lists without torch, shows and measures, and says what is wrong in one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from backbones.__main__ import main
from backbones.vision.variants import VARIANTS

pytest.importorskip("timm", reason="needs the extra 'vision'")


def test_listing_needs_no_torch(tmp_path):
    probe = "import sys; from backbones.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe, "list"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
    for name in ("swin_tiny", "dinat_large_384_11x11", "biformer_stl", "vig_h_base", "timm:"):
        assert name in done.stdout


def test_rows_are_written(tmp_path, capsys):
    assert main(["list", "vig", "vig_h", "--output", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows][:2] == ["vig_tiny", "vig_small"]
    assert rows[3]["channels"] == "96 192 384 768"
    assert "swin" not in capsys.readouterr().out.split("every model of timm")[0]


def test_show_tells_levels_cost_and_options(capsys):
    assert main(["show", "biformer_tiny", "--size", "65x47"]) == 0
    text = capsys.readouterr().out
    for words in (
        "BiFormer, Zhu et al. 2023",
        "81.4 % top-1",
        "drop path to train it with on ImageNet-1K: 0.1",
        "17 x 12",
        "3 x 2",
        "regions",
        "routed_attention",
        "Regions per side",
        "Gradient checkpointing",
    ):
        assert words in text


def test_only_rates_that_are_known_are_shown(capsys):
    assert {name for name, variant in VARIANTS.items() if variant.drop_path is None} == {
        "biformer_stl",
        "swin_large",
        *(name for name, variant in VARIANTS.items() if variant.family in ("maxvit", "tiny_vit", "shvit", "davit")),
    }
    assert main(["show", "biformer_stl", "--size", "32"]) == 0
    assert "drop path to train" not in capsys.readouterr().out


def test_benchmark_measures_and_compares(tmp_path, capsys):
    file = tmp_path / "rows.json"
    words = ["benchmark", "vig_tiny", "--size", "32", "--repeats", "2", "--train", "--against", "math"]
    assert main([*words, "--output", str(file)]) == 0
    result = json.loads(file.read_text())
    (row,) = result["rows"]
    assert row["name"] == "vig_tiny" and row["fastest_ms"] <= row["latency_ms"] <= row["slowest_ms"]
    assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["train_memory_mib"] > row["memory_mib"] > 0
    assert row["attention"] == {"gated_linear_attention": "fast"}
    text = capsys.readouterr().out
    assert "vig_tiny" in text and "math / ours" in text and "TFLOP/s" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "dinat_tny"], "did you mean dinat_tiny"),
        (["benchmark", "swim_tiny"], "did you mean swin_tiny"),
        (["list", "dinatt"], "unknown family 'dinatt'; did you mean dinat"),
        (["benchmark", "--size", "16"], "at least 32 pixels"),
        (["show", "swin_tiny", "--size", "a"], "--size a must be a side"),
        (["benchmark", "--batch", "0"], "--batch 0 must be at least 1"),
        (["benchmark", "--dtype", "float8"], "unknown dtype"),
        (["benchmark", "--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (["benchmark", "--against", "natten"], "--against: unknown rival 'natten'"),
        (["benchmark", "vig_tiny", "--size", "32", "--against", "timm"], "vig_tiny has no rival 'timm'"),
        (["list", "--output", "rows.txt"], "expected a name that ends in .csv or .json"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
